import {
  ActivityFailure,
  ApplicationFailure,
  CancellationScope,
  proxyActivities,
  setCurrentDetails,
  setHandler,
} from "@temporalio/workflow";
import type { KeyActivities } from "../activities/key-activities.ts";
import type { KeyRotationProgress, KeyRotationReport, ResealCursor } from "../domain/key-rotation.ts";
import { type RekeyInput, rekeyProgress } from "./rekey-messages.ts";

// Every step can be repeated from its start, so a worker that dies costs one heartbeat.
const keys = proxyActivities<KeyActivities>({
  startToCloseTimeout: "10 minutes",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "200ms", maximumInterval: "10s" },
});

/**
 * Rotates the keys: a new key-encryption key that every live process holds before it wraps anything, new data key versions for
 * what is written from then on, and everything that was wrapped or sealed before brought over. All of it stays readable throughout.
 */
export async function rekey({ rotationId }: RekeyInput): Promise<KeyRotationReport> {
  let progress: KeyRotationProgress = { step: "prepare", dataKeysRenewed: 0, dataKeysRewrapped: 0, valuesResealed: 0 };
  const say = (news: Partial<KeyRotationProgress>): void => {
    progress = { ...progress, ...news };
    const { step, dataKeysRenewed, dataKeysRewrapped, valuesResealed } = progress;
    setCurrentDetails(
      `Key rotation, step **${step}**: ${dataKeysRenewed} data keys renewed, ${dataKeysRewrapped} wrapped again, ${valuesResealed} values sealed again`,
    );
  };
  setHandler(rekeyProgress, () => progress);
  say({});
  try {
    const kekId = await keys.prepareRotation({ rotationId });
    say({ step: "spread" });
    await keys.spreadKey({ kekId });
    say({ step: "renew" });
    for (let after: string | undefined = ""; after !== undefined;) {
      const batch: { readonly last: string | undefined; readonly renewed: number } = await keys.renewDataKeys({ rotationId, after });
      after = batch.last;
      say({ dataKeysRenewed: progress.dataKeysRenewed + batch.renewed });
    }
    say({ step: "rewrap" });
    for (let found = 1; found > 0;) {
      found = await keys.rewrapDataKeys({ kekId });
      say({ dataKeysRewrapped: progress.dataKeysRewrapped + found });
    }
    say({ step: "reseal" });
    for (let from: ResealCursor | undefined = { column: 0, owner: "", row: "" }; from !== undefined;) {
      const batch: { readonly next: ResealCursor | undefined; readonly resealed: number } = await keys.resealValues({ from });
      from = batch.next;
      say({ valuesResealed: progress.valuesResealed + batch.resealed });
    }
    say({ step: "finish" });
    const { dataKeysRenewed: renewed, valuesResealed: resealed } = progress;
    const report = await keys.finishRotation({ rotationId, kekId, renewed, resealed });
    say({ step: "done" });
    return report;
  } catch (error) {
    const reason = reasonOf(error);
    await CancellationScope.nonCancellable(async () => await keys.failRotation({ rotationId, reason }));
    say({ step: "failed", reason });
    throw error;
  }
}

function reasonOf(error: unknown): string {
  const cause = error instanceof ActivityFailure ? error.cause : error;
  return cause instanceof ApplicationFailure ? cause.message : "the rotation was cancelled or failed";
}
