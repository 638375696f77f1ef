import type { FinishReason } from "../domain/conversation.ts";
import type { CountedUsage } from "../domain/usage.ts";
import type { AnswerItem } from "./answer-parser.ts";
import { mergeAnthropicUsage, normaliseAnthropicUsage } from "./anthropic-usage.ts";
import { jsonAnswerTool } from "./anthropic-request.ts";
import { asArray, asObject, asText, type JsonObject, parseJson } from "./json-value.ts";
import type { ModelDelta, ModelRequest } from "./model-provider.ts";
import { errorText, kindOfErrorEvent, providerFailure } from "./provider-failure.ts";
import { createReplyBuilder } from "./reply-builder.ts";
import { createUsageCounter } from "./reported-usage.ts";
import type { AnswerReader } from "./streamed-call.ts";
import type { TokenCounter } from "./token-estimate.ts";

export type AnthropicAnswerOptions = {
  readonly request: ModelRequest;
  readonly mostTokens: number;
  readonly countTokens: TokenCounter;
  readonly secrets: readonly string[];
  /** The `request-id` of the answer, used where the answer has no id. */
  readonly requestId: string | undefined;
};

const finishReasons: Readonly<Record<string, FinishReason>> = {
  end_turn: "stop",
  stop_sequence: "stop",
  tool_use: "tool_calls",
  max_tokens: "length",
  model_context_window_exceeded: "length",
  pause_turn: "length", // the provider's own tools took too long (we offer none): the answer is unfinished
  refusal: "content_filter",
};

