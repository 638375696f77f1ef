import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { DefaultLogger, bundleWorkflowCode } from "@temporalio/worker";
import { afterAll, afterEach, beforeAll, expect, inject, test } from "vitest";
import type { QuotaLeases } from "../../control-plane/quota-leases.ts";
import { AppError } from "../../domain/app-error.ts";
import { utcDayOf } from "../../domain/quota-ledger.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { FinishedTurn } from "../../domain/turn.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { type TurnStack, scriptedProvider, someStatelessTurn, startTurnStack, turnServiceOf } from "../turn-stack.ts";

/** What the stack's clocks are ahead of the machine's: this process's, and by the bundle those of the workflows. */
let aheadMs = 0;
const MachineDate = Date;
class ShiftedDate extends MachineDate {
  constructor(...args: [] | [number | string | Date]) {
    super(args.length === 0 ? MachineDate.now() + aheadMs : args[0]);
  }
  static override now(): number {
    return MachineDate.now() + aheadMs;
  }
}

const pathOf = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
let bundleText: string;
let bundleDirectory: string;
let stack: TurnStack;
beforeAll(async () => {
  const { code } = await bundleWorkflowCode({
    workflowsPath: pathOf("../../workflows/index.ts"),
    failureConverterPath: pathOf("../../workflows/failure-converter.ts"),
    workflowInterceptorModules: [pathOf("../../workflows/tenant-guard.ts"), pathOf("shifted-clock.ts")],
    logger: new DefaultLogger("ERROR"),
  });
  bundleText = code;
});
afterEach(() => {
  aheadMs = 0;
  globalThis.Date = MachineDate;
});
afterAll(async () => {
  await stack?.close();
  rmSync(bundleDirectory, { recursive: true, force: true });
});

/** Sets every clock; workflows that begin from now on tell it. */
async function setClock(time: number): Promise<void> {
  aheadMs = time - MachineDate.now();
  globalThis.Date = ShiftedDate as DateConstructor;
  const name = basename((await workflowBundle(inject("bundleDirectory"))).codePath);
  writeFileSync(join(bundleDirectory, name), bundleText.replaceAll("CLOCK_AHEAD_MS", String(aheadMs)));
}

const limits = { tokensPerDay: 300, nanoUsdPerDay: undefined, requestsPerMinute: undefined };
const midnight = Date.UTC(2028, 2, 1);

/** The refusal's code and its seconds until it is worth coming again, or the turn's end. */
async function ask(context: TenantContext, quota: QuotaLeases, text: string): Promise<FinishedTurn["state"] | readonly [string, number]> {
  try {
    const end = await (await turnServiceOf(stack, quota).submit(context, someStatelessTurn(text))).finished;
    return end.state === "failed" ? [end.error.code, end.error.retryAfterSeconds ?? 0] : end.state;
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    return [error.code, error.client.retryAfterSeconds ?? 0];
  }
}

test("what is admitted before midnight of a leap day is billed and counted on that day, and the next one begins whole in every process", async () => {
  let answerHeld = (): void => {};
  const held = new Promise<void>((resolve) => (answerHeld = resolve));
  let reached = (): void => {};
  const isHeld = new Promise<void>((resolve) => (reached = resolve));
  const provider = scriptedProvider(async ({ messages }) => {
    if (JSON.stringify(messages).includes("hold")) {
      reached();
      await held;
    }
    return { text: "yes" };
  });
  bundleDirectory = mkdtempSync(join(tmpdir(), "openclaw-midnight-"));
  writeFileSync(join(bundleDirectory, basename((await workflowBundle(inject("bundleDirectory"))).codePath)), "");
  stack = await startTurnStack({ provider, limits, bundleDirectory });
  const acme = await stack.addTenant("acme");
  const other = stack.otherLeases();
  const count = async () => await stack.clientOf(acme.tenantId).quota.count();

  await setClock(midnight - 12_000);
  const late = ask(acme, stack.quota, "hold");
  await isHeld;
  expect(await count()).toMatchObject({ day: "2028-02-29", used: { tokens: 0 }, held: { tokens: 300 } });
  const leftBefore = midnight - Date.now();
  const refused = await ask(acme, other, "refused");
  const leftAfter = midnight - Date.now();
  expect(refused).toEqual(["tokens_per_day", expect.any(Number)]);
  expect(refused[1]).toBeLessThanOrEqual(Math.ceil(leftBefore / 1_000));
  expect(refused[1]).toBeGreaterThanOrEqual(Math.max(1, Math.ceil(leftAfter / 1_000)));

  await expect.poll(async () => (await count())?.day, { timeout: 60_000, interval: 200 }).toBe("2028-03-01");
  expect(utcDayOf(Date.now())).toBe("2028-03-01");
  expect(await ask(acme, stack.quota, "first of March")).toBe("done");
  // What the first process was granted and does not use is free again soon.
  await expect.poll(async () => await ask(acme, other, "and the other process"), { timeout: 60_000, interval: 500 }).toBe("done");
  answerHeld();
  expect(await late).toBe("done");

  await expect
    .poll(count, { timeout: 60_000 })
    .toMatchObject({ day: "2028-03-01", used: { tokens: 30 }, overshoot: { tokens: 0 }, calls: 0 });
  const days = await stack.database.withTenant(acme, async (tx) => ({
    rows: await tx.query(
      `select ("timestamp" at time zone 'UTC')::date::text as day, count(*)::int as calls, sum(input_tokens + output_tokens)::int as tokens
       from control.usage_ledger group by 1 order by 1`,
    ),
    sums: await tx.query("select day::text, calls::int, (tokens_in + tokens_out)::int as tokens from control.usage_daily order by day"),
  }));
  const expected = [
    { day: "2028-02-29", calls: 1, tokens: 15 },
    { day: "2028-03-01", calls: 2, tokens: 30 },
  ];
  expect(days).toEqual({ rows: expected, sums: expected });
  await other.close();
}, 180_000);
