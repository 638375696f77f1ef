/** A conversation as providers, transcripts and tools share it; a provider adapter turns it into its own wire shape. */

export type ToolCall = {
  /** The provider's id of the call, repeated with the tool's answer. */
  readonly id: string;
  readonly name: string;
  /** JSON text exactly as the model wrote it; it may be malformed. */
  readonly arguments: string;
};

export type ContentPart =
  | { readonly type: "text"; readonly text: string }
  /** `url` is an https or data URL. */
  | { readonly type: "image"; readonly url: string; readonly detail?: "auto" | "low" | "high" | undefined };

export type ChatMessage =
  | { readonly role: "system" | "developer"; readonly content: string }
  | { readonly role: "user"; readonly content: string | readonly ContentPart[] }
  | { readonly role: "assistant"; readonly content: string | null; readonly toolCalls?: readonly ToolCall[] | undefined }
  | { readonly role: "tool"; readonly toolCallId: string; readonly content: string };

export type ToolDefinition = {
  readonly name: string;
  readonly description?: string | undefined;
  /** JSON Schema of the arguments. */
  readonly parameters?: Readonly<Record<string, unknown>> | undefined;
  readonly strict?: boolean | undefined;
};

export type ToolChoice = "auto" | "none" | "required" | { readonly name: string };

/** Why the model stopped; `tool_calls` asks for tools, `length` means that the token limit cut it. */
export type FinishReason = "stop" | "length" | "tool_calls" | "content_filter";

/** One model reply, whole. */
export type ModelReply = {
  readonly content: string | null;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: FinishReason;
  /** A refusal text that the provider gave apart from the content. */
  readonly refusal?: string | undefined;
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
};
