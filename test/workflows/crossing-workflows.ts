import {
  condition,
  defineSignal,
  executeChild,
  getExternalWorkflowHandle,
  makeContinueAsNewFunc,
  proxyActivities,
  setHandler,
} from "@temporalio/workflow";

/** Workflows that only a test has: each tries to act where `target` points, which may be another tenant. */
export type Crossing = { readonly workflowId: string; readonly taskQueue: string };

export async function activityOnQueue({ taskQueue }: Crossing): Promise<string> {
  const { touch } = proxyActivities<{ touch(): Promise<string> }>({ startToCloseTimeout: "5s", taskQueue, retry: { maximumAttempts: 1 } });
  return await touch();
}

export async function childOf({ workflowId, taskQueue }: Crossing): Promise<string> {
  return await executeChild(greet, { workflowId, taskQueue });
}

export async function signalTo({ workflowId }: Crossing): Promise<string> {
  await getExternalWorkflowHandle(workflowId).signal("touched");
  return "signalled";
}

export async function moveTo({ workflowId, taskQueue }: Crossing): Promise<string> {
  if (workflowId === "moved") return "moved";
  return await makeContinueAsNewFunc<typeof moveTo>({ taskQueue })({ workflowId: "moved", taskQueue });
}

/** Open until it is signalled. */
export async function waitForTouch(): Promise<string> {
  let isTouched = false;
  setHandler(defineSignal("touched"), () => void (isTouched = true));
  await condition(() => isTouched);
  return "touched";
}

export async function greet(): Promise<string> {
  return "hello";
}
