import { resolveSandboxPolicy } from "../control-plane/sandbox-policy.ts";
import { limitsOfPolicy } from "../sandbox/policy-run.ts";
import { DefaultLogger, Runtime } from "@temporalio/worker";
import { randomBytes } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inject } from "vitest";
import { createAuditActivities } from "../activities/audit-activities.ts";
import { createInvoiceActivities } from "../activities/invoice-activities.ts";
import { createArchiveActivities } from "../activities/archive-activities.ts";
import { createReconcileActivities } from "../activities/reconcile-activities.ts";
import { createQuotaActivities } from "../activities/quota-activities.ts";
import { createTenantLifeActivities } from "../activities/tenant-life-activities.ts";
import type { ServedModel } from "../activities/model-attempts.ts";
import type { OverlayOfTurn } from "../activities/model-call.ts";
import { createKeyActivities } from "../activities/key-activities.ts";
import type { EnterDirectory } from "../activities/tool-run.ts";
import { createTurnActivities } from "../activities/turn-activities.ts";
import type { InvoiceSender } from "../control-plane/invoices.ts";
import { createQuotaBooks } from "../control-plane/quota-books.ts";
import { type QuotaLeases, createQuotaLeases } from "../control-plane/quota-leases.ts";
import { createHistoryArchive } from "../control-plane/history-archive.ts";
import { createClosedRuns } from "../temporal/closed-runs.ts";
import { createReconciler } from "../control-plane/reconciler.ts";
import { createTenants, grantableLimitsOf, spendableLimitsOf } from "../control-plane/tenants.ts";
import type { UsageAlarms } from "../control-plane/usage-alarms.ts";
import { noMarkup } from "../domain/money.ts";
import type { QuotaLimits } from "../domain/quota-ledger.ts";
import { type RateCard, type RateCardHash, parseRates } from "../domain/rate-card.ts";
import { createTenantFiles } from "../storage/tenant-files.ts";
import { createFieldEncryption } from "../storage/tenant-field-encryption.ts";
import { type SessionId, statelessSessionOf } from "../domain/session-id.ts";
import type { Owner, TenantContext, TenantId } from "../domain/tenant.ts";
import { mintTurnId } from "../domain/turn-id.ts";
import type { TurnSubmission } from "../domain/turn.ts";
import { type TurnService, createTurnService } from "../gateway/turn-service.ts";
import { createTurnSlots } from "../gateway/turn-slots.ts";
import type { ModelProvider } from "../providers/model-provider.ts";
import type { Tool } from "../sandbox/tool.ts";
import { openDatabase, type Database } from "../storage/database.ts";
import { createInProcessTokenBus } from "../streams/in-process-token-bus.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { forSystem } from "../temporal/chain-client.ts";
import { type OperationClient, createOperationClient } from "../temporal/operation-client.ts";
import { type OpenedDataKeys, openDataKeys } from "../storage/open-data-keys.ts";
import { connectTemporal, type TemporalConnection } from "../temporal/temporal-connection.ts";
import { type LaneSettings, type TenantClient, forTenant } from "../temporal/tenant-client.ts";
import { createTenantLifeRuns } from "../workers/tenant-life-runs.ts";
import { type TenantWorkerPool, createTenantWorkerPool } from "../workers/tenant-worker-pool.ts";
import { workflowBundle } from "../workers/workflow-bundle.ts";
import { someOverlay } from "./control-plane/some-overlay.ts";
import { readUsedToday } from "../storage/usage-totals.ts";
import { freshDatabase, sharedKek, someTenant } from "./storage/fresh-database.ts";

export const quiet = (): void => undefined;

/** Everything between a submitted turn and its row, against the run's Postgres and Temporal. */
export type TurnStack = {
  readonly ownerUrl: string;
  readonly home: string;
  readonly database: Database;
  readonly keys: OpenedDataKeys;
  readonly connection: TemporalConnection;
  readonly pool: TenantWorkerPool;
  readonly bus: TokenBus;
  /** The leases that the stack's own workers spend. */
  readonly quota: QuotaLeases;
  /** The leases of one more process. */
  otherLeases(): QuotaLeases;
  addTenant(name: string): Promise<TenantContext>;
  clientOf(tenantId: TenantId): TenantClient;
  readonly operations: OperationClient;
  close(): Promise<void>;
};

