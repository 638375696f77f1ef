import type OpenAI from "openai";
import { fromFloats, packVectors } from "../domain/vectors.ts";
import type { CountedUsage, UsageDoubt } from "../domain/usage.ts";
import { type CallTimeouts, startDeadline } from "./call-deadline.ts";
import { type JsonObject, asArray, asObject, asText, parseJson } from "./json-value.ts";
import { type LimitsOf, mostBelievableTokens } from "./model-limits.ts";
import { ModelCallError } from "./model-provider.ts";
import { type ModelServices, type ServiceCall, inputOnly } from "./model-services.ts";
import { providerFailure, stoppedFailure } from "./provider-failure.ts";
import { estimateServiceTokens } from "./service-estimate.ts";
import { readCount } from "./token-count.ts";
import type { TokenCounter } from "./token-estimate.ts";

export type OpenAiServicesOptions = {
  readonly client: OpenAI;
  readonly timeouts: CallTimeouts;
  readonly limitsOf: LimitsOf;
  readonly countTokens: TokenCounter;
  /** Turns what the client threw into the port's error. */
  readonly failureOf: (error: unknown) => ModelCallError;
};

/** 2,048 vectors of 3,072 dimensions are 34 MiB of base64. */
const largestAnswerBytes = 64 * 1024 * 1024;

/** OpenAI's embeddings, transcriptions and moderations: one answer each, read whole. */
export function createOpenAiServices({ client, timeouts, limitsOf, countTokens, failureOf }: OpenAiServicesOptions): ModelServices {
  return {
    async serve(call, signal) {
      const deadline = startDeadline(signal, timeouts);
      try {
        const response = await deadline.within("headersMs", async () => await send(client, call, deadline.signal));
        const body = await readWhole(response, async (wait) => await deadline.within("idleMs", wait));
        const usage = usageOf({ call, body, most: mostBelievableTokens(limitsOf(call.model)), countTokens });
        const providerRequestId = asText(body["id"]) ?? (response.headers.get("x-request-id") || undefined);
        const answer = readAnswer(call, body);
        if (typeof answer !== "string") return { answer, usage, providerRequestId };
        // What its provider counted is paid for, though nobody can read it.
        const { kind, message, cause } = garbage(answer);
        throw new ModelCallError(kind, message, { cause, providerRequestId, ...(usage.estimated ? {} : { usage }) });
      } catch (error) {
        const stoppedBy = deadline.stoppedBy();
        if (stoppedBy !== undefined) throw stoppedFailure(stoppedBy);
        throw error instanceof ModelCallError ? error : failureOf(error);
      } finally {
        deadline.end();
      }
    },
  };
}

async function send(client: OpenAI, call: ServiceCall, signal: AbortSignal): Promise<Response> {
  const options = { signal, headers: { "Idempotency-Key": call.callId } };
  switch (call.service) {
    case "embedding": {
      const { model, input, dimensions, user } = call;
      // Asked for as base64, as the official clients do: a third of the bytes of decimals, and no digit is lost.
      const body = { model, input, encoding_format: "base64", dimensions, user };
      return await client.post("/embeddings", { ...options, body }).asResponse();
    }
    case "moderation":
      return await client.post("/moderations", { ...options, body: { model: call.model, input: call.input } }).asResponse();
    case "transcription": {
      // Always a format that carries the provider's count; what the caller asked for is made of it.
      const { model, audio, filename, language, prompt, temperature, verbose, granularities } = call;
      return await client.audio.transcriptions
        .create(
          {
            model,
            file: new File([audio], filename, { type: audio.type }),
            response_format: verbose ? "verbose_json" : "json",
            ...(language === undefined ? {} : { language }),
            ...(prompt === undefined ? {} : { prompt }),
            ...(temperature === undefined ? {} : { temperature }),
            ...(granularities.length === 0 ? {} : { timestamp_granularities: [...granularities] }),
          },
          options,
        )
        .asResponse();
    }
  }
}

