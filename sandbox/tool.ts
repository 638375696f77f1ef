import type { ToolDefinition } from "../domain/conversation.ts";

/** Where a tool acts: the tenant's sandbox directory and uid, resolved by the activity. */
export type ToolPlace = { readonly workDirectory: string; readonly uid: number | undefined };

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
  /** A tool that may run twice without harm (read, list); another one is not started again after a crash. */
  readonly idempotent: boolean;
  /** @param argumentsJson the model's own text; malformed input is an outcome with `failed`, never a throw */
  run(place: ToolPlace, argumentsJson: string, signal: AbortSignal): Promise<ToolOutcome>;
};