export type TurnStackOptions = {
  readonly provider: ModelProvider;
  readonly tools?: readonly Tool[];
  readonly lane?: Partial<LaneSettings>;
  /** Of every tenant; default: what its row says, which is none unless a change of its quota was made. */
  readonly limits?: QuotaLimits;
  /** Default: every id is a model of `provider`. */
  readonly modelOf?: (id: string) => ServedModel;
  readonly alarms?: Pick<UsageAlarms, "raise">;
  /** Default: empty. */
  readonly overlayOf?: OverlayOfTurn;
  /** Default: every tenant is this process's. */
  readonly enterDirectory?: EnterDirectory;
  /** An existing database instead of a fresh one. */
  readonly ownerUrl?: string;
  readonly temporalAddress?: string;
  /** Default: the one that all tests share, whose chain `system` is nobody's to use. */
  readonly namespace?: string;
  readonly bundleDirectory?: string;
  /** Instead of the stack's own data keys. */
  readonly ensureDataKey?: (tenantId: TenantId) => Promise<void>;
  readonly eraseDataKey?: (tenantId: TenantId) => Promise<void>;
  /** Default: the one that all processes on the database share. */
  readonly keyEncryptionKey?: string;
  /** Who tells Stripe; default: nobody. */
  readonly invoices?: (database: Database) => InvoiceSender;
  /** For histories that are recorded: payloads in the clear. */
  readonly isPlain?: boolean;
};

const testRateCard: RateCard = {
  hash: "test" as RateCardHash,
  text: {},
  rates: new Map([
    ["test-model", parseRates("test-model", { input: "1", output: "2" })],
    ["other-model", parseRates("other-model", { input: "3", output: "5" })],
    ["dearest-model", parseRates("dearest-model", { input: "1000000", output: "1000000" })],
    ["last-model", parseRates("last-model", { input: "7", output: "11" })],
  ]),
};

