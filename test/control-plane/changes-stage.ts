import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { inject } from "vitest";
import { type AnchorKeeper, startAnchorKeeper } from "../../control-plane/anchor-keeper.ts";
import { directoryPlace } from "../../control-plane/anchor-place.ts";
import { startAuditRelay, type AuditRelay } from "../../control-plane/audit-relay.ts";
import { verifyAudit, type Verification } from "../../control-plane/audit-verify.ts";
import { openSigningKey } from "../../control-plane/audit-signing-key.ts";
import { createChanges, type Changes } from "../../control-plane/changes.ts";
import { mintTenantToken } from "../../control-plane/credentials.ts";
import type { ChainState, Command } from "../../domain/audit.ts";
import { parseTenantId, systemOwner, type Owner, type TenantId } from "../../domain/tenant.ts";
import { chainClient, guardedClient } from "../../temporal/chain-client.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type TurnStack, type TurnStackOptions, quiet, scriptedProvider, startTurnStack } from "../turn-stack.ts";

export type ChangesStage = {
  readonly stack: TurnStack;
  readonly namespace: string;
  readonly changes: Changes;
  readonly relay: AuditRelay;
  readonly anchors: AnchorKeeper;
  createTenant(name?: string): Promise<{ readonly tenantId: TenantId; readonly token: string }>;
  make(owner: Owner, command: Command, more?: { readonly key?: string; readonly request?: unknown }): Promise<void>;
  stateOf(owner: Owner): Promise<ChainState | undefined>;
  verify(): Promise<Verification>;
  close(): Promise<void>;
};

export type ChangesPlace = {
  readonly ownerUrl?: string;
  readonly namespace?: string;
  readonly temporalAddress?: string;
  readonly bundleDirectory?: string;
  readonly changesPerRun?: number;
  /** Default: the one that all processes on the database share. */
  readonly keyEncryptionKey?: string;
} & Pick<TurnStackOptions, "ensureDataKey" | "eraseDataKey" | "invoices" | "isPlain">;

/** Everything that an audited change goes through, without HTTP. */
export async function startChanges({ changesPerRun, ...place }: ChangesPlace = {}): Promise<ChangesStage> {
  const temporalAddress = place.temporalAddress ?? inject("temporalAddress");
  const namespace = place.namespace ?? (await freshNamespace(temporalAddress));
  const stack = await startTurnStack({ provider: scriptedProvider(async () => ({ text: "hello" })), ...place, namespace });
  const { database, home, connection, pool } = stack;
  const chainOf = (owner: Owner) => chainClient(owner, guardedClient(owner, connection), { changesPerRun });
  const relay = await startAuditRelay({ database, home, log: quiet });
  const changes = createChanges({
    database,
    dataKeys: stack.keys.dataKeys,
    chainOf,
    wake: pool.wake,
    obstacle: relay.obstacle,
    log: quiet,
  });
  const key = await openSigningKey({ database, home, log: quiet });
  const anchors = await startAnchorKeeper({
    database,
    key,
    places: [directoryPlace(join(home, "audit-anchors"), key)],
    log: quiet,
    intervalMs: 3_600_000,
  });
  const stateOf = async (owner: Owner) => {
    await pool.wake(owner);
    return await chainOf(owner).state(AbortSignal.timeout(5_000));
  };
  const make: ChangesStage["make"] = async (owner, command, { key, request = null } = {}) =>
    await changes.make(owner, command, {
      actor: { type: "admin", id: "root" },
      requestId: `req_${randomBytes(8).toString("hex")}`,
      idempotency: key === undefined ? undefined : { key, request },
    });
  return {
    stack,
    namespace,
    changes,
    relay,
    anchors,
    make,
    stateOf,
    async createTenant(name = "acme") {
      const tenantId = parseTenantId(`${name}-${randomBytes(4).toString("hex")}`);
      const { token, hash } = mintTenantToken(tenantId);
      await make(systemOwner, { type: "tenant.create", tenantId, displayName: null, markup: null, tokenHash: hash.toString("hex") });
      return { tenantId, token };
    },
    verify: async () => await verifyAudit({ database, home, flush: relay.flush, stateOf, anchors }),
    async close() {
      await anchors.stop();
      await relay.stop();
      await stack.close();
    },
  };
}
