import type { TenantCommand } from "../domain/audit.ts";
import type { Owner, TenantId } from "../domain/tenant.ts";
import type { ChainClient } from "../temporal/chain-client.ts";

export type OwnEntriesDeps = {
  readonly chainOf: (tenantId: TenantId) => ChainClient;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

/** `opId`: the same one twice is one entry. `by`: the part of the product. */
export type OwnEntry = { readonly opId: string; readonly by: string; readonly command: TenantCommand };

const patienceMs = 10_000;

/**
 * Writes what the product itself has to say into a tenant's audit.
 * @returns once it stands there, or never will: the tenant's chain is closed or broken
 * @throws when it could not be handed over in time, or when `signal` says so
 */
export const createOwnEntries =
  ({ chainOf, wake }: OwnEntriesDeps) =>
  async (tenantId: TenantId, { opId, by, command }: OwnEntry, stopped: AbortSignal): Promise<void> => {
    const signal = AbortSignal.any([stopped, AbortSignal.timeout(patienceMs)]);
    await wake(tenantId);
    const order = { opId, command, actor: { type: "system", id: by } as const, requestId: opId, notAfterMs: Date.now() + patienceMs };
    for (;;) {
      const { state } = await chainOf(tenantId).change(order, signal);
      if (state !== "moved") return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };
