import type { ServerResponse } from "node:http";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Tracing } from "./tracing/tracing.ts";
import type { SdkMetrics } from "./sdk-metrics.ts";
import { type OnTurnEnded, type TurnMetrics, createTurnMetrics } from "./turn-metrics.ts";
import type { GatewayMetrics } from "../gateway/gateway-metrics.ts";
import type { TurnSlots } from "../gateway/turn-slots.ts";
import type { KeyRest } from "../providers/key-ring.ts";
import type { SandboxDriver, SandboxJob } from "../sandbox/sandbox-driver.ts";
import { egressVerdicts } from "../domain/egress-event.ts";
import { type UsageDoubt, usageDoubts } from "../domain/usage.ts";
import { readReconciliationTotals } from "../storage/reconcile-repository.ts";
import { readPlacementReport } from "../storage/placement-report.ts";
import { readUsageTotals, tenantsInUsage } from "../storage/usage-totals.ts";
import type { Database } from "../storage/database.ts";

export type Metrics = TurnMetrics & {
  /** Calls `listener` when a caller's turn has ended. */
  readonly onTurnEnded: (listener: OnTurnEnded) => void;
  readonly gateway: GatewayMetrics;
  readonly observeSlots: (slots: TurnSlots) => TurnSlots;
  readonly observeSandbox: <Driver extends SandboxDriver>(driver: Driver) => Driver;
  /** A model call's tokens were counted here. */
  readonly usageDoubted: (doubt: UsageDoubt) => void;
  /** Asked how many owners this process serves. */
  readonly observePlacements: (held: () => number) => void;
  /** A provider's key is not used for a while. */
  readonly keyRested: (rest: Pick<KeyRest, "provider" | "key" | "why">) => void;
  /** Everything in Prometheus' text form. */
  render(): Promise<string>;
};

/** However often it is asked for, the database is read this often. */
const databaseMs = 5_000;

