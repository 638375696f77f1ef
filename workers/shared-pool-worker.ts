import { Worker as Thread } from "node:worker_threads";
import { Worker } from "@temporalio/worker";
import type { WorkflowCreator } from "@temporalio/worker/lib/workflow/interface.js";
import { ThreadedVMWorkflowCreator, WorkerThreadClient } from "@temporalio/worker/lib/workflow/threaded-vm.js";

/**
 * A Worker that shares one workflow thread pool and one parsed bundle with all others of its kind in the process: 0.95 MB and 2 ms
 * per task queue instead of 32-57 MB and a second (docs/adr/005). It overrides two protected hooks of SDK 1.24, so the SDK is
 * pinned exactly and `assertSharedPoolHooks` runs at start. All such Workers must use the same bundle and activity names.
 */
export class SharedPoolWorker extends Worker {
  /** Whether Temporal's Web UI and CLI may ask a workflow for its call stack: `temporal.call_stacks`. To be set before the first Worker. */
  static callStacks = false;
  private static pool: Promise<WorkflowCreator> | undefined;
  private static bundle: ReturnType<typeof Worker.getOrCreateBundle> | undefined;

  protected static override async getOrCreateBundle(
    ...options: Parameters<typeof Worker.getOrCreateBundle>
  ): ReturnType<typeof Worker.getOrCreateBundle> {
    SharedPoolWorker.bundle ??= super.getOrCreateBundle(...options);
    SharedPoolWorker.bundle.catch(() => (SharedPoolWorker.bundle = undefined)); // the next Worker tries again
    return await SharedPoolWorker.bundle;
  }

  protected static override async createWorkflowCreator(
    ...options: Parameters<typeof Worker.createWorkflowCreator>
  ): Promise<WorkflowCreator> {
    SharedPoolWorker.pool ??= SharedPoolWorker.callStacks
      ? super.createWorkflowCreator(...options)
      : SharedPoolWorker.threadWithoutCallStacks(...options);
    SharedPoolWorker.pool.catch(() => (SharedPoolWorker.pool = undefined));
    const pool = await SharedPoolWorker.pool;
    // The pool outlives each Worker: the process's end takes it down.
    return { createWorkflow: async (workflow) => await pool.createWorkflow(workflow), destroy: async () => {} };
  }

  /** As the SDK makes its thread, from a script of ours that leaves the promise hooks out. */
  private static async threadWithoutCallStacks(
    ...[workflowBundle, { isolateExecutionTimeoutMs, reuseV8Context = true, activities }, logger]: Parameters<
      typeof Worker.createWorkflowCreator
    >
  ): Promise<WorkflowCreator> {
    const thread = new Thread(new URL("./workflow-thread.ts", import.meta.url));
    const client = new WorkerThreadClient(thread, logger);
    const registeredActivityNames = new Set(activities.keys());
    const init = { workflowBundle, isolateExecutionTimeoutMs, reuseV8Context, registeredActivityNames, hasPatchActivationCallback: false };
    await client.send({ type: "init", ...init }).catch(async (error: unknown) => {
      await thread.terminate(); // the next Worker makes another one
      throw error;
    });
    return new ThreadedVMWorkflowCreator([client]);
  }

  /** @returns what is missing in this SDK, or undefined when the hooks are there */
  static missingHooks(): string | undefined {
    const hooks = ["getOrCreateBundle", "createWorkflowCreator"].filter(
      (name) => typeof (Worker as unknown as Record<string, unknown>)[name] !== "function",
    );
    return hooks.length === 0 ? undefined : `this Temporal SDK has no ${hooks.join(" and ")}`;
  }
}
