import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";

export type ListedModel = { readonly id: string; readonly provider: string };
export type ModelDeps = { readonly models: () => readonly ListedModel[]; readonly startedAtMs: number };

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

    app.get("/v1/models", { config: { access: "tenant" } }, async () => ({ object: "list", data: models().map(toModel) }));

    app.get("/v1/models/:id", { config: { access: "tenant" } }, async (request) => {
      const { id } = params.parse(request.params);
      const model = models().find((listed) => listed.id === id);
      if (model === undefined)
        throw new AppError("model_not_found", { client: { message: `The model '${id.slice(0, 128)}' does not exist.`, param: "model" } });
      return toModel(model);
    });
  };
