import { Readable } from "node:stream";
import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { EmbeddingRequest } from "../domain/service-request.ts";
import { promptTokensOf } from "../domain/usage.ts";
import { toFloats, unpackVectors } from "../domain/vectors.ts";
import { tenantOf } from "./access.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { type ServiceAnswer, type ServiceDeps, answerOfService, bodyObject, invalid, modelNameOf, refuseUnknown } from "./service-turns.ts";

/** OpenAI's own bounds of one request. */
const mostInputs = 2_048;
const mostTokenNumbers = 300_000;
const largestTokenNumber = 2 ** 31 - 1;

const describes = {
  summary: "Embeddings of texts or token arrays",
  body: z.object({
    model: z.string(),
    input: z.union([z.string(), z.array(z.string()), z.array(z.int()), z.array(z.array(z.int()))]),
    dimensions: z.int().min(1).optional(),
    encoding_format: z.enum(["float", "base64"]).optional(),
    user: z.string().optional(),
  }),
};
const fields: ReadonlySet<string> = new Set(Object.keys(describes.body.shape));

type Asked = Omit<EmbeddingRequest, "service"> & { readonly base64: boolean };

export const createEmbeddingRoutes =
  (deps: ServiceDeps): FastifyPluginAsync =>
  async (app) => {
    app.post("/v1/embeddings", { config: { access: "tenant", describes } }, async (request, reply) => {
      const context = tenantOf(request);
      const { base64, ...asked } = parseEmbeddingRequest(request.body);
      const key = idempotencyKeyOf(request);
      const { overlay } = await deps.overlays.of(context.tenantId);
      const answer = await answerOfService(deps, {
        context,
        reply,
        request: { service: "embedding", ...asked, model: deps.resolveModel("embedding", overlay, asked.model) },
        idempotency: key === undefined ? undefined : { key, body: { route: "embeddings", body: request.body } },
      });
      return await reply.type("application/json; charset=utf-8").send(Readable.from(await begun(listOf(answer, base64))));
    });
  };

/** @throws {AppError} `invalid_request` naming the field */
function parseEmbeddingRequest(raw: unknown): Asked {
  const body = bodyObject(raw);
  refuseUnknown(Object.keys(body), fields);
  const { dimensions = null, encoding_format: format = null, user = null } = body;
  if (dimensions !== null && !(Number.isSafeInteger(dimensions) && (dimensions as number) >= 1))
    throw invalid("dimensions", "The dimensions must be a whole number from 1.");
  if (format !== null && format !== "float" && format !== "base64")
    throw invalid("encoding_format", "The encoding_format must be 'float' or 'base64'.");
  if (user !== null && (typeof user !== "string" || user.length > 256))
    throw invalid("user", "The user must be a text of at most 256 characters.");
  return {
    model: modelNameOf(body["model"]),
    input: inputsOf(body["input"]),
    dimensions: (dimensions ?? undefined) as number | undefined,
    user: (user ?? undefined) as string | undefined,
    base64: format === "base64",
  };
}

/** By hand and not by a schema: half a million numbers are checked in milliseconds, and the first fault ends it. */
function inputsOf(raw: unknown): EmbeddingRequest["input"] {
  if (typeof raw === "string") return textsOf([raw]);
  if (!Array.isArray(raw))
    throw invalid("input", "The input must be a text, an array of texts, an array of tokens or an array of token arrays.");
  if (raw.length === 0) throw invalid("input", "The input must not be empty.");
  if (typeof raw[0] === "number") return tokensOf([raw]);
  if (raw.length > mostInputs) throw invalid("input", `There must be at most ${mostInputs} inputs.`);
  return typeof raw[0] === "string" ? textsOf(raw) : tokensOf(raw);
}

function textsOf(raw: readonly unknown[]): readonly string[] {
  return raw.map((text, place) => {
    if (typeof text !== "string" || text === "") throw invalid(`input.${place}`, "Each input must be a text that is not empty.");
    return text;
  });
}

function tokensOf(raw: readonly unknown[]): readonly (readonly number[])[] {
  let count = 0;
  return raw.map((tokens, place) => {
    if (!Array.isArray(tokens) || tokens.length === 0)
      throw invalid(`input.${place}`, "Each input must be an array of tokens that is not empty.");
    count += tokens.length;
    if (count > mostTokenNumbers) throw invalid("input", `The inputs must hold at most ${mostTokenNumbers} tokens.`);
    if (!tokens.every((token) => Number.isSafeInteger(token) && token >= 0 && token <= largestTokenNumber))
      throw invalid(`input.${place}`, "A token is a whole number from 0.");
    return tokens as readonly number[];
  });
}

/** The answer's JSON, one vector at a time: two thousand of them are a hundred megabytes of decimals. */
async function* listOf({ reply: { model, usage }, pieces }: ServiceAnswer, base64: boolean): AsyncGenerator<string, void, undefined> {
  let index = 0;
  for await (const vector of unpackVectors(pieces)) {
    const embedding = base64 ? vector.toString("base64") : toFloats(vector);
    yield `${index === 0 ? '{"object":"list","data":[' : ","}${JSON.stringify({ object: "embedding", index, embedding })}`;
    index++;
  }
  if (index === 0) throw new AppError("unavailable", { why: "the answer is not kept any more" });
  const tokens = promptTokensOf(usage);
  yield `],"model":${JSON.stringify(model)},"usage":${JSON.stringify({ prompt_tokens: tokens, total_tokens: tokens })}}`;
}

/** The same, with its first piece made: what fails before it is an error and not a broken answer. */
async function begun(texts: AsyncGenerator<string, void, undefined>): Promise<AsyncIterable<string>> {
  const first = await texts.next();
  return (async function* () {
    try {
      if (first.done !== true) yield first.value;
      yield* texts;
    } finally {
      await texts.return(); // a client that left before the second vector: what is kept for it goes
    }
  })();
}