/** Reads a Messages answer: its events, or one whole message of a server that does not stream. */
export function createAnthropicAnswer({ request, mostTokens, countTokens, secrets, requestId }: AnthropicAnswerOptions): AnswerReader {
  const reply = createReplyBuilder(request.callId);
  const counter = createUsageCounter(request, reply, countTokens);
  const blocksWithInput = new Map<unknown, boolean>(); // tool_use blocks by index: did input come in pieces?
  const jsonBlocks = new Set<unknown>(); // those whose input is the answer
  let id: string | undefined;
  let rawUsage: JsonObject = {};
  let outputIsCounted = false; // `message_start` counts the first tokens only
  let stopReason: string | undefined;
  let ended = false;

  function fail(error: unknown): never {
    const { type } = asObject(error);
    throw providerFailure({ kind: kindOfErrorEvent(type), text: errorText(error) }, secrets);
  }

  function startBlock(index: unknown, block: JsonObject): readonly ModelDelta[] {
    switch (block["type"]) {
      case "text":
        return reply.text(asText(block["text"]) ?? "");
      case "thinking":
        reply.reasoning(asText(block["thinking"]) ?? "");
        return [];
      case "tool_use": {
        const input = asObject(block["input"]);
        const whole = Object.keys(input).length > 0;
        blocksWithInput.set(index, whole);
        if (block["name"] === jsonAnswerTool) {
          jsonBlocks.add(index);
          return whole ? reply.text(JSON.stringify(input)) : [];
        }
        return reply.toolCall({
          index: Number(index),
          id: asText(block["id"]),
          name: asText(block["name"]),
          arguments: whole ? JSON.stringify(input) : undefined,
        });
      }
      default:
        return []; // redacted thinking; blocks of tools that only the provider runs
    }
  }

  function takeBlockDelta(index: unknown, delta: JsonObject): readonly ModelDelta[] {
    switch (delta["type"]) {
      case "text_delta":
        return reply.text(asText(delta["text"]) ?? "");
      case "thinking_delta":
        reply.reasoning(asText(delta["thinking"]) ?? "");
        return [];
      case "input_json_delta": {
        const piece = asText(delta["partial_json"]);
        if (piece === undefined) return [];
        blocksWithInput.set(index, true);
        return takeInput(index, piece);
      }
      default:
        return [];
    }
  }

  /** A call without arguments streams no piece of them; its text must still be JSON. */
  function stopBlock(index: unknown): readonly ModelDelta[] {
    if (blocksWithInput.get(index) !== false) return [];
    blocksWithInput.set(index, true);
    return takeInput(index, "{}");
  }

  const takeInput = (index: unknown, piece: string): readonly ModelDelta[] =>
    jsonBlocks.has(index) ? reply.text(piece) : reply.toolCall({ index: Number(index), arguments: piece });

  function takeStop(stop: JsonObject): readonly ModelDelta[] {
    stopReason = asText(stop["stop_reason"]) ?? stopReason;
    return reply.refusal(asText(asObject(stop["stop_details"])["explanation"]) ?? "");
  }

  function takeWhole(message: JsonObject): readonly ModelDelta[] {
    if (message["error"] !== undefined && message["error"] !== null) fail(message["error"]);
    id = asText(message["id"]);
    rawUsage = mergeAnthropicUsage(rawUsage, message["usage"]);
    outputIsCounted = true;
    const deltas = asArray(message["content"]).flatMap((block, index) => [...startBlock(index, asObject(block)), ...stopBlock(index)]);
    deltas.push(...takeStop(message));
    ended = stopReason !== undefined;
    return deltas;
  }

  function takeEvent(event: JsonObject): readonly ModelDelta[] {
    switch (event["type"]) {
      case "message_start": {
        const message = asObject(event["message"]);
        id = asText(message["id"]);
        rawUsage = mergeAnthropicUsage(rawUsage, message["usage"]);
        return [];
      }
      case "content_block_start":
        return startBlock(event["index"], asObject(event["content_block"]));
      case "content_block_delta":
        return takeBlockDelta(event["index"], asObject(event["delta"]));
      case "content_block_stop":
        return stopBlock(event["index"]);
      case "message_delta":
        rawUsage = mergeAnthropicUsage(rawUsage, event["usage"]);
        outputIsCounted ||= typeof asObject(event["usage"])["output_tokens"] === "number";
        return takeStop(asObject(event["delta"]));
      case "message_stop":
        ended = true;
        return [];
      case "error":
        return fail(event["error"]);
      default:
        return []; // ping, and events of a later day
    }
  }

  const isCounted = (): boolean => stopReason !== undefined && outputIsCounted;
  const wholeUsage = (): CountedUsage => counter.ofWhole(normaliseAnthropicUsage(rawUsage, mostTokens));

  /** A prompt that is counted has begun its output, also where the count does not say so yet. */
  function partUsage(): CountedUsage | undefined {
    const begun = Object.keys(rawUsage).length === 0 ? rawUsage : { output_tokens: 0, ...rawUsage };
    return counter.ofPart(normaliseAnthropicUsage(begun, mostTokens), ended ? "missing" : "cut");
  }

  return {
    take(item: AnswerItem) {
      const value = parseJson(item.data);
      if (value === undefined) {
        if (stopReason !== undefined) return []; // cut in the event after the reply
        throw providerFailure({ kind: "garbage", text: "The answer is not JSON." }, secrets);
      }
      return item.type === "whole" ? takeWhole(asObject(value)) : takeEvent(asObject(value));
    },
    ended: () => ended,
    complete: () => stopReason !== undefined,
    usageSoFar: () => (isCounted() ? wholeUsage() : partUsage()),
    providerRequestId: () => id ?? requestId,
    result() {
      if (stopReason === undefined) throw providerFailure({ kind: "garbage", text: "The answer ended before it was whole." }, secrets);
      const reason = finishReasons[stopReason] ?? "stop";
      const finishReason = reason === "tool_calls" && jsonBlocks.size > 0 && !reply.hasToolCalls() ? "stop" : reason;
      const usage = (isCounted() ? undefined : partUsage()) ?? wholeUsage();
      return { reply: reply.build(finishReason, { serviceTier: serviceTierOf(rawUsage) }), usage, providerRequestId: id ?? requestId };
    },
  };
}

/** In OpenAI's words; what a server of another make says is passed on. */
function serviceTierOf(usage: JsonObject): string | undefined {
  const tier = asText(usage["service_tier"]);
  return tier === "standard" ? "default" : tier;
}
