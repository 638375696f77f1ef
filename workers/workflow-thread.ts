// The thread that workflows run in, without the promise hooks that the SDK installs in its own: for the query of a workflow's call
// stack they take a stack trace of every promise that a workflow makes, a tenth of what a whole turn costs (docs/benchmarks.md).
// Without them the SDK refuses that query and everything else is as it was.
import { globalHandlers } from "@temporalio/worker/lib/workflow/vm-shared.js";

Reflect.set(globalHandlers, "setPromiseHook", () => {}); // its own answer to a runtime without such hooks: none, and it says so
await import("@temporalio/worker/lib/workflow/workflow-worker-thread.js");
