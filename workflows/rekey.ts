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

const stepNames = [
  "new key made",
  "new key held by every process",
  "data keys renewed",
  "data keys wrapped by the new key",
  "values sealed again",
  "earlier key forgotten",
] as const;

/**
 * Rotates the keys: a new key-encryption key that every live process holds before it wraps anything, new data key versions for
 * what is written from then on, and everything that was wrapped or sealed before brought over. All of it stays readable throughout.
 */
export async function rekey({ rotationId }: RekeyInput): Promise<KeyRotationReport> {
  const counts = { renewed: 0, rewrapped: 0, resealed: 0 };
  let done = 0;
  let failure: string | undefined;
  const describe = (): void => {
    const { renewed, rewrapped, resealed } = counts;
    setCurrentDetails(
      `Key rotation, ${done} of ${stepNames.length} steps: ${renewed} data keys renewed, ${rewrapped} wrapped again, ${resealed} values sealed again${
        failure === undefined ? "" : `\n\n**FAILED**: ${failure}`
      }`,
    );
  };
  const endStep = (): void => {
    done++;
    describe();
  };
  const stateOf = (step: number): KeyRotationProgress["steps"][number]["state"] => {
    if (step < done) return "done";
    if (step > done) return "waiting";
    return failure === undefined ? "running" : "failing";
  };
  setHandler(rekeyProgress, () => ({
    steps: stepNames.map((name, step) => ({ name, state: stateOf(step) })),
    done,
    total: stepNames.length,
    ...(failure === undefined ? {} : { failure }),
  }));
  describe();

  const renewAll = async (): Promise<void> => {
    for (let after: string | undefined = ""; after !== undefined;) {
      const batch: { readonly last: string | undefined; readonly renewed: number } = await keys.renewDataKeys({ rotationId, after });
      after = batch.last;
      counts.renewed += batch.renewed;
      describe();
    }
  };
  const rewrapAll = async (kekId: string): Promise<void> => {
    for (let found = 1; found > 0; describe()) {
      found = await keys.rewrapDataKeys({ kekId });
      counts.rewrapped += found;
    }
  };
  const resealAll = async (): Promise<void> => {
    for (let from: ResealCursor | undefined = { column: 0, owner: "", row: "" }; from !== undefined; describe()) {
      const batch: { readonly next: ResealCursor | undefined; readonly resealed: number } = await keys.resealValues({ from });
      from = batch.next;
      counts.resealed += batch.resealed;
    }
  };

  try {
    const kekId = await keys.prepareRotation({ rotationId });
    endStep();
    await keys.spreadKey({ kekId });
    endStep();
    await renewAll();
    endStep();
    await rewrapAll(kekId);
    endStep();
    await resealAll();
    endStep();
    const report = await keys.finishRotation({ rotationId, kekId, renewed: counts.renewed, resealed: counts.resealed });
    endStep();
    return report;
  } catch (error) {
    const reason = reasonOf(error);
    failure = reason;
    describe();
    await CancellationScope.nonCancellable(async () => await keys.failRotation({ rotationId, reason }));
    throw error;
  }
}

function reasonOf(error: unknown): string {
  const cause = error instanceof ActivityFailure ? error.cause : error;
  return cause instanceof ApplicationFailure ? cause.message : "the rotation was cancelled or failed";
}
