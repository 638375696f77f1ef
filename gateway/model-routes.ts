import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { tenantOf } from "./access.ts";

export type ListedModel = { readonly id: string; readonly provider: string };
export type ModelDeps = {
  /** What a tenant may call. @throws {AppError} `overlay_refused` */
  readonly models: (tenantId: TenantId) => Promise<readonly ListedModel[]>;
  readonly startedAtMs: number;
};

const params = z.object({ id: z.string() });

export const createModelRoutes =
  ({ models, startedAtMs }: ModelDeps): FastifyPluginAsync =>
  async (app) => {
    const toModel = ({ id, provider }: ListedModel) => ({
      id,
      object: "model",
      created: Math.floor(startedAtMs / 1_000),
      owned_by: provider,
    });

    app.get("/v1/models", { config: { access: "tenant", describes: { summary: "The tenant's models" } } }, async (request) => {
      const listed = await models(tenantOf(request).tenantId);
      return { object: "list", data: listed.map(toModel) };
    });

    app.get("/v1/models/:id", { config: { access: "tenant", describes: { summary: "One model" } } }, async (request) => {
      const { id } = params.parse(request.params);
      const model = (await models(tenantOf(request).tenantId)).find((listed) => listed.id === id);
      if (model === undefined)
        throw new AppError("model_not_found", { client: { message: `The model '${id.slice(0, 128)}' does not exist.`, param: "model" } });
      return toModel(model);
    });
  };
