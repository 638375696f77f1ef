import type { CallDeps } from "./model-call.ts";
import { createModelCall } from "./model-call.ts";
import { type ServiceCallDeps, createServiceCall } from "./service-call.ts";
import { createToolRun, type ToolRunDeps } from "./tool-run.ts";
import { createTurnEnd, type TurnEndDeps } from "./turn-end.ts";

export type TurnActivityDeps = CallDeps & ServiceCallDeps & ToolRunDeps & TurnEndDeps;

/** The effects of a turn, under the names that its workflow calls them by. */
export const createTurnActivities = (deps: TurnActivityDeps) => ({
  ...createModelCall(deps),
  ...createServiceCall(deps),
  ...createToolRun(deps),
  ...createTurnEnd(deps),
});

export type TurnActivities = ReturnType<typeof createTurnActivities>;
