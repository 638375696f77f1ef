import Anthropic, { APIConnectionError, APIError } from "@anthropic-ai/sdk";
import { createAnthropicAnswer } from "./anthropic-answer.ts";
import { apiVersionFor, toAnthropicRequest } from "./anthropic-request.ts";
import { type CallTimeouts, defaultTimeouts } from "./call-deadline.ts";
import { type LimitsOf, mostBelievableTokens } from "./model-limits.ts";
import { ModelCallError, type ModelProvider } from "./model-provider.ts";
import { parseApiKey, parseBaseUrl } from "./provider-endpoint.ts";
import { statusFailure, transportFailure } from "./sdk-failure.ts";
import { runStreamedCall } from "./streamed-call.ts";
import { estimateTokens, type TokenCounter } from "./token-estimate.ts";

export type AnthropicProviderOptions = {
  readonly name: string;
  /** `https://api.anthropic.com` by default; a `/v1` at its end is dropped, the client adds its own. */
  readonly baseUrl?: string | undefined;
  readonly apiKey: string | undefined;
  /** Needed for calls without `maxTokens`: the API wants a maximum, and gets the model's. */
  readonly limitsOf?: LimitsOf | undefined;
  readonly timeouts?: Partial<CallTimeouts> | undefined;
  /** Counts tokens where the provider does not. */
  readonly countTokens?: TokenCounter | undefined;
  readonly now?: (() => number) | undefined;
};

/** Longer than any call: the time limits are ours. */
const noSdkTimeoutMs = 86_400_000;

/**
 * Anthropic's Messages API through the official client, always streamed, without the client's own retries.
 * @throws {AppError} `invalid_configuration` for a missing or malformed key or address
 */
export function createAnthropicProvider({
  name,
  baseUrl,
  apiKey,
  limitsOf = () => undefined,
  timeouts = {},
  countTokens = estimateTokens,
  now = Date.now,
}: AnthropicProviderOptions): ModelProvider {
  const key = parseApiKey(name, apiKey, { needed: true });
  const client = new Anthropic({
    baseURL: parseBaseUrl(name, baseUrl, "https://api.anthropic.com").replace(/\/v1$/, ""),
    apiKey: key ?? null,
    // The client sends a bearer token; servers that speak Anthropic's protocol may know its older header only.
    ...(baseUrl === undefined || key === undefined ? {} : { defaultHeaders: { "x-api-key": key } }),
    webhookKey: null, // given, or the client would take it from our environment
    maxRetries: 0,
    timeout: noSdkTimeoutMs,
    logLevel: "off",
    openTelemetry: false,
    fetchOptions: { redirect: "manual" }, // a redirect would carry the key elsewhere
  });
  const secrets = key === undefined ? [] : [key];
  const callTimeouts = { ...defaultTimeouts, ...timeouts };

  return {
    name,
    call: (request, signal) =>
      runStreamedCall({
        signal,
        timeouts: callTimeouts,
        send: async (deadline) =>
          client.messages
            .create(toAnthropicRequest(name, request, limitsOf(request.model)), {
              signal: deadline,
              headers: { "Idempotency-Key": request.callId, "anthropic-version": apiVersionFor(request.settings) },
            })
            .asResponse(),
        readerFor: (headers) =>
          createAnthropicAnswer({
            request,
            mostTokens: mostBelievableTokens(limitsOf(request.model)),
            countTokens,
            secrets,
            requestId: headers.get("request-id") || undefined,
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
