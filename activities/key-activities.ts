import { Context } from "@temporalio/activity";
import { AppError } from "../domain/app-error.ts";
import type { KeyRotationReport, ResealCursor } from "../domain/key-rotation.ts";
import {
  type KeyRotationDeps,
  endRotation,
  finishRotation,
  prepareRotation,
  processesWithout,
  renewDataKeys,
  resealValues,
  rewrapDataKeys,
  switchKeyEncryption,
} from "../storage/key-rotation.ts";
import { asSystemActivity } from "./activity-context.ts";

const batchSize = 500;
const lookAgainMs = 200;

export type KeyActivityDeps = KeyRotationDeps & {
  /** A live process that does not hold the new key after so long has another ring; default 30 s. */
  readonly spreadMs?: number;
};

/** The steps of a key rotation; each can be repeated from its start. */
export const createKeyActivities = ({ spreadMs = 30_000, ...deps }: KeyActivityDeps) => ({
  async prepareRotation({ rotationId }: { readonly rotationId: string }): Promise<string> {
    return await asSystemActivity(async () => await prepareRotation(deps, rotationId));
  },
  /** Waits until every live process holds the key, then makes it the one that wraps. */
  async spreadKey({ kekId }: { readonly kekId: string }): Promise<void> {
    await asSystemActivity(async (signal) => {
      for (const endMs = performance.now() + spreadMs; ;) {
        const without = await processesWithout(deps, kekId);
        if (without.length === 0) return await switchKeyEncryption(deps, kekId);
        signal.throwIfAborted();
        if (performance.now() > endMs) {
          throw new AppError("conflict", {
            client: {
              message: `nothing was rotated: the key ${kekId} is not held by ${without.join(", ")}; give all processes one home or the same OPENCLAW_KEK`,
            },
          });
        }
        await Context.current().sleep(lookAgainMs);
      }
    });
  },
  async renewDataKeys(batch: { readonly rotationId: string; readonly after: string }) {
    return await asSystemActivity(async () => await renewDataKeys(deps, { ...batch, limit: batchSize }));
  },
  async rewrapDataKeys({ kekId }: { readonly kekId: string }): Promise<number> {
    return await asSystemActivity(async () => await rewrapDataKeys(deps, kekId, batchSize));
  },
  async resealValues({ from }: { readonly from: ResealCursor }) {
    return await asSystemActivity(async () => await resealValues(deps, from, batchSize));
  },
  async finishRotation(end: Parameters<typeof finishRotation>[1]): Promise<KeyRotationReport> {
    return await asSystemActivity(async () => await finishRotation(deps, end));
  },
  async failRotation({ rotationId, reason }: { readonly rotationId: string; readonly reason: string }): Promise<void> {
    await asSystemActivity(async () => await endRotation(deps.database, rotationId, "failed", { reason }));
  },
});

export type KeyActivities = ReturnType<typeof createKeyActivities>;
