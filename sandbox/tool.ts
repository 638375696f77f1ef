import type { ToolDefinition } from "../domain/conversation.ts";
import type { SandboxJob } from "./sandbox-driver.ts";

/** Where a tool acts, resolved by the activity: the tenant's sandbox directory and uid, and what its mode says. */
export type ToolPlace = Pick<
  SandboxJob,
  "workDirectory" | "uid" | "limits" | "seccomp" | "egress" | "onEgress" | "container" | "heldByVolume"
>;

export type ToolOutcome = {
  /** What the model reads, cut to a bounded length. */
  readonly content: string;
  readonly failed: boolean;
  /** Facts for the tool run's row: exit code, reason, enforcement, wall time. */
  readonly facts: Readonly<Record<string, unknown>>;
};

/** A tool that the tenant's agent may call; its arguments come from a model and are hostile until parsed. */
export type Tool = {
  readonly definition: ToolDefinition;
  /** The same for runs that may reach these destinations, where that makes a difference to whoever calls it. */
  readonly definitionFor?: (network: readonly string[]) => ToolDefinition;
  /** A tool that may run twice without harm (read, list); another one is not started again after a crash. */
  readonly idempotent: boolean;
  /** The administrator's sandbox mode that the tool asks for, `@sandbox("…")`. */
  readonly sandboxMode?: string;
  /** @param argumentsJson the model's own text; malformed input is an outcome with `failed`, never a throw */
  run(place: ToolPlace, argumentsJson: string, signal: AbortSignal): Promise<ToolOutcome>;
};
