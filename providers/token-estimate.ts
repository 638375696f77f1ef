import type { ChatMessage, ContentPart, FileSource, ToolDefinition } from "../domain/conversation.ts";

/** Counts the model tokens of a text. Pure; `model` lets a real tokenizer choose its vocabulary. */
export type TokenCounter = (model: string, text: string) => number;

/** What a message, the reply's head and an image cost beside their text; OpenAI's cookbook counts 3, 3 and (high detail, 1024²) 765. */
const tokensPerMessage = 4;
const tokensPerReply = 3;
const tokensPerImage = 765;
/** Speech is 10 tokens a second (OpenAI), which are about 16,000 characters of base64 MP3. */
const charactersPerAudioToken = 1_600;
/** A page of PDF is 1,500 to 3,000 tokens (Anthropic) and 5 to 100 KB; a hundred of them are more than most windows. */
const charactersPerPdfToken = 10;
const mostPdfTokens = 200_000;
/** Four characters of text are about a token, and five and a third of base64. */
const charactersPerTextFileToken = 5;

/**
 * Runs of characters that tokenizers treat alike, each with the characters of such a run that one token holds. A single space
 * belongs to the word after it, so it is free; what no class names (emoji, rare scripts) costs two tokens a UTF-16 unit.
 */
const runClasses: readonly { readonly pattern: string; readonly perToken: number }[] = [
  { pattern: "[A-Z]?[a-z]+", perToken: 5 }, // a word, or one hump of camelCase
  { pattern: "[A-Z]+", perToken: 3 },
  { pattern: "[0-9]+", perToken: 2.5 },
  { pattern: "[ \\t\\r\\n]{2,}|[\\t\\r\\n]", perToken: 8 },
  { pattern: "[!-/:-@[-`{-~]+", perToken: 2 },
  { pattern: "[\\u00a0-\\u024f\\u1e00-\\u1eff]+", perToken: 2 }, // accented Latin
  { pattern: "[\\u0370-\\u06ff]+", perToken: 2.5 }, // Greek, Cyrillic, Hebrew, Arabic
  { pattern: "[\\u0900-\\u0eff]+", perToken: 2 }, // Indic, Thai
  { pattern: "[\\u3000-\\u9fff\\uac00-\\ud7af\\uff00-\\uffef]+", perToken: 1.1 }, // CJK, kana, hangul
  { pattern: "[^\\0-\\u024f\\u0370-\\u06ff\\u0900-\\u0eff\\u1e00-\\u1eff\\u3000-\\u9fff\\uac00-\\ud7af\\uff00-\\uffef]+", perToken: 0.7 },
];
const runs = new RegExp(runClasses.map(({ pattern }) => `(${pattern})`).join("|"), "gu");

/**
 * The count used when a provider reports none, or garbage: never a bill's first choice, its row is marked `estimated`.
 *
 * Why not a tokenizer package: the kept pure-JS ones carry every vocabulary (gpt-tokenizer 4.0.0 is 30 MB on disk and decodes
 * a 200,000-entry table before its first count) and still lack the vocabularies of the models that need it most, those behind
 * compatible servers. This rule reads the text once (10 MB/s), needs nothing, and leans upwards, since it guards quotas too:
 * against o200k it gives 1.0 to 1.4 times the tokens of English, code, JSON and digits, 1.0 to 1.6 of 13 other languages, and 0.8
 * of base64 (`bench/token-estimate.ts`, figures against four vocabularies in docs/benchmarks.md). A `TokenCounter` with a real
 * vocabulary can be given to every provider instead.
 */
export function estimateTokens(_model: string, text: string): number {
  let tokens = 0;
  for (const match of text.matchAll(runs)) {
    const runClass = runClasses.findIndex((_, index) => match[index + 1] !== undefined);
    tokens += Math.ceil(match[0].length / (runClasses[runClass]?.perToken ?? 1));
  }
  return tokens;
}

/** What a call brought to its model, as far as tokens are concerned. */
export type CountedPrompt = {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
};

/** The prompt tokens of a call: every text, tool call and tool definition, and what framing and images cost. */
export function estimatePromptTokens(countTokens: TokenCounter, { model, messages, tools }: CountedPrompt): number {
  const count = (text: string): number => (text === "" ? 0 : countTokens(model, text));
  let tokens = tokensPerReply;
  for (const message of messages) {
    tokens += tokensPerMessage;
    if (typeof message.content === "string") tokens += count(message.content);
    else for (const part of message.content ?? []) tokens += tokensOfPart(part, count);
    if (message.role !== "assistant") continue;
    tokens += count(message.refusal ?? "");
    for (const call of message.toolCalls ?? []) tokens += tokensPerMessage + count(call.name) + count(call.arguments);
  }
  for (const tool of tools) tokens += tokensPerMessage + count(JSON.stringify(tool));
  return tokens;
}

function tokensOfPart(part: ContentPart, count: (text: string) => number): number {
  switch (part.type) {
    case "text":
      return count(part.text);
    case "image":
      return tokensPerImage;
    case "audio":
      return Math.ceil(part.data.length / charactersPerAudioToken);
    case "file":
      return tokensOfFile(part.file);
  }
}

function tokensOfFile(file: FileSource): number {
  if (!("data" in file)) return tokensPerImage;
  const isText = /^data:(?:text\/|application\/(?:json|xml))/i.test(file.data);
  if (isText) return Math.ceil(file.data.length / charactersPerTextFileToken);
  return tokensPerImage + Math.min(mostPdfTokens, Math.ceil(file.data.length / charactersPerPdfToken));
}
