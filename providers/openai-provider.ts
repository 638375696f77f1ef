import OpenAI, { APIConnectionError, APIError } from "openai";
import { type CallTimeouts, defaultTimeouts } from "./call-deadline.ts";
import { type LimitsOf, mostBelievableTokens } from "./model-limits.ts";
import { ModelCallError, type ModelProvider } from "./model-provider.ts";
import { createOpenAiServices } from "./openai-services.ts";
import { createOpenAiAnswer } from "./openai-answer.ts";
import { type OpenAiKind, toOpenAiRequest } from "./openai-request.ts";
import { createResponsesAnswer } from "./responses-answer.ts";
import { toResponsesRequest } from "./responses-request.ts";
import { parseApiKey, parseBaseUrl } from "./provider-endpoint.ts";
import { statusFailure, transportFailure } from "./sdk-failure.ts";
import { runStreamedCall } from "./streamed-call.ts";
import { estimateTokens, type TokenCounter } from "./token-estimate.ts";

export type OpenAiApi = "chat" | "responses";

export type OpenAiProviderOptions = {
  readonly name: string;
  readonly kind: OpenAiKind;
  /** Which of OpenAI's two APIs is spoken; Chat Completions by default. */
  readonly api?: OpenAiApi | undefined;
  /** Up to and with the version, `https://api.openai.com/v1` by default; needed for a compatible server. */
  readonly baseUrl?: string | undefined;
  /** Needed for OpenAI; without one a compatible server gets no Authorization header. */
  readonly apiKey?: string | undefined;
  readonly limitsOf?: LimitsOf | undefined;
  readonly timeouts?: Partial<CallTimeouts> | undefined;
  /** Counts tokens where the provider does not. */
  readonly countTokens?: TokenCounter | undefined;
  readonly now?: (() => number) | undefined;
};

/** Longer than any call: the time limits are ours. */
const noSdkTimeoutMs = 86_400_000;

/**
 * OpenAI's Chat Completions or Responses through the official client, always streamed, without the client's own retries.
 * @throws {AppError} `invalid_configuration` for a missing or malformed key or address
 */
export function createOpenAiProvider({
  name,
  kind,
  api = "chat",
  baseUrl,
  apiKey,
  limitsOf = () => undefined,
  timeouts = {},
  countTokens = estimateTokens,
  now = Date.now,
}: OpenAiProviderOptions): ModelProvider {
  const key = parseApiKey(name, apiKey, { needed: kind === "openai" });
  const client = new OpenAI({
    baseURL: parseBaseUrl(name, baseUrl, kind === "openai" ? "https://api.openai.com/v1" : undefined),
    apiKey: key ?? "none",
    // Given as null, or the client would take them from our environment.
    adminAPIKey: null,
    organization: null,
    project: null,
    webhookSecret: null,
    ...(key === undefined ? { defaultHeaders: { Authorization: null } } : {}),
    maxRetries: 0,
    timeout: noSdkTimeoutMs,
    logLevel: "off",
    fetchOptions: { redirect: "manual" }, // a redirect would carry the conversation elsewhere
  });
  const secrets = key === undefined ? [] : [key];
  const callTimeouts = { ...defaultTimeouts, ...timeouts };

  return {
    name,
    services: createOpenAiServices({
      client,
      timeouts: callTimeouts,
      limitsOf,
      countTokens,
      failureOf: (error) => failureOf(error, secrets, now()),
    }),
    call: (request, signal) =>
      runStreamedCall({
        signal,
        timeouts: callTimeouts,
        send: async (deadline) => {
          const options = { signal: deadline, headers: { "Idempotency-Key": request.callId } };
          return api === "responses"
            ? await client.responses.create(toResponsesRequest(name, request), options).asResponse()
            : await client.chat.completions.create(toOpenAiRequest(name, kind, request), options).asResponse();
        },
        readerFor: (headers) =>
          (api === "responses" ? createResponsesAnswer : createOpenAiAnswer)({
            request,
            mostTokens: mostBelievableTokens(limitsOf(request.model)),
            countTokens,
            secrets,
            requestId: headers.get("x-request-id") || undefined,
          }),
        failureOf: (error) => failureOf(error, secrets, now()),
      }),
  };
}

function failureOf(error: unknown, secrets: readonly string[], nowMs: number): ModelCallError {
  if (error instanceof APIConnectionError) return transportFailure(error.cause);
  if (error instanceof APIError && typeof error.status === "number") {
    return statusFailure({ status: error.status, headers: error.headers, body: error.error, message: error.message }, secrets, nowMs);
  }
  throw error; // a fault of ours
}
