import type { FinishReason, TokenLogprob } from "../domain/conversation.ts";
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
  let serviceTier: string | undefined;
  const annotations: JsonObject[] = [];
  const annotated = new Set<unknown>();

  function fail(error: unknown): never {
    const { code, type } = asObject(error);
    throw providerFailure({ kind: kindOfErrorEvent(code, type), text: errorText(error) }, secrets);
  }

  /** A piece of the item at `output_index`. */
  function takePiece(
    { output_index: place, delta, logprobs }: JsonObject,
    take: (piece: string, tokens: readonly TokenLogprob[]) => readonly ModelDelta[],
  ): readonly ModelDelta[] {
    const piece = asText(delta) ?? "";
    const tokens = toLogprobs(logprobs);
    if (piece === "" && tokens.length === 0) return [];
    streamed.add(place);
    return take(piece, tokens);
  }

  const takeText = (piece: string, tokens: readonly TokenLogprob[]) => reply.text(piece, tokens);
  const takeReasoning = (piece: string): readonly ModelDelta[] => {
    reply.reasoning(piece);
    return [];
  };

  /** An item as a whole, unless its pieces came before it. */
  function takeItem(place: unknown, item: JsonObject): readonly ModelDelta[] {
    const parts = item["type"] === "message" ? asArray(item["content"]).map(asObject) : [];
    if (!annotated.has(place)) annotations.push(...parts.flatMap(citationsOf));
    annotated.add(place);
    if (streamed.has(place)) return [];
    streamed.add(place);
    switch (item["type"]) {
      case "message":
        return parts.flatMap((part) => [
          ...reply.text(asText(part["text"]) ?? "", toLogprobs(part["logprobs"])),
          ...reply.refusal(asText(part["refusal"]) ?? ""),
        ]);
      case "function_call":
      case "custom_tool_call":
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
      arguments: asText(item["type"] === "custom_tool_call" ? item["input"] : item["arguments"]),
      custom: item["type"] === "custom_tool_call",
    });

  function takeResponse(response: JsonObject): void {
    id = asText(response["id"]) ?? id;
    rawUsage = response["usage"] ?? rawUsage;
    serviceTier = asText(response["service_tier"]) ?? serviceTier;
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
        return takePiece(event, takeText);
      case "response.refusal.delta":
        return takePiece(event, reply.refusal);
      case "response.reasoning_text.delta":
      case "response.reasoning_summary_text.delta":
        return takePiece(event, takeReasoning);
      case "response.output_item.added": {
        const item = asObject(event["item"]);
        const isCall = item["type"] === "function_call" || item["type"] === "custom_tool_call";
        return isCall ? takeCall(event["output_index"], { ...item, arguments: "", input: "" }) : [];
      }
      case "response.function_call_arguments.delta":
      case "response.custom_tool_call_input.delta":
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
      const facts = { serviceTier, annotations: annotations.length === 0 ? undefined : annotations };
      return { reply: reply.build(finish, facts), usage: counter.ofWhole(reported()), providerRequestId: id ?? requestId };
    },
  };
}

/** The API leaves out the bytes of a token, and its rivals where none were asked for. */
const toLogprobs = (tokens: unknown): readonly TokenLogprob[] =>
  asArray(tokens)
    .map(asObject)
    .map((token) => ({
      ...token,
      bytes: token["bytes"] ?? null,
      top_logprobs: asArray(token["top_logprobs"]).map((rival) => ({ bytes: null, ...asObject(rival) })),
    }));

/** Citations of the web, which Chat Completions nest under their type; of other kinds it has none. */
const citationsOf = (part: JsonObject): readonly JsonObject[] =>
  asArray(part["annotations"])
    .map(asObject)
    .filter(({ type }) => type === "url_citation")
    .map(({ type, ...citation }) => ({ type, url_citation: citation }));
