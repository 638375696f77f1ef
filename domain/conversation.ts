/** A conversation as providers, transcripts and tools share it; a provider adapter turns it into its own wire shape. */

export type ToolCall = {
  /** The provider's id of the call, repeated with the tool's answer. */
  readonly id: string;
  readonly name: string;
  /** JSON text exactly as the model wrote it; it may be malformed. Of a custom tool: the free text that it is given. */
  readonly arguments: string;
  /** The tool is a custom one (see `ToolDefinition`). */
  readonly custom?: true | undefined;
};

/** Where the bytes of a file stand: inline (base64, bare or as a data URL), at an https address, or under an id of `/v1/files`. */
export type FileSource = { readonly data: string } | { readonly url: string } | { readonly id: string };

export type ContentPart =
  | { readonly type: "text"; readonly text: string }
  /** `url` is an https or data URL. */
  | { readonly type: "image"; readonly url: string; readonly detail?: "auto" | "low" | "high" | "original" | undefined }
  /** `data` is base64. */
  | { readonly type: "audio"; readonly data: string; readonly format: "wav" | "mp3" }
  | { readonly type: "file"; readonly name?: string | undefined; readonly file: FileSource };

/** `name` tells participants of one role apart. */
export type ChatMessage =
  | { readonly role: "system" | "developer"; readonly content: string; readonly name?: string | undefined }
  | { readonly role: "user"; readonly content: string | readonly ContentPart[]; readonly name?: string | undefined }
  | {
      readonly role: "assistant";
      readonly content: string | null;
      readonly toolCalls?: readonly ToolCall[] | undefined;
      readonly refusal?: string | undefined;
      readonly name?: string | undefined;
    }
  | { readonly role: "tool"; readonly toolCallId: string; readonly content: string | readonly ContentPart[] };

/** What a custom tool's free text must look like. */
export type CustomToolFormat =
  | { readonly type: "text" }
  | { readonly type: "grammar"; readonly syntax: "lark" | "regex"; readonly definition: string };

export type ToolDefinition = {
  readonly name: string;
  readonly description?: string | undefined;
  /** JSON Schema of the arguments. */
  readonly parameters?: Readonly<Record<string, unknown>> | undefined;
  readonly strict?: boolean | undefined;
  /** The tool takes free text of this format instead of JSON arguments; it has no parameters then. */
  readonly custom?: CustomToolFormat | undefined;
};

export type ToolChoice =
  | "auto"
  | "none"
  | "required"
  | { readonly name: string }
  /** Only some of the offered tools may be called, or one of them must be. */
  | { readonly allowed: readonly string[]; readonly mode: "auto" | "required" };

/** How likely a token was, and its rivals, as OpenAI's Chat Completions write it. */
export type TokenLogprob = Readonly<Record<string, unknown>>;

/** Why the model stopped; `tool_calls` asks for tools, `length` means that the token limit cut it. */
export type FinishReason = "stop" | "length" | "tool_calls" | "content_filter";

/** One model reply, whole. */
export type ModelReply = {
  readonly content: string | null;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: FinishReason;
  /** A refusal text that the provider gave apart from the content. */
  readonly refusal?: string | undefined;
  /** Of the content's tokens, where the caller asked for them. */
  readonly logprobs?: readonly TokenLogprob[] | undefined;
  readonly refusalLogprobs?: readonly TokenLogprob[] | undefined;
  /** Citations, as OpenAI's Chat Completions write them. */
  readonly annotations?: readonly Readonly<Record<string, unknown>>[] | undefined;
  /** The service tier that served the call, in OpenAI's words. */
  readonly serviceTier?: string | undefined;
  /** Names the provider's configuration: what `seed` gives again holds while it stays the same. */
  readonly systemFingerprint?: string | undefined;
};

/** Settings of a model call that the caller may choose; absent means the provider's default. */
export type SamplingSettings = {
  readonly maxTokens?: number | undefined;
  readonly temperature?: number | undefined;
  readonly topP?: number | undefined;
  readonly stop?: readonly string[] | undefined;
  readonly seed?: number | undefined;
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  readonly reasoningEffort?: string | undefined;
  readonly responseFormat?: Readonly<Record<string, unknown>> | undefined;
  readonly parallelToolCalls?: boolean | undefined;
  readonly toolChoice?: ToolChoice | undefined;
  readonly logprobs?: boolean | undefined;
  /** 0 to 20 rivals of each token. */
  readonly topLogprobs?: number | undefined;
  /** By token id of the model. */
  readonly logitBias?: Readonly<Record<string, number>> | undefined;
  readonly serviceTier?: string | undefined;
  readonly verbosity?: string | undefined;
  /** Text that the answer will mostly repeat. */
  readonly prediction?: string | undefined;
  /** Calls with the same key share the provider's prompt cache. */
  readonly promptCacheKey?: string | undefined;
  readonly promptCacheRetention?: "in_memory" | "24h" | undefined;
  readonly promptCacheOptions?: Readonly<Record<string, unknown>> | undefined;
  /** Names the caller's end user to the provider's abuse detection. */
  readonly safetyIdentifier?: string | undefined;
  /** Options of models that search the web by themselves, in OpenAI's words. */
  readonly webSearch?: Readonly<Record<string, unknown>> | undefined;
};

/** The tools that a choice leaves: for a provider that has no word for a choice among some of them. */
export function allowedTools(tools: readonly ToolDefinition[], choice: ToolChoice | undefined): readonly ToolDefinition[] {
  if (typeof choice !== "object" || !("allowed" in choice)) return tools;
  return tools.filter(({ name }) => choice.allowed.includes(name));
}
