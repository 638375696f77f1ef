import { AppError, toStoredError } from "../domain/app-error.ts";
import type { TenantFacts } from "../domain/audit.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import { factsOf } from "../control-plane/tenants.ts";
import type { Database } from "../storage/database.ts";
import { readOpenTurns } from "../storage/open-turn-repository.ts";
import { endErasedTenant } from "../storage/tenant-remains.ts";
import { homeIdOf } from "../storage/home-id.ts";
import { createTenantDirectory, removeTenantDirectory } from "../storage/tenant-paths.ts";
import { claimTurn, finishTurn, voidOpenCalls } from "../storage/turn-repository.ts";
import { asLifeActivity } from "./activity-context.ts";

/** What the beginning and the end of a tenant ask of Temporal. */
export type TenantLifeRuns = {
  /** @returns false when the lane is not open, so that nobody will end the turn */
  abortTurn(tenantId: TenantId, lane: string, turnId: TurnId): Promise<boolean>;
  /** Workflows of the tenant that are open, as far as visibility knows yet; without its audit chain. */
  openRuns(tenantId: TenantId): Promise<readonly string[]>;
  endRun(tenantId: TenantId, workflowId: string): Promise<void>;
  /** Starts the tenant's audit chain, unless it runs or has been closed. */
  openChain(tenantId: TenantId, facts: TenantFacts): Promise<void>;
  /** Writes the chain's last entry and waits for the end of its workflow. Safe to repeat. */
  closeChain(tenantId: TenantId, signal: AbortSignal): Promise<void>;
  /** Ends `provision:<tenant>`. */
  endProvision(tenantId: TenantId): Promise<void>;
  /** The audited deletion, as made by the product itself. */
  deleteTenant(tenantId: TenantId, signal: AbortSignal): Promise<void>;
};

export type TenantLifeDeps = {
  readonly database: Database;
  readonly home: string;
  readonly runs: TenantLifeRuns;
  /** Makes the tenant's data key where there is none. */
  readonly ensureDataKey: (tenantId: TenantId) => Promise<void>;
  /** Makes what was encrypted under the tenant's data key unreadable for ever. Safe to repeat. */
  readonly eraseDataKey: (tenantId: TenantId) => Promise<void>;
  /** Ends the tenant's workers in every process. */
  readonly forget: (tenantId: TenantId) => Promise<void>;
};

/** How long turns that were told to end may take before their rows are ended over their heads. */
const settlePatienceMs = 30_000;
const settlePollMs = 200;
const abortAgainMs = 2_000;
/** What was started is seen by visibility a second or so later. */
const visibilityLagMs = 1_500;

/** The effects of `provision:<tenant>` and `erase:<tenant>`. The tenant is the workflow's: no input names it. All are safe to repeat. */
export const createTenantLifeActivities = ({ database, home, runs, ensureDataKey, eraseDataKey, forget }: TenantLifeDeps) => ({
  async completeTenant(): Promise<void> {
    await asLifeActivity(async (tenantId) => {
      const facts = await database.withControl(async (tx): Promise<TenantFacts | undefined> => {
        // The row is held, so that a deletion waits, and the directory is not made behind its back.
        const [row] = await tx.query<{ os_uid_index: number; home_id: string | null; has_schema: boolean }>(
          `select tenant.os_uid_index, tenant.home_id, schema.tenant_id is not null as has_schema
           from control.tenant left join control.tenant_schema schema on schema.tenant_id = tenant.id
           where tenant.id = $1 and tenant.state <> 'deleted' for share of tenant`,
          [tenantId],
        );
        if (row === undefined) return undefined; // deleted meanwhile
        if (!row.has_schema) throw new Error(`the schema of ${tenantId} is not there`);
        // It was made in the home of the worker that made the tenant.
        if (row.home_id === homeIdOf(home)) createTenantDirectory(home, { tenantId, osUidIndex: row.os_uid_index });
        return (await factsOf(tx, tenantId)).facts;
      });
      if (facts === undefined) return;
      await ensureDataKey(tenantId);
      await runs.openChain(tenantId, facts);
    });
  },

  async undoTenant(): Promise<void> {
    await asLifeActivity(runs.deleteTenant);
  },

  /** Lets no turn in, and ends those that run: what a provider has counted is billed. */
  async settleTurns(): Promise<void> {
    await asLifeActivity(async (tenantId, signal) => {
      await runs.endProvision(tenantId);
      await database.closeTenantSchema(tenantId);
      const giveUpAtMs = Date.now() + settlePatienceMs;
      const toldAtMs = new Map<TurnId, number>();
      for (;;) {
        const open = await database.withControl(async (tx) => await readOpenTurns(tx, tenantId), { readOnly: true });
        if (open.length === 0) return;
        for (const { turnId, lane } of open) {
          if (Date.now() - (toldAtMs.get(turnId) ?? 0) < abortAgainMs) continue;
          toldAtMs.set(turnId, Date.now());
          const isServed = await runs.abortTurn(tenantId, lane, turnId);
          if (!isServed || Date.now() > giveUpAtMs) await endTurn(database, tenantId, turnId);
        }
        await pause(settlePollMs, signal);
      }
    });
  },

  /** Ends every workflow of the tenant but its audit chain, until none is seen twice in a row. */
  async endRuns(): Promise<void> {
    await asLifeActivity(async (tenantId, signal) => {
      for (let unseen = 0; ;) {
        const open = await runs.openRuns(tenantId);
        for (const workflowId of open) await runs.endRun(tenantId, workflowId);
        unseen = open.length === 0 ? unseen + 1 : 0;
        if (unseen === 2) return;
        await pause(visibilityLagMs, signal);
      }
    });
  },

  async closeTenantChain(): Promise<void> {
    await asLifeActivity(runs.closeChain);
  },

  async dropSchema(): Promise<void> {
    await asLifeActivity(async (tenantId) => await database.dropTenantSchema(tenantId));
  },

  async removeFiles(): Promise<void> {
    await asLifeActivity(async (tenantId) => await removeTenantDirectory(home, tenantId));
  },

  async eraseKey(): Promise<void> {
    await asLifeActivity(async (tenantId) => {
      await eraseDataKey(tenantId);
      await database.withControl(async (tx) => await endErasedTenant(tx, tenantId));
      await forget(tenantId);
    });
  },
});

export type TenantLifeActivities = ReturnType<typeof createTenantLifeActivities>;

async function endTurn(database: Database, tenantId: TenantId, turnId: TurnId): Promise<void> {
  await database.withTenant({ tenantId, requestId: `erase:${tenantId}` }, async (tx) => {
    const turn = await claimTurn(tx, turnId);
    if (turn === undefined) return;
    await voidOpenCalls(tx, turnId);
    await finishTurn(tx, turn, { state: "aborted", error: toStoredError(new AppError("turn_aborted")) }, []);
  });
}

/** @throws {AppError} `unavailable` when this worker stops: another one goes on */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(new AppError("unavailable", { reason: "the worker stops" }));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
