import type { FinishReason } from "../domain/conversation.ts";
import type { AnswerItem } from "./answer-parser.ts";
import { asArray, asObject, asText, type JsonObject, parseJson } from "./json-value.ts";
import type { ModelDelta, ModelResult } from "./model-provider.ts";
import type { OpenAiAnswerOptions } from "./openai-answer.ts";
import { errorText, kindOfErrorEvent, providerFailure } from "./provider-failure.ts";
import { createReplyBuilder } from "./reply-builder.ts";
import { createUsageCounter, type ReportedUsage } from "./reported-usage.ts";
import { normaliseResponsesUsage } from "./responses-usage.ts";
import type { AnswerReader } from "./streamed-call.ts";

/** Reads a Responses answer: its typed events, or one whole response of a server that does not stream. */
export function createResponsesAnswer({ request, mostTokens, countTokens, secrets, requestId }: OpenAiAnswerOptions): AnswerReader {
  const reply = createReplyBuilder(request.callId);
  const counter = createUsageCounter(request, reply, countTokens);
  const streamed = new Set<unknown>(); // output items, by place, of which pieces came
  let id: string | undefined;
  let rawUsage: unknown;
  let finish: FinishReason | undefined;

  function fail(error: unknown): never {
    const { code, type } = asObject(error);
    throw providerFailure({ kind: kindOfErrorEvent(code, type), text: errorText(error) }, secrets);
  }

  /** A piece of the item at `output_index`. */
  function takePiece({ output_index: place, delta }: JsonObject, take: (piece: string) => readonly ModelDelta[]): readonly ModelDelta[] {
    const piece = asText(delta);
    if (piece === undefined) return [];
    streamed.add(place);
    return take(piece);
  }

  const takeReasoning = (piece: string): readonly ModelDelta[] => {
    reply.reasoning(piece);
    return [];
  };

  /** An item as a whole, unless its pieces came before it. */
  function takeItem(place: unknown, item: JsonObject): readonly ModelDelta[] {
    if (streamed.has(place)) return [];
    streamed.add(place);
    switch (item["type"]) {
      case "message":
        return asArray(item["content"])
          .map(asObject)
          .flatMap((part) => [...reply.text(asText(part["text"]) ?? ""), ...reply.refusal(asText(part["refusal"]) ?? "")]);
      case "function_call":
        return takeCall(place, item);
      case "reasoning":
        for (const part of [...asArray(item["summary"]), ...asArray(item["content"])]) takeReasoning(asText(asObject(part)["text"]) ?? "");
        return [];
      default:
        return []; // items of tools that only the provider runs
    }
  }

  const takeCall = (place: unknown, item: JsonObject): readonly ModelDelta[] =>
    reply.toolCall({
      index: Number(place),
      id: asText(item["call_id"]) ?? asText(item["id"]),
      name: asText(item["name"]),
      arguments: asText(item["arguments"]),
    });

  function takeResponse(response: JsonObject): void {
    id = asText(response["id"]) ?? id;
    rawUsage = response["usage"] ?? rawUsage;
  }

  /** The response as it stands at its end, which repeats everything that was streamed. */
  function takeEnd(response: JsonObject): readonly ModelDelta[] {
    takeResponse(response);
    const status = response["status"];
    if (status === "failed" || (response["error"] ?? null) !== null) fail(response["error"]);
    const deltas = streamed.size > 0 ? [] : asArray(response["output"]).flatMap((item, place) => takeItem(place, asObject(item)));
    if (status === "incomplete") {
      finish = asObject(response["incomplete_details"])["reason"] === "content_filter" ? "content_filter" : "length";
      return deltas;
    }
    if (status === "cancelled" || status === "in_progress" || status === "queued") {
      throw providerFailure({ kind: "unreachable", text: `The response is ${status}.` }, secrets);
    }
    finish = reply.hasToolCalls() ? "tool_calls" : "stop";
    return deltas;
  }

  function takeEvent(event: JsonObject): readonly ModelDelta[] {
    switch (event["type"]) {
      case "response.created":
      case "response.in_progress":
        takeResponse(asObject(event["response"]));
        return [];
      case "response.output_text.delta":
        return takePiece(event, reply.text);
      case "response.refusal.delta":
        return takePiece(event, reply.refusal);
      case "response.reasoning_text.delta":
      case "response.reasoning_summary_text.delta":
        return takePiece(event, takeReasoning);
      case "response.output_item.added": {
        const item = asObject(event["item"]);
        return item["type"] === "function_call" ? takeCall(event["output_index"], { ...item, arguments: "" }) : [];
      }
      case "response.function_call_arguments.delta":
        return takePiece(event, (piece) => reply.toolCall({ index: Number(event["output_index"]), arguments: piece }));
      case "response.output_item.done":
        return takeItem(event["output_index"], asObject(event["item"]));
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        return takeEnd({ status: String(event["type"]).slice("response.".length), ...asObject(event["response"]) });
      case "error":
        return fail(event["error"] ?? { code: event["code"], message: event["message"] });
      default:
        return []; // other views of the same pieces, and events of a later day
    }
  }

  const reported = (): ReportedUsage =>
    rawUsage === undefined || rawUsage === null ? "missing" : normaliseResponsesUsage(rawUsage, mostTokens);

  return {
    take(item: AnswerItem) {
      const value = parseJson(item.data);
      if (value === undefined) throw providerFailure({ kind: "garbage", text: "The answer is not JSON." }, secrets);
      if (item.type === "event") return takeEvent(asObject(value));
      const response = asObject(value);
      if (!Array.isArray(response["output"]) && (response["error"] ?? null) === null) {
        throw providerFailure({ kind: "garbage", text: "The answer is no response." }, secrets);
      }
      return takeEnd(response);
    },
    ended: () => finish !== undefined,
    complete: () => finish !== undefined,
    usageSoFar: () => counter.ofPart(reported(), "cut"),
    providerRequestId: () => id ?? requestId,
    result(): ModelResult {
      if (finish === undefined) throw providerFailure({ kind: "garbage", text: "The answer ended before it was whole." }, secrets);
      return { reply: reply.build(finish), usage: counter.ofWhole(reported()), providerRequestId: id ?? requestId };
    },
  };
}
