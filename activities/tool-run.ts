import { isToolAllowed, type Overlay } from "../control-plane/overlay.ts";
import { AppError } from "../domain/app-error.ts";
import type { SandboxPolicy } from "../domain/sandbox-policy.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import type { Tool, ToolOutcome, ToolPlace } from "../sandbox/tool.ts";
import type { Database, TenantTx } from "../storage/database.ts";
import { type ToolRunKey, openToolRun, readCalls, readTurnOverlay, settleToolRun } from "../storage/turn-repository.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { asActivity } from "./activity-context.ts";
import { createJoinedAttempts } from "./joined-attempts.ts";
import type { OverlayOfTurn } from "./model-call.ts";

/** The tenant's sandbox directory and uid, with what its mode allows; `refused` tells why this host cannot hold the mode. */
export type PlaceOfTool = (
  tenantId: TenantId,
  wish: { readonly overlay: Overlay["sandbox"]; readonly tool: string; readonly annotation: string | undefined },
) => Promise<{ readonly place: ToolPlace; readonly policy: SandboxPolicy; readonly refused: string | undefined }>;

export type ToolRunDeps = {
  readonly database: Database;
  readonly bus: TokenBus;
  readonly tools: ReadonlyMap<string, Tool>;
  readonly overlayOf: OverlayOfTurn;
  readonly placeOf: PlaceOfTool;
  readonly enterDirectory: EnterDirectory;
};

/** Leave to use a tenant's directory, which one process has at a time (docs/adr/022). @throws {AppError} `unavailable` when it is another's */
export type EnterDirectory = (tenantId: TenantId) => {
  /** Keeps the directory this process's until the transaction ends. @returns false when it no longer is */
  hold(tx: TenantTx): Promise<boolean>;
  /** Fires when it no longer is. */
  readonly signal: AbortSignal;
  /** As the signal, asked without delay: for the last moment before something begins. */
  isOurs(): boolean;
  leave(): void;
};

export const createToolRun = ({ database, bus, tools, overlayOf, placeOf, enterDirectory }: ToolRunDeps) => {
  const joinAttempt = createJoinedAttempts<{ state: "done" | "failed" }>();

  async function run(context: TenantContext, key: ToolRunKey, cancelled: AbortSignal): Promise<{ state: "done" | "failed" }> {
    const entry = enterDirectory(context.tenantId);
    try {
      return await runInside(context, key, entry, AbortSignal.any([cancelled, entry.signal]));
    } finally {
      entry.leave();
    }
  }

  async function runInside(
    context: TenantContext,
    key: ToolRunKey,
    { hold, isOurs }: Pick<ReturnType<EnterDirectory>, "hold" | "isOurs">,
    signal: AbortSignal,
  ): Promise<{ state: "done" | "failed" }> {
    const holdOrFail = async (tx: TenantTx): Promise<void> => {
      if (!(await hold(tx))) throw new AppError("unavailable", { ...key, why: "another worker serves the tenant" });
    };
    const opened = await database.withTenant(context, async (tx) => {
      await holdOrFail(tx);
      const call = (await readCalls(tx, key.turnId)).find(({ step }) => step === key.step)?.reply.toolCalls[key.n];
      if (call === undefined) throw new AppError("not_found", { ...key });
      return { call, overlay: await readTurnOverlay(tx, key.turnId), ...(await openToolRun(tx, key, call)) };
    });
    if (opened.state !== "started") return { state: opened.state };

    const { call, attempt } = opened;
    // A model may ask for what it was not offered: the overlay holds where the tool would run.
    const overlay = await overlayOf(context.tenantId, opened.overlay);
    const tool = isToolAllowed(overlay, call.name) ? tools.get(call.name) : "denied";
    const shown = { type: "tool", id: call.id, name: call.name, summary: summaryOf(call.arguments) } as const;
    bus.publish(key.turnId, { ...shown, state: "started" });
    const outcome = await runOnce(tool, call.name, attempt, async (known) => {
      const wish = { overlay: overlay.sandbox, tool: call.name, annotation: known.sandboxMode };
      const { place, policy, refused } = await placeOf(context.tenantId, wish);
      const mode = policy.mode.value;
      if (refused !== undefined) return cannotBeHeld(call.name, { mode, refused });
      if (!isOurs()) throw new AppError("unavailable", { ...key, why: "this process was paused" });
      const outcome = await known.run(place, call.arguments, signal);
      return { ...outcome, facts: { ...outcome.facts, mode } };
    });
    if (signal.aborted) throw new AppError("unavailable", { ...key, why: "stopped while the tool ran" });
    await database.withTenant(context, async (tx) => {
      await holdOrFail(tx); // else the next holder's attempt has the word
      await settleToolRun(tx, key, outcome);
    });
    const state = outcome.failed ? "failed" : "done";
    bus.publish(key.turnId, { ...shown, state });
    return { state };
  }

  return {
    /**
     * Runs the `n`-th tool call of a model call in the tenant's sandbox and stores its outcome. A retry after a crash returns the
     * stored outcome; one that finds the run begun and not ended runs an idempotent tool again and tells the model of the others
     * that it is unknown whether they took effect.
     */
    async runTool(key: ToolRunKey): Promise<{ state: "done" | "failed" }> {
      return await asActivity(async (context, signal) => {
        const name = `${context.tenantId}/${key.turnId}.${key.step}.${key.n}`;
        return await joinAttempt(name, signal, async (shared) => await run(context, key, shared));
      });
    },
  };
};

const summaryLength = 80;

/** What a call is about in a few words for whoever watches: its command or path, cut to one line. */
function summaryOf(argumentsJson: string): string {
  try {
    const given = JSON.parse(argumentsJson) as Record<string, unknown> | null;
    const subject = given?.["command"] ?? given?.["path"] ?? "";
    return typeof subject === "string" ? (subject.split("\n", 1)[0] ?? "").slice(0, summaryLength) : "";
  } catch {
    return "";
  }
}

/** The administrator reads why in the run's facts and in `sandbox explain`. */
const cannotBeHeld = (name: string, { mode, refused }: { readonly mode: string; readonly refused: string }): ToolOutcome => ({
  failed: true,
  content: `${name} did not run: the administrator's sandbox mode for it cannot be held on this host. This is for the administrator to mend.`,
  facts: { reason: "denied", mode, detail: refused },
});

async function runOnce(
  tool: Tool | "denied" | undefined,
  name: string,
  attempt: number,
  run: (tool: Tool) => Promise<ToolOutcome>,
): Promise<ToolOutcome> {
  if (tool === "denied")
    return { failed: true, content: `The tool ${JSON.stringify(name.slice(0, 64))} is not allowed here.`, facts: { reason: "denied" } };
  if (tool === undefined)
    return { failed: true, content: `There is no tool named ${JSON.stringify(name.slice(0, 64))}.`, facts: { reason: "unknown_tool" } };
  if (attempt > 1 && !tool.idempotent) {
    return {
      failed: true,
      content: "The run was interrupted by a restart and it is not known whether it took effect. Look before you run it again.",
      facts: { reason: "interrupted", attempt },
    };
  }
  return await run(tool);
}
