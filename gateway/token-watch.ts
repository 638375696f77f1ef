import type { TenantPrincipal } from "../control-plane/authentication.ts";
import { tokenChannel } from "../control-plane/commands.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";

/** Tells long connections that the token they were opened under has been rotated or revoked, or its tenant suspended. */
export interface TokenWatch {
  /** `ended` rejects with `invalid_api_key` within a second of the end of the token, in whichever process that was done. */
  watch(principal: Pick<TenantPrincipal, "tenantId" | "tokenEpoch">): { readonly ended: Promise<never>; stop(): void };
}

export type TokenWatchDeps = {
  readonly database: Pick<Database, "withControl" | "listen">;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** A notification that was lost is made up for this late; default 5 s. */
  readonly safetyPollMs?: number;
};

type Watcher = { readonly epoch: number; readonly end: () => void };

export async function openTokenWatch({
  database,
  log,
  safetyPollMs = 5_000,
}: TokenWatchDeps): Promise<TokenWatch & { close(): Promise<void> }> {
  const watchers = new Map<TenantId, Set<Watcher>>();

  const check = async (tenantIds: readonly TenantId[]): Promise<void> => {
    if (tenantIds.length === 0) return;
    try {
      const rows = await database.withControl(
        (tx) =>
          tx.query<{ id: TenantId; token_epoch: number; state: string }>(
            "select id, token_epoch, state from control.tenant where id = any ($1)",
            [tenantIds],
          ),
        { readOnly: true },
      );
      for (const { id, token_epoch, state } of rows) {
        for (const watcher of watchers.get(id) ?? []) if (watcher.epoch !== token_epoch || state !== "active") watcher.end();
      }
    } catch (error) {
      log("the tokens of open connections could not be checked", { error: String(error) });
    }
  };
  const checkAll = (): void => void check([...watchers.keys()]);
  const stopListening = await database.listen(
    tokenChannel,
    (payload) => {
      if (watchers.has(payload as TenantId)) void check([payload as TenantId]);
    },
    { onReconnect: checkAll },
  );
  const timer = setInterval(checkAll, safetyPollMs);
  timer.unref();

  return {
    watch({ tenantId, tokenEpoch }) {
      const { promise: ended, reject } = Promise.withResolvers<never>();
      ended.catch(() => {}); // the connection may have ended by itself
      const watcher: Watcher = { epoch: tokenEpoch, end: () => reject(new AppError("invalid_api_key")) };
      const present = watchers.get(tenantId) ?? new Set();
      watchers.set(tenantId, present.add(watcher));
      void check([tenantId]); // it may have ended since the request was authenticated
      return {
        ended,
        stop() {
          present.delete(watcher);
          if (present.size === 0 && watchers.get(tenantId) === present) watchers.delete(tenantId);
        },
      };
    },
    async close() {
      clearInterval(timer);
      await stopListening();
    },
  };
}
