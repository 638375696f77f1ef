import { z } from "zod";
import type { ChatMessage, ContentPart, FileSource, ToolCall } from "../domain/conversation.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnReply } from "../domain/turn.ts";
import { AppError } from "../domain/app-error.ts";
import { refusal } from "./chat-tools.ts";

/** The items of the Responses API: what goes in, what comes out, and the messages that both stand for. */

const text = z.string();
const id = text.max(256).nullish();
const status = z.enum(["in_progress", "completed", "incomplete"]).nullish();
const detail = z.enum(["auto", "low", "high", "original"]).nullish();
/** For a documented field that nothing here can honour: refused where it stands. */
const unsupported = z.null("It is not supported here.").optional();
const prompt_cache_breakpoint = unsupported;

const inputPart = z.discriminatedUnion("type", [
  z.object({ type: z.literal("input_text"), text, prompt_cache_breakpoint }),
  z
    .object({
      type: z.literal("input_image"),
      file_id: text.min(1).max(256).nullish(),
      image_url: text.min(1).max(12_000_000).nullish(),
      detail,
      prompt_cache_breakpoint,
    })
    .refine(({ file_id, image_url }) => (file_id == null) !== (image_url == null), "It holds one of image_url and file_id."),
  z
    .object({
      type: z.literal("input_file"),
      file_data: text.min(1).nullish(),
      file_url: text.min(1).max(8_192).nullish(),
      file_id: text.min(1).max(256).nullish(),
      filename: text.max(1_024).nullish(),
      prompt_cache_breakpoint,
    })
    .refine(
      ({ file_data, file_url, file_id }) => [file_data, file_url, file_id].filter((given) => given != null).length === 1,
      "It holds one of file_data, file_url and file_id.",
    ),
  z.object({ type: z.literal("output_text"), text, annotations: z.array(z.unknown()).nullish(), logprobs: z.array(z.unknown()).nullish() }),
  z.object({ type: z.literal("refusal"), refusal: text }),
  z.object({ type: z.literal("input_audio"), input_audio: z.object({ data: text.min(1), format: z.enum(["wav", "mp3"]) }) }),
]);
export type InputPart = z.infer<typeof inputPart>;

const toolOutput = z.union([text, z.array(inputPart)]);

export const inputItem = z.discriminatedUnion("type", [
  z
    .object({
      type: z.literal("message"),
      role: z.enum(["user", "assistant", "system", "developer"]),
      content: z.union([text, z.array(inputPart)]),
      phase: z.enum(["commentary", "final_answer"]).nullish(),
      id,
      status,
    })
    .refine(
      ({ role, content }) => typeof content === "string" || content.every(({ type }) => isPartOf(role, type)),
      "A part of this kind has no place in a message of this role.",
    ),
  z.object({ type: z.literal("function_call"), call_id: text.min(1), name: text.min(1), arguments: text, id, status }),
  z.object({ type: z.literal("function_call_output"), call_id: text.min(1), output: toolOutput, id, status }),
  z.object({ type: z.literal("custom_tool_call"), call_id: text.min(1), name: text.min(1), input: text, id, status }),
  z.object({ type: z.literal("custom_tool_call_output"), call_id: text.min(1), output: toolOutput, id, status }),
  /** Read and dropped: no provider behind Chat Completions or Messages takes another call's reasoning. */
  z.object({
    type: z.literal("reasoning"),
    summary: z.array(z.unknown()).nullish(),
    content: z.array(z.unknown()).nullish(),
    encrypted_content: text.nullish(),
    id,
    status,
  }),
  z.object({ type: z.literal("item_reference"), id: text.min(1).max(256) }),
]);
type InputItem = z.infer<typeof inputItem>;

/** An input item without references, as a response keeps it. */
export type StoredItem = Exclude<InputItem, { type: "item_reference" | "reasoning" }> & { readonly id: string };

const isPartOf = (role: string, type: string): boolean => {
  if (role === "assistant") return type === "output_text" || type === "refusal" || type === "input_text";
  return role === "user" ? type !== "output_text" && type !== "refusal" : type === "input_text";
};

/** An item as it is shown. */
export type ShownItem = StoredItem | OutputItem;

