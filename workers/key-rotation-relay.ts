import { type Owner, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { openRotations, rotationChannel } from "../storage/key-rotation.ts";

export type KeyRotationRelayOptions = {
  readonly database: Database;
  readonly start: (rotationId: string) => Promise<void>;
  readonly wake: (owner: Owner) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default 15 s. */
  readonly intervalMs?: number;
};

/** Starts the workflow of every rotation that was asked for and has not ended: at once when told, and again after a crash. */
export async function startKeyRotationRelay({
  database,
  start,
  wake,
  log,
  intervalMs = 15_000,
}: KeyRotationRelayOptions): Promise<{ stop(): Promise<void> }> {
  const startOpen = async (): Promise<void> => {
    try {
      for (const rotationId of await openRotations({ database })) {
        await wake(systemOwner);
        await start(rotationId);
      }
    } catch (error) {
      log("a key rotation was not started", { error: String(error) });
    }
  };
  let starting = Promise.resolve();
  const startInTurn = (): void => {
    starting = starting.then(startOpen);
  };
  const stopListening = await database.listen(rotationChannel, startInTurn, { onReconnect: startInTurn });
  const timer = setInterval(startInTurn, intervalMs);
  startInTurn();
  return {
    async stop() {
      clearInterval(timer);
      await stopListening();
      await starting;
    },
  };
}
