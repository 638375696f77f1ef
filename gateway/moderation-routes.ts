import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { tenantOf } from "./access.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { type ServiceDeps, answerOfService, bodyObject, invalid, jsonOf, modelNameOf, refuseUnknown } from "./service-turns.ts";

/** What OpenAI takes where the caller names none. */
const usualModel = "omni-moderation-latest";
const mostInputs = 2_048;

const part = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text"), text: z.string() }),
  z.strictObject({ type: z.literal("image_url"), image_url: z.strictObject({ url: z.string().min(1).max(12_000_000) }) }),
]);
const inputSchema = z.union([z.string(), z.array(z.string()).min(1).max(mostInputs), z.array(part).min(1).max(mostInputs)]);
const describes = {
  summary: "Moderation of texts and images, by a provider's model",
  body: z.object({ model: z.string().optional(), input: inputSchema }),
};
const fields: ReadonlySet<string> = new Set(Object.keys(describes.body.shape));

export const createModerationRoutes =
  (deps: ServiceDeps): FastifyPluginAsync =>
  async (app) => {
    app.post("/v1/moderations", { config: { access: "tenant", describes } }, async (request, reply) => {
      const context = tenantOf(request);
      const body = bodyObject(request.body);
      refuseUnknown(Object.keys(body), fields);
      const input = inputOf(body["input"]);
      const key = idempotencyKeyOf(request);
      const { overlay } = await deps.overlays.of(context.tenantId);
      const model = deps.resolveModel("moderation", overlay, body["model"] == null ? usualModel : modelNameOf(body["model"]));
      const answer = await answerOfService(deps, {
        context,
        reply,
        request: { service: "moderation", model, input },
        idempotency: key === undefined ? undefined : { key, body: { route: "moderations", body: request.body } },
      });
      return await jsonOf(answer);
    });
  };

function inputOf(raw: unknown): z.infer<typeof inputSchema> {
  if (Array.isArray(raw) && raw.length > mostInputs) throw invalid("input", `There must be at most ${mostInputs} inputs.`);
  const parsed = inputSchema.safeParse(raw);
  if (parsed.success) return parsed.data;
  throw invalid("input", "The input must be a text, an array of texts, or an array of parts of type text or image_url.");
}
