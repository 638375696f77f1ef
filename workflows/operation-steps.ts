import { setCurrentDetails, setHandler } from "@temporalio/workflow";
import type { OperationProgress, StepState } from "../domain/operation.ts";
import { operationProgress } from "./operation-messages.ts";

export type OperationSteps<Name extends string> = {
  mark(name: Name, state: StepState): void;
  isDone(name: Name): boolean;
};

/** The steps of an operation, in order, as its query and the Web UI show them. `title` is Markdown, ids only. */
export function trackSteps<Name extends string>(title: string, names: readonly Name[], done: readonly Name[] = []): OperationSteps<Name> {
  const states = new Map<Name, StepState>(names.map((name) => [name, done.includes(name) ? "done" : "waiting"]));
  const progress = (): OperationProgress => ({
    steps: [...states].map(([name, state]) => ({ name, state })),
    done: [...states.values()].filter((state) => state === "done").length,
    total: states.size,
  });
  const describe = (): void =>
    setCurrentDetails(
      `${title}\n\n${progress()
        .steps.map(({ name, state }) => `- ${state === "done" ? "[x]" : "[ ]"} ${name}: ${state}`)
        .join("\n")}`,
    );
  setHandler(operationProgress, progress);
  describe();
  return {
    mark(name, state) {
      states.set(name, state);
      describe();
    },
    isDone: (name) => states.get(name) === "done",
  };
}