export async function startTurnStack({
  provider,
  tools = [],
  lane,
  limits,
  modelOf = (id) => ({ id, provider, contextWindow: id === "dearest-model" ? 10_000_000 : 100_000, maxOutputTokens: 4_000, fallbacks: [] }),
  alarms = { raise: quiet },
  overlayOf = async () => someOverlay(""),
  ...place
}: TurnStackOptions): Promise<TurnStack> {
  try {
    Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  } catch {
    // installed by an earlier stack of this process
  }
  const ownerUrl = place.ownerUrl ?? (await freshDatabase());
  const database = await openDatabase({ ownerUrl, log: quiet });
  const home = mkdtempSync(join(tmpdir(), "openclaw-stack-"));
  chmodSync(home, 0o711);
  const keys = await openDataKeys({ database, home, keyEncryptionKey: place.keyEncryptionKey ?? sharedKek(ownerUrl), log: quiet });
  const connection = await connectTemporal({
    address: place.temporalAddress ?? inject("temporalAddress"),
    namespace: place.namespace ?? "default",
    dataKeys: place.isPlain === true ? undefined : keys.dataKeys,
  });
  const bus = createInProcessTokenBus();
  const clientOf = (tenantId: TenantId) => forTenant({ tenantId }, connection, { windowMs: 2_000, modelCall: "remote", ...lane });
  const wake = async (owner: Owner): Promise<void> => await pool.wake(owner);
  const operations = createOperationClient({ connection, wake });
  const tenants = createTenants({ database });
  const leases = (): QuotaLeases =>
    createQuotaLeases({
      limitsOf: async (tenantId) => limits ?? spendableLimitsOf(await tenants.get(tenantId)),
      clientOf,
      wake,
      usedTokens: async (tenantId) => Number((await database.withControl((tx) => readUsedToday(tx, tenantId), { readOnly: true })).tokens),
      log: quiet,
    });
  const quota = leases();
  const activities = {
    ...createQuotaActivities({ database, limitsOf: async (tenantId) => limits ?? grantableLimitsOf(await tenants.get(tenantId)) }),
    ...createAuditActivities({ database, home, log: quiet }),
    ...(place.invoices === undefined ? {} : createInvoiceActivities({ sender: place.invoices(database) })),
    ...createTenantLifeActivities({
      database,
      home,
      runs: createTenantLifeRuns({ clientOf, system: forSystem(connection), operations, wake, log: quiet }),
      ensureDataKey: place.ensureDataKey ?? keys.dataKeys.ensure,
      eraseDataKey: place.eraseDataKey ?? keys.dataKeys.erase,
      forget: async (tenantId) => void pool.forget(tenantId),
    }),
    ...createKeyActivities({ database, ...keys, spreadMs: 3_000 }),
    ...createArchiveActivities({
      archive: createHistoryArchive({
        database,
        runs: createClosedRuns(connection),
        tenants: async () => (await tenants.list()).map(({ id }) => id),
        keepDays: 30,
        log: quiet,
      }),
    }),
    ...createReconcileActivities({
      reconciler: createReconciler({
        database,
        booksOf: createQuotaBooks({ database, tenants, clientOf, wake }),
        chain: forSystem(connection),
        log: quiet,
      }),
    }),
    ...createTurnActivities({
      database,
      files: createTenantFiles({ database, encryption: createFieldEncryption(keys.dataKeys) }),
      bus,
      tools: new Map(tools.map((tool) => [tool.definition.name, tool])),
      overlayOf,
      promptFilesOf: () => [],
      placeOf: async (_tenantId, wish) => {
        const policy = resolveSandboxPolicy({ ...wish, admin: {} });
        return { policy, refused: undefined, place: { workDirectory: "/nonexistent", uid: undefined, limits: limitsOfPolicy(policy) } };
      },
      enterDirectory:
        place.enterDirectory ??
        (() => ({ hold: async () => true, isOurs: () => true, signal: new AbortController().signal, leave: quiet })),
      modelOf,
      pricing: async () => ({ rateCard: testRateCard, markupPpm: noMarkup }),
      rateCardAt: async () => testRateCard,
      quota,
      alarms,
      now: () => Date.now(),
      log: quiet,
    }),
  };
  const bundle = await workflowBundle(place.bundleDirectory ?? inject("bundleDirectory"));
  const pool = createTenantWorkerPool({ connection, bundle, activities, log: quiet });
  let uidIndex = 0;
  return {
    ownerUrl,
    home,
    database,
    keys,
    connection,
    pool,
    bus,
    quota,
    otherLeases: leases,
    async addTenant(name) {
      const context = someTenant(name);
      await database.withControl(async (tx) => {
        await tx.execute("insert into tenant (id, os_uid_index) values ($1, $2)", [context.tenantId, uidIndex++]);
      });
      await database.createTenantSchema(context.tenantId);
      return context;
    },
    clientOf,
    operations,
    async close() {
      await quota.close();
      await pool.close();
      await connection.close();
      await keys.close();
      await database.close();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

export const someTurn = (sessionId: string, text: string, more: Partial<TurnSubmission> = {}): TurnSubmission => ({
  turnId: mintTurnId(Date.now(), randomBytes(10)),
  sessionId: sessionId as SessionId,
  kind: "chat",
  mode: "agent",
  stateless: false,
  request: { model: "test-model", messages: [{ role: "user", content: text }], tools: [], settings: {} },
  ...more,
});

/** A turn of no session. */
export function someStatelessTurn(text: string, more: Partial<TurnSubmission> = {}): TurnSubmission {
  const turn = someTurn("api:x:default", text, { stateless: true, ...more });
  return { ...turn, sessionId: statelessSessionOf(turn.turnId) };
}

/** The gateway's door to the stack's turns, with the leases of one process. */
export const turnServiceOf = ({ database, bus, clientOf, pool }: TurnStack, quota: QuotaLeases): TurnService =>
  createTurnService({
    database,
    bus,
    clientOf,
    wake: pool.wake,
    quota,
    log: quiet,
    slots: createTurnSlots({ slots: 1_000, slotsPerTenant: 64 }),
  });

/** A provider in this process that answers what `answer` makes of the conversation; it counts its calls. */
export function scriptedProvider(
  answer: ScriptedAnswer,
): ModelProvider & { readonly calls: { readonly callId: string; readonly atMs: number }[] } {
  const calls: { callId: string; atMs: number }[] = [];
  return {
    name: "scripted",
    calls,
    async *call(request, signal) {
      calls.push({ callId: request.callId, atMs: Date.now() });
      const { text = "", toolCalls = [], usage = {} } = await answer(request, signal);
      for (const word of text.split(/(?<= )/)) if (word !== "") yield { type: "text", text: word };
      return {
        reply: { content: text === "" ? null : text, toolCalls, finishReason: toolCalls.length > 0 ? "tool_calls" : "stop" },
        usage: {
          inputTokens: 10,
          cacheReadTokens: 0,
          cacheWriteTokens: 0,
          outputTokens: 5,
          reasoningTokens: 0,
          estimated: false,
          ...usage,
        },
        providerRequestId: `scripted-${calls.length}`,
      };
    },
  };
}

type ScriptedAnswer = (
  request: Parameters<ModelProvider["call"]>[0],
  signal: AbortSignal,
) => Promise<{
  text?: string;
  toolCalls?: readonly { id: string; name: string; arguments: string }[];
  usage?: Partial<{ inputTokens: number; outputTokens: number; cacheReadTokens: number; reasoningTokens: number }>;
}>;
