import type {
  EasyInputMessage,
  FunctionTool,
  ResponseCreateParamsStreaming,
  ResponseFormatTextConfig,
  ResponseInputItem,
} from "openai/resources/responses/responses";
import type { ChatMessage, ContentPart, SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import { asObject, asText } from "./json-value.ts";
import type { ModelRequest } from "./model-provider.ts";
import { unsupportedSetting } from "./provider-failure.ts";

/**
 * The call as a Responses body. Nothing is kept at the provider: every call brings its whole conversation. What the API cannot do
 * is refused by name.
 * @throws {ModelCallError} `refused`
 */
export function toResponsesRequest(provider: string, { model, messages, tools, settings }: ModelRequest): ResponseCreateParamsStreaming {
  const refuse = (parameter: string, why: string) => unsupportedSetting(provider, parameter, why);
  if (settings.seed !== undefined) throw refuse("seed", "the Responses API has no seeds");
  if (settings.stop !== undefined && settings.stop.length > 0) throw refuse("stop", "the Responses API has no stop sequences");
  // Zero is what leaving them out means, so it is honoured.
  if (settings.presencePenalty) throw refuse("presence_penalty", "the Responses API has no penalties");
  if (settings.frequencyPenalty) throw refuse("frequency_penalty", "the Responses API has no penalties");
  const given = <T>(name: string, value: T | undefined): object => (value === undefined ? {} : { [name]: value });
  const { responseFormat, reasoningEffort, toolChoice } = settings;
  return {
    model,
    input: messages.flatMap(toItems),
    stream: true,
    store: false,
    ...given("tools", tools.length === 0 ? undefined : tools.map(toTool)),
    ...given("max_output_tokens", settings.maxTokens),
    ...given("temperature", settings.temperature),
    ...given("top_p", settings.topP),
    ...given("reasoning", reasoningEffort === undefined ? undefined : { effort: reasoningEffort }),
    ...given("text", responseFormat === undefined ? undefined : { format: toFormat(responseFormat, refuse) }),
    ...given("parallel_tool_calls", settings.parallelToolCalls),
    ...given("tool_choice", typeof toolChoice === "object" ? { type: "function", name: toolChoice.name } : toolChoice),
  };
}

/** Chat Completions nests a schema under `json_schema`; here its fields stand beside the type. */
function toFormat(
  format: NonNullable<SamplingSettings["responseFormat"]>,
  refuse: (parameter: string, why: string) => Error,
): ResponseFormatTextConfig {
  const { type } = format;
  if (type === "text" || type === "json_object") return { type };
  const { name, schema, description, strict } = asObject(format["json_schema"]);
  if (type === "json_schema" && asText(name) !== undefined && typeof schema === "object" && schema !== null) {
    return {
      type,
      name: String(name),
      schema: { ...asObject(schema) },
      ...(typeof description === "string" ? { description } : {}),
      ...(typeof strict === "boolean" ? { strict } : {}),
    };
  }
  throw refuse("response_format", "it knows the types text, json_object and json_schema, the latter with a name and a schema");
}

/** Strict unless it is told otherwise, the other way round than Chat Completions. */
const toTool = ({ name, description, parameters, strict = false }: ToolDefinition): FunctionTool => ({
  type: "function",
  name,
  parameters: parameters === undefined ? null : { ...parameters },
  strict,
  ...(description === undefined ? {} : { description }),
});

function toItems(message: ChatMessage): ResponseInputItem[] {
  switch (message.role) {
    case "system":
    case "developer":
      return [{ role: message.role, content: message.content }];
    case "user":
      return [{ role: "user", content: typeof message.content === "string" ? message.content : message.content.map(toPart) }];
    case "tool":
      return [{ type: "function_call_output", call_id: message.toolCallId, output: message.content }];
    case "assistant": {
      const said: EasyInputMessage[] = message.content ? [{ role: "assistant", content: message.content }] : [];
      const calls = (message.toolCalls ?? []).map((call) => ({
        type: "function_call" as const,
        call_id: call.id,
        name: call.name,
        arguments: call.arguments,
      }));
      return [...said, ...calls];
    }
  }
}

const toPart = (part: ContentPart) =>
  part.type === "text"
    ? { type: "input_text" as const, text: part.text }
    : { type: "input_image" as const, image_url: part.url, detail: part.detail ?? ("auto" as const) };
