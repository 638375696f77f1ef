import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { OperationClient } from "../temporal/operation-client.ts";

export type OperationDeps = { readonly operations: Pick<OperationClient, "read"> };

const operationParams = z.object({ workflowId: z.string() });

/** How far long work has come. */
export const createOperationRoutes =
  ({ operations }: OperationDeps): FastifyPluginAsync =>
  async (app) => {
    app.get(
      "/v1/operations/:workflowId",
      { config: { access: "admin:read", describes: { summary: "How far an operation has come" } } },
      async (request) => {
        const { workflowId } = operationParams.parse(request.params);
        const operation = await operations.read(workflowId);
        if (operation === undefined) throw new AppError("not_found", { client: { message: "There is no such operation." } });
        const { kind, tenantId, state, startedAtMs, finishedAtMs, progress } = operation;
        return {
          workflow_id: workflowId,
          kind,
          tenant: tenantId ?? null,
          state,
          started_at: new Date(startedAtMs).toISOString(),
          finished_at: finishedAtMs === undefined ? null : new Date(finishedAtMs).toISOString(),
          progress: progress ?? null,
        };
      },
    );
  };
