import type { ChatMessage, SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import type { MarkupPpm } from "../domain/money.ts";
import type { RateCardHash, Rates } from "../domain/rate-card.ts";
import type { CallId } from "../domain/turn-id.ts";
import { ModelCallError, type ModelDelta, type ModelProvider, type ModelResult } from "../providers/model-provider.ts";

/** A configured model with the provider that serves it. */
export type ServedModel = {
  readonly id: string;
  readonly provider: ModelProvider;
  readonly contextWindow: number;
  readonly maxOutputTokens: number;
  /** Models to try when this one is not available, in order. */
  readonly fallbacks: readonly string[];
};

export type CallPrice = { readonly rates: Rates; readonly rateCardHash: RateCardHash; readonly markupPpm: MarkupPpm };

/** What goes to the provider beside the turn's own settings. */
export type CallInput = {
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings & { readonly maxTokens: number };
};

/** One model that a call may be made of, and what it would be sent. */
export type Route = {
  readonly model: ServedModel;
  readonly price: CallPrice;
  readonly input: CallInput;
  readonly promptTokens: number;
};

type FailedAttempt = {
  readonly route: Route;
  readonly error: ModelCallError;
  /** The model said nothing and counted nothing. */
  readonly isFree: boolean;
};
export type Attempt = { readonly route: Route; readonly result: ModelResult } | FailedAttempt;

export type ModelCalls = {
  readonly callId: CallId;
  /** The turn's own model. */
  readonly own: Route;
  /** Those that may answer in its place, in order; looked at only when it does not answer. */
  readonly others: Iterable<Route>;
  readonly publish: (delta: ModelDelta) => void;
  readonly signal: AbortSignal;
  readonly now: () => number;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** At most two retries within ten seconds, before the first token only (contract §3). */
const retriesPerCall = 2;
const retryWindowMs = 10_000;
/** No other model is begun after it: an answer may take ten minutes, and the activity has fifteen. */
const fallbackWindowMs = 240_000;

/** What one reply may ask for: more is no use to a turn, and its history holds an event per call. */
const toolCallsPerReply = 64;
const toolNameCharacters = 64;
const toolArgumentCharacters = 1_000_000;

/**
 * Calls a model until one answers, again where the contract allows it; every delta is published as it comes. A model that said
 * nothing and counted nothing gives way to the next one at once. If none of them answers, the turn's own is tried again, and its
 * error counts.
 */
export async function callModels({ callId, own, others, publish, signal, now, log }: ModelCalls): Promise<Attempt> {
  const beganAtMs = now();
  let ended = await attempt(own, callId, publish, signal);
  if (!mayGiveWay(ended)) return ended;
  for (const route of others) {
    if (signal.aborted || now() - beganAtMs > fallbackWindowMs) break;
    const { kind, status, message } = ended.error;
    log("a model gave way to another", { callId, model: own.model.id, to: route.model.id, kind, status, message });
    // Another key than its own: the same one with another body is a mistake to a provider of both.
    const other = await attempt(route, `${callId}/${route.model.id}`, publish, signal);
    if (!("error" in other) || !other.isFree || other.error.kind === "aborted") return other;
  }
  for (let retry = 0; retry < retriesPerCall && isPassing(ended.error); retry++) {
    const pauseMs = ended.error.retryAfterMs ?? 250 * 2 ** retry;
    if (signal.aborted || now() + pauseMs > beganAtMs + retryWindowMs) break;
    await pause(pauseMs, signal);
    ended = await attempt(own, callId, publish, signal);
    if (!mayGiveWay(ended)) break;
  }
  return ended;
}

/** One try of one model. */
async function attempt(route: Route, key: string, publish: (delta: ModelDelta) => void, signal: AbortSignal): Promise<Attempt> {
  let isSilent = true;
  try {
    const deltas = route.model.provider.call({ model: route.model.id, ...route.input, callId: key }, signal);
    for (;;) {
      const { done, value } = await deltas.next();
      if (done === true) return { route, result: checkedResult(value) };
      isSilent = false;
      publish(value);
    }
  } catch (error) {
    if (!(error instanceof ModelCallError)) throw error;
    return { route, error, isFree: isSilent && error.usage === undefined };
  }
}

const isPassing = ({ kind }: ModelCallError): boolean => kind === "busy" || kind === "unreachable";

/** What another model, or another try, may do better: everything but what the caller asked for. */
const mayGiveWay = (ended: Attempt): ended is FailedAttempt =>
  "error" in ended && ended.isFree && ended.error.kind !== "refused" && ended.error.kind !== "aborted";

/** @throws {ModelCallError} `garbage` with the usage, for a reply that asks for more than a turn can carry */
function checkedResult(result: ModelResult): ModelResult {
  const { toolCalls } = result.reply;
  const isTooMuch =
    toolCalls.length > toolCallsPerReply ||
    toolCalls.some(({ name }) => name.length > toolNameCharacters) ||
    toolCalls.reduce((sum, { arguments: json }) => sum + json.length, 0) > toolArgumentCharacters;
  if (!isTooMuch) return result;
  const { usage, providerRequestId } = result;
  throw new ModelCallError("garbage", "the reply asks for too many, too large or too oddly named tool calls", { usage, providerRequestId });
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
