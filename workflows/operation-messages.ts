import { defineQuery } from "@temporalio/workflow";
import type { OperationProgress } from "../domain/operation.ts";

/** Answered by every operation's workflow, also when it has ended. */
export const operationProgress = defineQuery<OperationProgress>("progress");