/** @throws {ModelCallError} `garbage` for what is no JSON object or has no end */
async function readWhole(response: Response, within: <T>(wait: () => Promise<T>) => Promise<T>): Promise<JsonObject> {
  const reader = response.body?.getReader();
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for (;;) {
    const next = await within(async () => await reader?.read()).catch((): never => {
      throw providerFailure({ kind: "unreachable", text: "The connection broke in the middle of the answer." }, []);
    });
    if (next?.value === undefined) break;
    pieces.push(next.value);
    sizeBytes += next.value.byteLength;
    if (sizeBytes <= largestAnswerBytes) continue;
    void reader?.cancel().catch(() => undefined);
    throw garbage("The answer is larger than 64 MiB.");
  }
  const body = parseJson(Buffer.concat(pieces).toString());
  if (typeof body !== "object" || body === null || Array.isArray(body)) throw garbage("The answer is not a JSON object.");
  return asObject(body);
}

const garbage = (text: string): ModelCallError => providerFailure({ kind: "garbage", text }, []);

/** The answer as it is kept, or what is wrong with it. */
function readAnswer(call: ServiceCall, body: JsonObject): Uint8Array | string {
  switch (call.service) {
    case "embedding":
      return readVectors(body, call.input.length);
    case "moderation":
      return asArray(body["results"]).length === 0 ? "The answer holds no results." : Buffer.from(JSON.stringify(body));
    case "transcription":
      return typeof body["text"] === "string" ? Buffer.from(JSON.stringify(body)) : "The answer holds no text.";
  }
}

/** A vector for each input, in the inputs' order; as base64 or, from servers that know no other form, as numbers. */
function readVectors(body: JsonObject, count: number): Uint8Array | string {
  const vectors: (Uint8Array | undefined)[] = Array.from({ length: count });
  for (const [place, raw] of asArray(body["data"]).entries()) {
    const { index = place, embedding } = asObject(raw);
    if (typeof index === "number" && index in vectors) vectors[index] = readVector(embedding);
  }
  try {
    return packVectors(vectors.map((vector) => vector ?? new Uint8Array()));
  } catch (error) {
    if (error instanceof RangeError) return error.message;
    throw error;
  }
}

function readVector(embedding: unknown): Uint8Array | undefined {
  if (typeof embedding === "string") return Buffer.from(embedding, "base64");
  if (!Array.isArray(embedding) || !embedding.every((float): float is number => typeof float === "number")) return undefined;
  return fromFloats(embedding);
}

type Counted = { readonly call: ServiceCall; readonly body: JsonObject; readonly most: number; readonly countTokens: TokenCounter };

function usageOf({ call, body, most, countTokens }: Counted): CountedUsage {
  const estimate = (doubt?: UsageDoubt): CountedUsage => ({
    ...inputOnly(estimateServiceTokens(countTokens, call)),
    estimated: true,
    ...(doubt === undefined ? {} : { doubt }),
  });
  switch (call.service) {
    case "embedding": {
      const usage = asObject(body["usage"]);
      const counted = readCount(usage["prompt_tokens"] ?? usage["total_tokens"], most);
      return counted === null ? estimate("missing") : Number.isNaN(counted) ? estimate("unbelievable") : inputOnly(counted);
    }
    case "moderation":
      // No provider counts moderations, so there is nothing to doubt: the count is ours and says so.
      return estimate();
    case "transcription": {
      const usage = transcriptionUsage(body, most);
      if (typeof usage !== "string") return usage;
      return { ...estimate(usage), outputTokens: countTokens(call.model, asText(body["text"]) ?? "") };
    }
  }
}

/**
 * What a transcription counts. Models that bill by tokens tell their tokens; models that bill by time tell seconds, and each second
 * that began is one input token, so their input rate is the price of a million seconds (docs/api-services.md).
 */
function transcriptionUsage(body: JsonObject, most: number): CountedUsage | UsageDoubt {
  const usage = asObject(body["usage"]);
  if (usage["type"] === "tokens" || usage["input_tokens"] !== undefined) {
    const [input, output] = [readCount(usage["input_tokens"], most), readCount(usage["output_tokens"], most)];
    if (input === null || output === null) return "missing";
    return Number.isNaN(input + output) ? "unbelievable" : { ...inputOnly(input), outputTokens: output };
  }
  const seconds = usage["seconds"] ?? body["duration"];
  if (seconds === undefined || seconds === null) return "missing";
  const whole = readCount(Math.ceil(Number(seconds)), most);
  return whole === null || Number.isNaN(whole) ? "unbelievable" : inputOnly(whole);
}
