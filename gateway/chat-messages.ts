import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { ChatMessage, ContentPart, FileSource, ToolCall } from "../domain/conversation.ts";

/** The messages of a Chat Completions body. */

const text = z.string();
const name = text.max(256).optional();
/** For a documented field that nothing here can honour: refused where it stands. */
const unsupported = z.null("It is not supported here.").optional();
const prompt_cache_breakpoint = unsupported;

const textPart = z.object({ type: z.literal("text"), text, prompt_cache_breakpoint });
const plainContent = z.union([text, z.array(textPart)]);
const contentPart = z.discriminatedUnion("type", [
  textPart,
  z.object({
    type: z.literal("image_url"),
    image_url: z.object({ url: z.string().max(12_000_000), detail: z.enum(["auto", "low", "high", "original"]).optional() }),
    prompt_cache_breakpoint,
  }),
  z.object({
    type: z.literal("input_audio"),
    input_audio: z.object({ data: text.min(1), format: z.enum(["wav", "mp3"]) }),
    prompt_cache_breakpoint,
  }),
  z.object({
    type: z.literal("file"),
    file: z
      .object({ file_data: text.min(1).nullish(), file_id: text.min(1).max(256).nullish(), filename: text.max(1_024).nullish() })
      .refine(({ file_data, file_id }) => (file_data == null) !== (file_id == null), "It holds either file_data or file_id."),
    prompt_cache_breakpoint,
  }),
]);
const assistantPart = z.discriminatedUnion("type", [textPart, z.object({ type: z.literal("refusal"), refusal: text })]);
const toolCall = z.discriminatedUnion("type", [
  z.object({ id: text.min(1), type: z.literal("function"), function: z.object({ name: text, arguments: text }) }),
  z.object({ id: text.min(1), type: z.literal("custom"), custom: z.object({ name: text, input: text }) }),
]);

export const chatMessage = z.discriminatedUnion("role", [
  z.object({ role: z.literal("system"), content: plainContent, name }),
  z.object({ role: z.literal("developer"), content: plainContent, name }),
  z.object({ role: z.literal("user"), content: z.union([text, z.array(contentPart).min(1)]), name }),
  z.object({
    role: z.literal("assistant"),
    content: z.union([text, z.array(assistantPart)]).nullish(),
    tool_calls: z.array(toolCall).nullish(),
    function_call: z.object({ name: text, arguments: text }).nullish(),
    refusal: text.nullish(),
    audio: z.null("No audio answer is kept here.").optional(),
    name,
  }),
  z.object({ role: z.literal("tool"), content: z.union([text, z.array(contentPart)]), tool_call_id: text.min(1) }),
  z.object({ role: z.literal("function"), content: text.nullable(), name: text.min(1) }),
]);
type RawMessage = z.infer<typeof chatMessage>;

/**
 * The messages as providers share them. A deprecated function call becomes a tool call with an id of our own, and the function's
 * answer is the answer to the last such call of its name.
 * @throws {AppError} `invalid_request` for an answer without a call
 */
export function toChatMessages(raw: readonly RawMessage[]): readonly ChatMessage[] {
  const callIds = new Map<string, string>(); // by function name
  return raw.map((message, place) => {
    if (message.role === "function") {
      const toolCallId = callIds.get(message.name);
      if (toolCallId !== undefined) return { role: "tool", toolCallId, content: message.content ?? "" };
      const param = `messages.${place}.name`;
      throw new AppError("invalid_request", {
        client: { message: `Invalid value for '${param}': No function of this name was called.`, param },
      });
    }
    if (message.role === "assistant" && message.function_call != null) callIds.set(message.function_call.name, functionCallId(place));
    return toMessage(message, place);
  });
}

const functionCallId = (place: number): string => `call_function_${place}`;

function toMessage(raw: Exclude<RawMessage, { role: "function" }>, place: number): ChatMessage {
  const named = "name" in raw && raw.name !== undefined ? { name: raw.name } : {};
  switch (raw.role) {
    case "system":
    case "developer":
      return { role: raw.role, content: toText(raw.content), ...named };
    case "user":
      return { role: "user", content: typeof raw.content === "string" ? raw.content : raw.content.map(toPart), ...named };
    case "assistant": {
      const parts = typeof raw.content === "string" ? [{ type: "text" as const, text: raw.content }] : (raw.content ?? []);
      const refusal = [...parts.flatMap((part) => (part.type === "refusal" ? [part.refusal] : [])), raw.refusal ?? ""].join("");
      const { function_call: call } = raw;
      const functionCall = call == null ? [] : [{ id: functionCallId(place), name: call.name, arguments: call.arguments }];
      const toolCalls = [...(raw.tool_calls ?? []).map(toToolCall), ...functionCall];
      return {
        role: "assistant",
        content: raw.content == null ? null : toText(parts.filter((part) => part.type === "text")),
        ...(toolCalls.length === 0 ? {} : { toolCalls }),
        ...(refusal === "" ? {} : { refusal }),
        ...named,
      };
    }
    case "tool":
      return { role: "tool", toolCallId: raw.tool_call_id, content: toToolContent(raw.content) };
  }
}

function toToolCall(call: z.infer<typeof toolCall>): ToolCall {
  if (call.type === "custom") return { id: call.id, name: call.custom.name, arguments: call.custom.input, custom: true };
  return { id: call.id, name: call.function.name, arguments: call.function.arguments };
}

export const toText = (content: z.infer<typeof plainContent>): string =>
  typeof content === "string" ? content : content.map((part) => part.text).join("\n");

/** Texts become one, as everywhere; what else a tool answered stays as it is. */
function toToolContent(content: string | readonly z.infer<typeof contentPart>[]): string | readonly ContentPart[] {
  if (typeof content === "string") return content;
  const texts = content.filter((part) => part.type === "text");
  return texts.length === content.length ? toText(texts) : content.map(toPart);
}

function toPart(part: z.infer<typeof contentPart>): ContentPart {
  switch (part.type) {
    case "text":
      return { type: "text", text: part.text };
    case "image_url":
      return { type: "image", url: part.image_url.url, detail: part.image_url.detail };
    case "input_audio":
      return { type: "audio", data: part.input_audio.data, format: part.input_audio.format };
    case "file": {
      const { file_data: data, file_id: id, filename } = part.file;
      const file: FileSource = data == null ? { id: id ?? "" } : { data };
      return { type: "file", file, ...(filename == null ? {} : { name: filename }) };
    }
  }
}

/** In a session only what is new counts: the messages behind the last reply, and the instructions, which hold for this turn. */
export function newMessagesOf(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const lastReply = messages.findLastIndex(({ role }) => role === "assistant");
  const instructions = messages.slice(0, lastReply + 1).filter(({ role }) => role === "system" || role === "developer");
  return [...instructions, ...messages.slice(lastReply + 1)];
}
