import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { TranscriptionRequest } from "../domain/service-request.ts";
import type { Database } from "../storage/database.ts";
import { tenantOf } from "./access.ts";
import { type Upload, largestUploadBytes, oneOf, receiveUpload, takeForms } from "./file-upload.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { type ServiceDeps, answerOfService, invalid, jsonOf, modelNameOf, refuseUnknown } from "./service-turns.ts";
import { type TranscriptionFormat, renderTranscription, transcriptionFormats } from "./transcription-answer.ts";

export type TranscriptionDeps = ServiceDeps & { readonly database: Pick<Database, "withTenant"> };

const describes = {
  summary: "Transcription of audio",
  bodyType: "multipart/form-data",
  body: z.object({
    file: z.string().meta({ format: "binary", maxLength: largestUploadBytes }),
    model: z.string(),
    language: z.string().optional(),
    prompt: z.string().optional(),
    response_format: z.enum(["json", "text", "srt", "verbose_json", "vtt"]).optional(),
    temperature: z.number().min(0).max(1).optional(),
    "timestamp_granularities[]": z.array(z.enum(["word", "segment"])).optional(),
  }),
};
const fields: ReadonlySet<string> = new Set([...Object.keys(describes.body.shape), "timestamp_granularities", "stream"]);

/** Fields of OpenAI's that are refused by name rather than ignored. */
const unsupported = [
  "chunking_strategy",
  "include",
  "include[]",
  "known_speaker_names",
  "known_speaker_names[]",
  "known_speaker_references",
  "known_speaker_references[]",
] as const;

/** The audio of a call that is never finished goes after a day; a call that ends takes it along. */
const audioLifetimeMs = 25 * 60 * 60 * 1_000;

type Asked = Pick<TranscriptionRequest, "model" | "language" | "prompt" | "temperature" | "granularities"> & {
  readonly format: TranscriptionFormat;
};

export const createTranscriptionRoutes =
  (deps: TranscriptionDeps): FastifyPluginAsync =>
  async (app) => {
    const { database, files, overlays, resolveModel } = deps;
    await takeForms(app);

    app.post("/v1/audio/transcriptions", { config: { access: "tenant", describes } }, async (request, reply) => {
      const context = tenantOf(request);
      const key = idempotencyKeyOf(request);
      const upload = await receiveUpload(request, { context, files, role: "input" });
      const { stored, filename, mime } = upload;
      let isTaken = false;
      try {
        const { format, ...asked } = parseTranscription(upload.fields);
        const { overlay } = await overlays.of(context.tenantId);
        const model = resolveModel("transcription", overlay, asked.model);
        await database.withTenant(context, async (tx) => await files.finish(tx, { ...stored, lifetimeMs: audioLifetimeMs }));
        const sha256 = Buffer.from(stored.sha256).toString("hex");
        const answer = await answerOfService(deps, {
          context,
          reply,
          request: {
            service: "transcription",
            ...asked,
            model,
            file: stored.id,
            filename,
            sizeBytes: stored.sizeBytes,
            verbose: format === "verbose_json" || format === "srt" || format === "vtt",
          },
          idempotency: key === undefined ? undefined : { key, body: { route: "transcriptions", ...asked, format, filename, mime, sha256 } },
        });
        isTaken = !answer.isRepeat;
        const rendered = renderTranscription(await jsonOf(answer), format);
        if (typeof rendered !== "string") return rendered;
        return await reply.type(`${format === "vtt" ? "text/vtt" : "text/plain"}; charset=utf-8`).send(rendered);
      } finally {
        // A turn of its own has taken it along; a refused call, and a repeat, never needed it.
        if (!isTaken) await files.remove(context, stored.id).catch(() => {}); // it expires
      }
    });
  };

/** @throws {AppError} `invalid_request`, `unsupported_parameter`, naming the field */
function parseTranscription(form: Upload["fields"]): Asked {
  for (const name of unsupported)
    if (form.has(name))
      throw new AppError("unsupported_parameter", { client: { message: `The parameter '${name}' is not supported here.`, param: name } });
  refuseUnknown(form.keys(), fields);
  const stream = oneOf(form, "stream");
  if (stream !== undefined && stream !== "false")
    throw new AppError("unsupported_parameter", { client: { message: "Transcriptions are not streamed here.", param: "stream" } });
  const rawFormat = oneOf(form, "response_format") ?? "json";
  const format = transcriptionFormats.find((known) => known === rawFormat);
  if (format === undefined) throw invalid("response_format", `The response_format must be one of ${transcriptionFormats.join(", ")}.`);
  const rawTemperature = oneOf(form, "temperature");
  const temperature = rawTemperature === undefined ? undefined : Number(rawTemperature);
  if (temperature !== undefined && (rawTemperature?.trim() === "" || !(temperature >= 0 && temperature <= 1)))
    throw invalid("temperature", "The temperature must be a number from 0 to 1.");
  const granularities = [...(form.get("timestamp_granularities[]") ?? []), ...(form.get("timestamp_granularities") ?? [])].map((name) => {
    if (name !== "word" && name !== "segment") throw invalid("timestamp_granularities", "The granularities are 'word' and 'segment'.");
    return name;
  });
  if (granularities.length > 0 && format !== "verbose_json")
    throw invalid("timestamp_granularities", "Granularities are only allowed with the response_format verbose_json.");
  const language = oneOf(form, "language");
  if (language !== undefined && !/^[A-Za-z-]{2,32}$/.test(language)) throw invalid("language", "The language must be a code such as 'en'.");
  return { model: modelNameOf(oneOf(form, "model")), language, prompt: oneOf(form, "prompt"), temperature, granularities, format };
}
