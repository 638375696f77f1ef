import type { FinishReason } from "../domain/conversation.ts";
import type { AnswerItem } from "./answer-parser.ts";
import { asArray, asObject, asText, type JsonObject, parseJson } from "./json-value.ts";
import type { ModelDelta, ModelRequest, ModelResult } from "./model-provider.ts";
import { normaliseOpenAiUsage } from "./openai-usage.ts";
import { errorText, kindOfErrorEvent, providerFailure } from "./provider-failure.ts";
import { createReplyBuilder, type ReplyBuilder } from "./reply-builder.ts";
import { createUsageCounter, type ReportedUsage } from "./reported-usage.ts";
import type { AnswerReader } from "./streamed-call.ts";
import type { TokenCounter } from "./token-estimate.ts";

export type OpenAiAnswerOptions = {
  readonly request: ModelRequest;
  readonly mostTokens: number;
  readonly countTokens: TokenCounter;
  readonly secrets: readonly string[];
  /** The `x-request-id` of the answer, used where the answer has no id. */
  readonly requestId: string | undefined;
};

const finishReasons: Readonly<Record<string, FinishReason>> = {
  length: "length",
  max_tokens: "length",
  model_length: "length",
  content_filter: "content_filter",
  safety: "content_filter",
  tool_calls: "tool_calls",
  function_call: "tool_calls",
};

/** Reads a Chat Completions answer: chunks, or one whole completion of a server that does not stream. */
export function createOpenAiAnswer({ request, mostTokens, countTokens, secrets, requestId }: OpenAiAnswerOptions): AnswerReader {
  const reply = createReplyBuilder(request.callId);
  const counter = createUsageCounter(request, reply, countTokens);
  let id: string | undefined;
  let rawUsage: unknown;
  let usageIsFinal = false; // it came with the finish reason or after it
  let finish: string | undefined;
  let serviceTier: string | undefined;
  let systemFingerprint: string | undefined;
  const annotations: JsonObject[] = [];
  let ended = false;
  let understood = false; // something that belongs to a completion was seen

  function takeCompletion(completion: JsonObject): readonly ModelDelta[] {
    const error = completion["error"];
    if (error !== undefined && error !== null) {
      const { code, type } = asObject(error);
      throw providerFailure({ kind: kindOfErrorEvent(code, type), text: errorText(error) }, secrets);
    }
    id ??= asText(completion["id"]);
    // The last count wins: servers that count as they go send the sum so far with every chunk.
    const usage = completion["usage"] ?? asObject(completion["x_groq"])["usage"];
    rawUsage = usage ?? rawUsage;
    serviceTier = asText(completion["service_tier"]) ?? serviceTier;
    systemFingerprint = asText(completion["system_fingerprint"]) ?? systemFingerprint;
    const choices = asArray(completion["choices"]).map(asObject);
    if (Array.isArray(completion["choices"]) || rawUsage !== undefined) understood = true;
    const choice = choices.find(({ index }) => index === undefined || index === 0);
    finish = asText(choice?.["finish_reason"]) ?? finish;
    if (finish !== undefined && usage !== undefined && usage !== null) usageIsFinal = true;
    if (choice === undefined) return [];
    if (finish === "error") throw providerFailure({ kind: "unreachable", text: "The answer finished with an error." }, secrets);
    const message = asObject(choice["delta"] ?? choice["message"]);
    annotations.push(...asArray(message["annotations"]).map(asObject));
    return takeMessage(reply, message, asObject(choice["logprobs"]));
  }

  const finishReason = (): FinishReason => {
    const reason = finishReasons[finish?.toLowerCase() ?? ""];
    if (reason === "length" || reason === "content_filter") return reason;
    return reply.hasToolCalls() ? "tool_calls" : "stop"; // many servers say "stop" though they called tools
  };

  const isCounted = (): boolean => ended || usageIsFinal;
  const reported = (): ReportedUsage => (rawUsage === undefined ? "missing" : normaliseOpenAiUsage(rawUsage, mostTokens));

  return {
    take(item: AnswerItem) {
      if (item.type === "event" && item.data.trim() === "[DONE]") {
        ended = true;
        return [];
      }
      const completion = parseJson(item.data);
      if (completion === undefined) {
        if (finish !== undefined) return []; // cut in the chunk after the reply
        throw providerFailure({ kind: "garbage", text: "The answer is not JSON." }, secrets);
      }
      if (item.type === "event" && item.event === "error" && asObject(completion)["error"] === undefined) {
        throw providerFailure({ kind: "unreachable", text: errorText(completion) }, secrets);
      }
      const deltas = takeCompletion(asObject(completion));
      if (item.type === "whole") ended = understood;
      return deltas;
    },
    ended: () => ended,
    complete: () => finish !== undefined,
    usageSoFar: () => (isCounted() && rawUsage !== undefined ? counter.ofWhole(reported()) : counter.ofPart(reported(), "cut")),
    providerRequestId: () => id ?? requestId,
    result(): ModelResult {
      // `[DONE]` without a finish reason is whole: some servers never give one. The end of a connection is not.
      if (!understood || (finish === undefined && !ended)) {
        throw providerFailure({ kind: "garbage", text: "The answer ended before it was whole." }, secrets);
      }
      const cutUsage = isCounted() ? undefined : counter.ofPart(reported(), "cut");
      const facts = { serviceTier, systemFingerprint, annotations: annotations.length === 0 ? undefined : annotations };
      return {
        reply: reply.build(finishReason(), facts),
        usage: cutUsage ?? counter.ofWhole(reported()),
        providerRequestId: id ?? requestId,
      };
    },
  };
}

/** A chunk's `delta` or a completion's `message`. */
function takeMessage(reply: ReplyBuilder, message: JsonObject, logprobs: JsonObject): readonly ModelDelta[] {
  const deltas: ModelDelta[] = [];
  reply.reasoning(asText(message["reasoning_content"]) ?? asText(message["reasoning"]) ?? "");
  const content = message["content"];
  const tokens = asArray(logprobs["content"]).map(asObject);
  if (typeof content === "string" || tokens.length > 0) deltas.push(...reply.text(typeof content === "string" ? content : "", tokens));
  for (const part of asArray(content).map(asObject)) {
    if (part["type"] === "text") deltas.push(...reply.text(asText(part["text"]) ?? ""));
    else reply.reasoning(JSON.stringify(part)); // Mistral's thinking parts
  }
  deltas.push(...reply.refusal(asText(message["refusal"]) ?? "", asArray(logprobs["refusal"]).map(asObject)));
  const legacyCall = message["function_call"];
  const calls = legacyCall === undefined || legacyCall === null ? asArray(message["tool_calls"]) : [{ index: 0, function: legacyCall }];
  for (const call of calls.map(asObject)) {
    const custom = call["type"] === "custom" || call["custom"] !== undefined;
    const called = asObject(custom ? call["custom"] : call["function"]);
    const given = custom ? called["input"] : called["arguments"];
    deltas.push(
      ...reply.toolCall({
        index: typeof call["index"] === "number" ? call["index"] : undefined,
        id: asText(call["id"]),
        name: asText(called["name"]),
        arguments: typeof given === "object" && given !== null ? JSON.stringify(given) : asText(given),
        custom,
      }),
    );
  }
  return deltas;
}
