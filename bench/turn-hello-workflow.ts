import { proxyActivities } from "@temporalio/workflow";

const { greet } = proxyActivities<{ greet(name: string): Promise<string> }>({ startToCloseTimeout: "10s" });

/** Temporal's own first example: one workflow, one ordinary activity. */
export async function hello(name: string): Promise<string> {
  return await greet(name);
}
