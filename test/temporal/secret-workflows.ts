import {
  ApplicationFailure,
  condition,
  continueAsNew,
  defineQuery,
  defineSignal,
  defineUpdate,
  executeChild,
  proxyActivities,
  proxyLocalActivities,
  setCurrentDetails,
  setHandler,
  sleep,
  upsertMemo,
  workflowInfo,
} from "@temporalio/workflow";

/** A workflow that only a test has: it carries its secrets through every place where Temporal keeps a payload or a text. */
export type Secrets = Readonly<Record<SecretPlace, string>>;
export const secretPlaces = [
  "input",
  "static summary",
  "static details",
  "memo",
  "upserted memo",
  "current details",
  "local activity input",
  "local activity result",
  "local activity failure",
  "activity input",
  "activity summary",
  "activity heartbeat",
  "activity failure",
  "activity result",
  "timer summary",
  "signal",
  "update",
  "update result",
  "query",
  "query result",
  "child input",
  "child failure",
  "carried input",
  "failure",
  "failure details",
  "result",
] as const;
type SecretPlace = (typeof secretPlaces)[number];

export type SecretActivities = {
  remember(input: string): Promise<string>;
  beat(input: string): Promise<string>;
};

export const told = defineSignal<[string]>("told");
export const asked = defineUpdate<string, [string]>("asked");
export const shown = defineQuery<string, [string]>("shown");

export async function keepSecrets(secrets: Secrets, ending: "fail" | "return" | "carried"): Promise<string> {
  if (ending === "carried") return secrets["result"];
  const local = proxyLocalActivities<SecretActivities>({ startToCloseTimeout: "5s", retry: { initialInterval: "10ms" } });
  const signals: string[] = [];
  let updates = 0;
  setHandler(told, (text) => void signals.push(text));
  setHandler(asked, async (text) => {
    updates++;
    await condition(() => text !== "");
    return secrets["update result"];
  });
  setHandler(shown, () => secrets["query result"]);
  setCurrentDetails(secrets["current details"]);
  upsertMemo({ more: secrets["upserted memo"] });
  await local.remember(secrets["local activity input"]);
  const remote = proxyActivities<SecretActivities>({
    startToCloseTimeout: "10s",
    heartbeatTimeout: "5s",
    retry: { initialInterval: "500ms" },
    summary: secrets["activity summary"],
  });
  await remote.beat(secrets["activity input"]);
  await sleep(1, { summary: secrets["timer summary"] });
  await executeChild(failingChild, {
    workflowId: `${workflowInfo().workflowId}.child`,
    args: [secrets["child input"], secrets["child failure"]],
  }).catch(() => {});
  await condition(() => signals.length > 0 && updates > 0);
  if (ending === "return") await continueAsNew<typeof keepSecrets>(secrets, "carried");
  throw ApplicationFailure.nonRetryable(secrets["failure"], "kept", secrets["failure details"]);
}

export async function failingChild(_input: string, message: string): Promise<string> {
  throw ApplicationFailure.nonRetryable(message);
}