/** Counts what happens in this process, and reads what all processes share from the database when it is asked. */
export function createMetrics({
  database,
  sdk,
  tracing,
}: {
  readonly database: Pick<Database, "withControl">;
  readonly sdk?: SdkMetrics | undefined;
  readonly tracing?: Pick<Tracing, "attach"> | undefined;
}): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  const named = (name: string, help: string) => ({ name: `openclaw_${name}`, help, registers });

  let onTurnEnded: OnTurnEnded = () => {};
  const turns = createTurnMetrics(registers, (...ended) => onTurnEnded(...ended));
  sdk?.attach(registry);
  tracing?.attach(registry);
  const running = new Gauge(named("turn_slots_running", "Calls that hold a slot."));
  const waiting = new Gauge(named("turn_slots_waiting", "Calls that wait for a slot of their tenant."));
  let shareNow = (): number => 0;
  new Gauge({
    ...named("turn_slots_share", "Calls that one tenant may run at once: less while this process falls behind and others call."),
    collect() {
      this.set(shareNow());
    },
  });
  const failures = new Counter(named("failed_authentications_total", "Requests refused for their credential."));
  const requests = new Histogram({
    ...named("http_request_seconds", "Time to the last byte of an answer."),
    labelNames: ["method", "route", "status"],
    buckets: [0.005, 0.02, 0.1, 0.5, 2, 10, 60],
  });
  const sandbox = new Counter({ ...named("sandbox_runs_total", "Sandboxed runs, by what ended them."), labelNames: ["reason"] });
  const egress = new Counter({
    ...named("sandbox_egress_total", "Destinations that sandboxed code asked for, by what became of it."),
    labelNames: ["verdict"],
  });
  for (const verdict of egressVerdicts) egress.inc({ verdict }, 0);
  const doubts = new Counter({
    ...named("estimated_calls_total", "Model calls of this process whose tokens were counted here instead of by the provider, by why."),
    labelNames: ["doubt"],
  });
  for (const doubt of usageDoubts) doubts.inc({ doubt }, 0);
  const keyRests = new Counter({
    ...named(
      "provider_key_rests_total",
      "Times that a key of a provider was told to wait or not taken, and rested; by the key's variable.",
    ),
    labelNames: ["provider", "key", "why"],
  });
  const openResponses = new Set<ServerResponse>();
  new Gauge({
    ...named("streams_active", "Answers whose head is sent and whose end is not."),
    collect() {
      this.set([...openResponses].filter(({ headersSent, writableEnded }) => headersSent && !writableEnded).length);
    },
  });

  const cutReaders = new Counter(named("slow_readers_cut_total", "Connections that were ended because what was asked for was not read."));
  let unreadBytes = (): number => 0;
  new Gauge({
    ...named("unread_bytes", "Answers that wait in this process for callers to read them, in bytes."),
    collect() {
      this.set(unreadBytes());
    },
  });

  const openTurns = new Gauge(named("turns_open", "Turns that were handed in and have not ended, of all processes."));
  const tokens = new Counter({ ...named("tokens_total", "Tokens billed since the beginning, by class."), labelNames: ["class"] });
  const cost = new Counter(named("cost_usd_total", "US dollars billed since the beginning."));
  const calls = new Counter(named("model_calls_total", "Billed model calls since the beginning."));
  const tenantTokens = new Gauge({
    ...named("tenant_tokens_today", `Tokens of this UTC day, of the ${tenantsInUsage} tenants that used most; the rest is "_other".`),
    labelNames: ["tenant"],
  });
  const tenantCost = new Gauge({ ...named("tenant_cost_usd_today", "US dollars of this UTC day, likewise."), labelNames: ["tenant"] });
  const tenantCalls = new Gauge({
    ...named("tenant_model_calls_today", "Billed model calls of this UTC day, likewise."),
    labelNames: ["tenant"],
  });
  const tenantTurns = new Gauge({
    ...named("tenant_turns_open", `Turns that have not ended, of the ${tenantsInUsage} tenants that have most; the rest is "_other".`),
    labelNames: ["tenant"],
  });
  const differences = new Gauge({
    ...named("billing_differences_open", "Differences that the nightly comparison of the billing found and that are not gone."),
    labelNames: ["check"],
  });
  const reconciledAt = new Gauge(named("reconciliation_finished_timestamp_seconds", "When the last nightly comparison ended."));
  const unreadTenants = new Gauge(named("reconciliation_unread_tenants", "Tenants that the last nightly comparison could not read."));
  const processes = new Gauge({ ...named("processes", "Live processes of this database."), labelNames: ["role", "state"] });
  const placements = new Gauge(named("placements", "Tenants (and the system) that some worker serves, of all processes."));
  const stranded = new Gauge(named("stranded_tenants", "Tenants whose directory is in a home that no live worker has."));
  const scrapes = new Counter(named("metrics_database_failures_total", "Times that the figures of the database could not be read."));

  let readAtMs = -Infinity;
  const readDatabase = async (): Promise<void> => {
    if (performance.now() - readAtMs < databaseMs) return;
    const [totals, reconciled, placed] = await database.withControl(
      async (tx) => [await readUsageTotals(tx), await readReconciliationTotals(tx), await readPlacementReport(tx)] as const,
      { readOnly: true },
    );
    readAtMs = performance.now();
    processes.reset();
    for (const { role, state, count } of placed.processes) processes.set({ role, state }, count);
    placements.set(placed.placements);
    stranded.set(placed.strandedTenants);
    for (const [check, count] of Object.entries(reconciled.open)) differences.set({ check }, count);
    reconciledAt.set((reconciled.last?.finishedAtMs ?? 0) / 1_000);
    unreadTenants.set(reconciled.last?.unread ?? 0);
    openTurns.set(totals.openTurns);
    for (const counter of [tokens, cost, calls]) counter.reset();
    for (const [tokenClass, amount] of Object.entries(totals.tokens)) tokens.inc({ class: tokenClass }, amount);
    cost.inc(totals.costUsd);
    calls.inc(totals.calls);
    for (const gauge of [tenantCalls, tenantTokens, tenantCost, tenantTurns]) gauge.reset();
    for (const { tenant, turns: open } of totals.openTurnsOf) tenantTurns.set({ tenant }, open);
    for (const { tenant, calls: called, tokens: used, costUsd } of totals.today) {
      tenantCalls.set({ tenant }, called);
      tenantTokens.set({ tenant }, used);
      tenantCost.set({ tenant }, costUsd);
    }
  };

  return {
    gateway: {
      authenticationFailed: () => failures.inc(),
      slowReaderCut: () => cutReaders.inc(),
      observeUnread: (bytes) => void (unreadBytes = bytes),
      requestBegan(response) {
        openResponses.add(response);
        response.once("close", () => openResponses.delete(response));
      },
      requestEnded: ({ method, route, status, seconds }) =>
        requests.observe({ method, route, status: `${Math.trunc(status / 100)}xx` }, seconds),
    },
    ...turns,
    onTurnEnded: (listener) => void (onTurnEnded = listener),
    observeSlots(slots) {
      shareNow = slots.shareNow;
      return {
        ...slots,
        async acquire(...call) {
          waiting.inc();
          const slot = await slots.acquire(...call).finally(() => waiting.dec());
          running.inc();
          let isHeld = true;
          return {
            ...slot,
            release() {
              if (isHeld) running.dec();
              isHeld = false;
              slot.release();
            },
          };
        },
      };
    },
    observeSandbox: (driver) => ({
      ...driver,
      async run(job, signal) {
        const onEgress: SandboxJob["onEgress"] = (event) => {
          if (event.kind === "decided") egress.inc({ verdict: event.verdict });
          job.onEgress?.(event);
        };
        const result = await driver.run(job.egress === undefined ? job : { ...job, onEgress }, signal);
        sandbox.inc({ reason: result.reason });
        return result;
      },
    }),
    usageDoubted: (doubt) => doubts.inc({ doubt }),
    observePlacements(held) {
      new Gauge({
        ...named("placements_held", "Tenants (and the system) that this process serves."),
        collect() {
          this.set(held());
        },
      });
    },
    keyRested: ({ provider, key, why }) => keyRests.inc({ provider, key, why }),
    async render() {
      await readDatabase().catch(() => scrapes.inc());
      return await registry.metrics();
    },
  };
}