/** The ULID that a turn shares with its response and the response's items. */
export const ulidOf = (turnId: TurnId): string => turnId.slice("trn_".length);
export const responseIdOf = (turnId: TurnId): string => `resp_${ulidOf(turnId)}`;

export const isResponseId = (id: string): boolean => /^resp_[0-7][0-9A-HJKMNP-TV-Z]{25}$/.test(id);

/** The response that made an item, by the item's id; undefined for an id that is none of ours. */
export function responseOfItem(itemId: string): string | undefined {
  const [, ulid] = /^[a-z]{2,4}_([0-7][0-9A-HJKMNP-TV-Z]{25})(?:_i?\d{1,5})?$/.exec(itemId) ?? [];
  return ulid === undefined ? undefined : `resp_${ulid}`;
}

const inputPrefixes = {
  message: "msg",
  function_call: "fc",
  function_call_output: "fco",
  custom_tool_call: "ctc",
  custom_tool_call_output: "ctco",
} as const;

/** The items under ids of this ULID, ready to be kept and shown. */
export const nameItems = (ulid: string, items: readonly Exclude<InputItem, { type: "item_reference" }>[]): readonly StoredItem[] =>
  items
    .filter((item) => item.type !== "reasoning")
    .map((item, place): StoredItem => {
      const named = { ...item, id: `${inputPrefixes[item.type]}_${ulid}_i${place}`, status: "completed" as const };
      return named.type === "message" && typeof named.content === "string"
        ? { ...named, content: [textPartOf(named.role, named.content)] }
        : named;
    });

const textPartOf = (role: string, said: string): InputPart =>
  role === "assistant" ? { type: "output_text", text: said, annotations: [], logprobs: [] } : { type: "input_text", text: said };

/** Everything that a turn answered, in the order of its output. */
export function outputOf(turnId: TurnId, reply: TurnReply): readonly OutputItem[] {
  const status = reply.finishReason === "length" || reply.finishReason === "content_filter" ? "incomplete" : "completed";
  const calls = reply.toolCalls.map((call, place) => callItem(turnId, place, call, "completed"));
  const content = [
    ...(hasText(reply) ? [textContent(reply)] : []),
    ...(reply.refusal === undefined ? [] : [{ type: "refusal", refusal: reply.refusal } as const]),
  ];
  return content.length === 0 ? calls : [messageItem(turnId, status, content), ...calls];
}

/** A reply of nothing at all is an empty message. */
const hasText = ({ content, refusal: refused, toolCalls }: TurnReply): boolean =>
  (content !== null && content !== "") || (refused === undefined && toolCalls.length === 0);

type OutputContent = ReturnType<typeof textContent> | { readonly type: "refusal"; readonly refusal: string };
export type OutputItem = ReturnType<typeof messageItem> | ReturnType<typeof callItem>;
type ItemStatus = "in_progress" | "completed" | "incomplete";

const textContent = ({ content, annotations = [], logprobs = [] }: Pick<TurnReply, "content" | "annotations" | "logprobs">) => ({
  type: "output_text" as const,
  text: content ?? "",
  annotations: annotations.map(toAnnotation),
  logprobs,
});

/** Chat Completions put a citation below its type; here it is flat. */
function toAnnotation(annotation: Readonly<Record<string, unknown>>): object {
  const { type, url_citation: citation } = annotation;
  return type === "url_citation" && typeof citation === "object" ? { type, ...citation } : annotation;
}

export const messageItem = (turnId: TurnId, status: ItemStatus, content: readonly OutputContent[]) => ({
  type: "message" as const,
  id: `msg_${ulidOf(turnId)}`,
  status,
  role: "assistant" as const,
  content,
});

export const callItem = (turnId: TurnId, place: number, call: ToolCall, status: ItemStatus) =>
  call.custom === true
    ? {
        type: "custom_tool_call" as const,
        id: `ctc_${ulidOf(turnId)}_${place}`,
        call_id: call.id,
        name: call.name,
        input: call.arguments,
        status,
      }
    : {
        type: "function_call" as const,
        id: `fc_${ulidOf(turnId)}_${place}`,
        call_id: call.id,
        name: call.name,
        arguments: call.arguments,
        status,
      };

/** What a client may send again as it got it. */
export const toInputItem = (item: unknown): InputItem => inputItem.parse(item);

