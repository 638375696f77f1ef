import type { Finding } from "../control-plane/doctor-finding.ts";
import type { Environment } from "../control-plane/environment.ts";

const answerTimeoutMs = 5_000;

/** Whether the Web UI of `TEMPORAL_UI_URL` is there, below the path that the gateway passes on. */
export async function checkTemporalUi(uiUrl: NonNullable<Environment["temporalUiUrl"]>): Promise<Finding> {
  const check = "temporal ui";
  const { origin } = new URL(uiUrl);
  const failed = (says: string, mend: string): Finding => ({ check, state: "warning", says: `the Web UI at ${origin} ${says}`, mend });
  const answer = await fetch(`${origin}/temporal/`, { redirect: "manual", signal: AbortSignal.timeout(answerTimeoutMs) }).catch(
    () => undefined,
  );
  await answer?.body?.cancel();
  if (answer === undefined) return failed("does not answer", "start it, or correct TEMPORAL_UI_URL");
  if (answer.status >= 400)
    return failed(
      `answers ${answer.status} to /temporal/`,
      "start it with TEMPORAL_UI_PUBLIC_PATH=/temporal (docker-compose.yml shows how)",
    );
  return { check, state: "ok", says: `answers at ${origin}/temporal` };
}