/** What a response was asked and answered. */
export const itemsOf = ({
  turnId,
  input,
  reply,
}: {
  readonly turnId: TurnId;
  readonly input: readonly unknown[];
  readonly reply: TurnReply;
}): readonly ShownItem[] => [...(input as readonly StoredItem[]), ...outputOf(turnId, reply)];

/** The same as input of what comes next. */
export const toStored = (items: readonly ShownItem[]): readonly StoredItem[] =>
  items.map((item) => ({ ...toInputItem(item), id: item.id }) as StoredItem);

/**
 * The messages that items stand for: what the model said and called in a row is one message. Images are there by their addresses
 * (`inlineImages`).
 * @throws {AppError} `invalid_request` for a tool's answer without its call
 */
export function toMessages(items: readonly StoredItem[]): readonly ChatMessage[] {
  const messages: ChatMessage[] = [];
  const callIds = new Set<string>();
  const said = (more: { readonly content?: string; readonly refusal?: string; readonly call?: ToolCall }): void => {
    const last = messages.at(-1);
    const before = last?.role === "assistant" ? (messages.pop(), last) : { role: "assistant" as const, content: null };
    const content = [before.content ?? [], more.content ?? []].flat();
    const refused = `${before.refusal ?? ""}${more.refusal ?? ""}`;
    const toolCalls = [before.toolCalls ?? [], more.call ?? []].flat();
    messages.push({
      role: "assistant",
      content: content.length === 0 ? null : content.join("\n"),
      ...(refused === "" ? {} : { refusal: refused }),
      ...(toolCalls.length === 0 ? {} : { toolCalls }),
    });
  };
  for (const item of items) {
    switch (item.type) {
      case "message":
        if (item.role === "assistant") {
          const parts = partsOf(item.content);
          const spoken = parts.flatMap((part) => ("text" in part ? [part.text] : []));
          const refused = parts.flatMap((part) => (part.type === "refusal" ? [part.refusal] : [])).join("");
          said({ ...(spoken.length === 0 ? {} : { content: spoken.join("\n") }), refusal: refused });
        } else if (item.role === "user") messages.push({ role: "user", content: toContent(item.content) });
        else
          messages.push({
            role: item.role,
            content: partsOf(item.content)
              .flatMap((part) => ("text" in part ? [part.text] : []))
              .join("\n"),
          });
        break;
      case "function_call":
      case "custom_tool_call":
        callIds.add(item.call_id);
        said({
          call:
            item.type === "function_call"
              ? { id: item.call_id, name: item.name, arguments: item.arguments }
              : { id: item.call_id, name: item.name, arguments: item.input, custom: true },
        });
        break;
      case "function_call_output":
      case "custom_tool_call_output":
        if (!callIds.has(item.call_id))
          throw refusal(`No tool call found for function call output with call_id ${item.call_id.slice(0, 128)}.`, "input");
        messages.push({ role: "tool", toolCallId: item.call_id, content: toContent(item.output) });
        break;
    }
  }
  return messages;
}

const partsOf = (content: string | readonly InputPart[]): readonly InputPart[] =>
  typeof content === "string" ? [{ type: "input_text", text: content }] : content;

/** Texts become one, as everywhere; what else was said stays as it is. */
function toContent(content: string | readonly InputPart[]): string | readonly ContentPart[] {
  const parts = partsOf(content).map(toPart);
  return parts.every((part) => part.type === "text") ? parts.map((part) => part.text).join("\n") : parts;
}

function toPart(part: InputPart): ContentPart {
  switch (part.type) {
    case "input_text":
    case "output_text":
      return { type: "text", text: part.text };
    case "refusal":
      return { type: "text", text: part.refusal };
    case "input_audio":
      return { type: "audio", ...part.input_audio };
    case "input_image":
      return { type: "image", url: part.image_url ?? "", detail: part.detail ?? undefined };
    case "input_file": {
      const { file_data: data, file_url: url, file_id: id, filename } = part;
      const file: FileSource = data != null ? { data } : url != null ? { url } : { id: id ?? "" };
      return { type: "file", file, ...(filename == null ? {} : { name: filename }) };
    }
  }
}

export const itemNotFound = (itemId: string): AppError =>
  new AppError("not_found", { client: { message: `Item with id '${itemId.slice(0, 128)}' not found.`, param: "input" } });
