import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import {
  type ChatMessage,
  type FinishReason,
  type SamplingSettings,
  type ToolCall,
  type ToolDefinition,
  allowedTools,
} from "../domain/conversation.ts";
import type { CountedUsage } from "../domain/usage.ts";
import { refuseFor, stoppedFailure } from "./provider-failure.ts";
import { demoServices } from "./demo-services.ts";
import { commandsIn, fitArguments, sampleArguments, textOf } from "./demo-script.ts";
import { ModelCallError, type ModelDelta, type ModelProvider, type ModelRequest, type ModelResult } from "./model-provider.ts";

export type DemoProviderOptions = {
  readonly name?: string | undefined;
  /** Artificial pause before each word, for looking at a stream. Milliseconds, 0 by default. */
  readonly wordDelayMs?: number | undefined;
};

/** Every answer begins with it: nobody should take this for a model. */
const label = "[demo model]";

const help = `${label} I am a small deterministic program, not a language model: OpenClawMU uses me when no model provider is configured, so that you can try it offline. I echo what you write, I remember how many messages this session has, and I use tools when a line of yours asks for one:

\`\`\`
/exec ls -la          run a command in the sandbox (also: run: ls -la)
/write notes.txt Hi   write a file
/read notes.txt       read a file
/edit notes.txt Hi => Hello   replace a text in a file
/list                 list the sandbox's files
/call NAME {"a": 1}   call any tool that is offered
\`\`\`

Several such lines call several tools. To talk to a real model, set OPENAI_API_KEY or ANTHROPIC_API_KEY and start again, or add a provider to config.yaml.`;

/**
 * The built-in demo model: deterministic, offline, and labelled as such at the beginning of every answer.
 *
 * - It echoes the last user message and says how many earlier messages it was shown; `help` explains its abilities.
 * - A line `/exec …` (or `run: …`), `/write path text`, `/read path`, `/edit path old => new`, `/list [path]` or
 *   `/call name {json}` in the last user message calls that tool, all lines at once, or one after the other when parallel
 *   calls are switched off; then it answers with the tools' results. A tool that is not offered is said so. A `toolChoice` that
 *   forces a tool is obeyed with arguments made up from its schema.
 * - It streams word by word. `maxTokens` and `stop` cut it as they cut a model; `json_object` gives a JSON answer, a
 *   `json_schema` is refused, as are custom tools, logprobs, biases, predictions, verbosity and web search; temperature, seed and
 *   the rest have nothing to act on.
 * - Tokens are words: a run of characters without blanks is one token, in texts, tool names and tool arguments alike. The prompt
 *   counts all messages and the names and descriptions of the tools. Nothing is cached, nothing is reasoning. The same
 *   request always has the same answer, ids and counts.
 */
export function createDemoProvider({ name = "demo", wordDelayMs = 0 }: DemoProviderOptions = {}): ModelProvider {
  return {
    name,
    services: demoServices,
    async *call(request, signal): AsyncGenerator<ModelDelta, ModelResult, undefined> {
      const inputTokens = promptWords(request);
      const plan = planAnswer(name, request);
      const providerRequestId = `demo-${digestOf(request.callId)}`;
      const usageOf = (outputTokens: number): CountedUsage => ({
        inputTokens,
        cacheReadTokens: 0,
        cacheWriteTokens: 0,
        outputTokens,
        reasoningTokens: 0,
        estimated: false,
      });
      let spoken = "";
      let outputTokens = 0;
      const stopIfAborted = (): void => {
        if (!signal.aborted) return;
        const { kind, message } = stoppedFailure("caller");
        throw new ModelCallError(kind, message, { usage: outputTokens === 0 ? undefined : usageOf(outputTokens), providerRequestId });
      };

      stopIfAborted();
      for (const word of wordsOf(plan.text)) {
        if (wordDelayMs > 0) await delay(wordDelayMs, undefined, { signal }).catch(() => undefined);
        stopIfAborted();
        spoken += word;
        outputTokens += countWords(word);
        yield { type: "text", text: word };
      }
      for (const [index, call] of plan.toolCalls.entries()) {
        stopIfAborted();
        outputTokens += countWords(call.name) + countWords(call.arguments);
        yield { type: "tool_call", index, id: call.id, name: call.name, arguments: call.arguments };
      }
      return {
        reply: { content: plan.toolCalls.length > 0 ? null : spoken, toolCalls: plan.toolCalls, finishReason: plan.finishReason },
        usage: usageOf(outputTokens),
        providerRequestId,
      };
    },
  };
}

type Plan = { readonly text: string; readonly toolCalls: readonly ToolCall[]; readonly finishReason: FinishReason };

const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 24);

/** Words with the blanks before them. */
const wordsOf = (text: string): readonly string[] => text.match(/\s*\S+|\s+$/g) ?? [];

const countWords = (text: string): number => text.match(/\S+/g)?.length ?? 0;

function promptWords({ messages, tools }: ModelRequest): number {
  const ofMessage = (message: ChatMessage): number =>
    countWords(textOf(message)) +
    (message.role === "assistant"
      ? (message.toolCalls ?? []).reduce((sum, call) => sum + countWords(call.name) + countWords(call.arguments), 0)
      : 0);
  const ofTool = (tool: ToolDefinition): number => countWords(tool.name) + countWords(tool.description ?? "");
  return [...messages.map(ofMessage), ...tools.map(ofTool)].reduce((sum, words) => sum + words, 0);
}

/** @throws {ModelCallError} `refused` for a response format that it cannot keep */
function planAnswer(provider: string, request: ModelRequest): Plan {
  const { messages, tools, settings } = request;
  const format = settings.responseFormat?.["type"] ?? "text";
  const refuse = refuseFor(provider, request);
  if (format !== "text" && format !== "json_object") throw refuse("response_format", "the demo model knows text and json_object");
  if (tools.some(({ custom }) => custom !== undefined)) throw refuse("tools", "the demo model knows no custom tools");
  for (const [name, isAsked] of Object.entries(beyondDemo(settings))) if (isAsked) throw refuse(name, "the demo model has no such setting");

  const lastUser = messages.findLastIndex((message) => message.role === "user");
  const question = messages[lastUser] === undefined ? "" : textOf(messages[lastUser]).trim();
  const since = messages.slice(lastUser + 1);
  const toolCalls = settings.toolChoice === "none" ? [] : plannedCalls(request, question, since);
  if (toolCalls.length > 0) return { text: "", toolCalls, finishReason: "tool_calls" };

  const answer = answerTo(question, tools, messages, since);
  return cut(format === "json_object" ? JSON.stringify({ demo_model: true, answer }) : answer, settings.maxTokens, settings.stop ?? []);
}

/** What a model would need to be one for. */
const beyondDemo = (settings: SamplingSettings): Readonly<Record<string, boolean>> => ({
  logprobs: settings.logprobs === true,
  logit_bias: Object.keys(settings.logitBias ?? {}).length > 0,
  prediction: settings.prediction !== undefined,
  verbosity: settings.verbosity !== undefined,
  web_search_options: settings.webSearch !== undefined,
});

/** The calls that the question asks for and that were not made yet. */
function plannedCalls(
  { callId, tools: offered, settings }: ModelRequest,
  question: string,
  since: readonly ChatMessage[],
): readonly ToolCall[] {
  const choice = settings.toolChoice;
  const tools = allowedTools(offered, choice);
  const isForced = choice === "required" || (typeof choice === "object" && ("name" in choice || choice.mode === "required"));
  const made = since.reduce((sum, message) => sum + (message.role === "assistant" ? (message.toolCalls?.length ?? 0) : 0), 0);
  const asked = commandsIn(question).flatMap((command) => {
    const tool = tools.find(({ name }) => name === command.tool);
    return tool === undefined ? [] : [{ tool, arguments: fitArguments(tool, command.arguments) }];
  });
  if (asked.length === 0 && made === 0 && isForced) {
    const forced = typeof choice === "object" && "name" in choice ? tools.find((tool) => tool.name === choice.name) : tools[0];
    if (forced !== undefined) asked.push({ tool: forced, arguments: sampleArguments(forced, question) });
  }
  const open = asked.slice(made, settings.parallelToolCalls === false ? made + 1 : undefined);
  return open.map(({ tool, arguments: given }, index) => ({
    id: `call_${digestOf(`${callId}:${index}`)}`,
    name: tool.name,
    arguments: JSON.stringify(given),
  }));
}

function answerTo(
  question: string,
  tools: readonly ToolDefinition[],
  messages: readonly ChatMessage[],
  since: readonly ChatMessage[],
): string {
  const results = since.filter((message) => message.role === "tool").map(textOf);
  const missing = commandsIn(question).filter((command) => !tools.some((tool) => tool.name === command.tool));
  const notOffered = [...new Set(missing.map((command) => command.tool))].map(
    (tool) => `The tool "${tool}" is not offered to me in this call.`,
  );
  if (results.length > 0)
    return [`${label} The ${results.length === 1 ? "tool" : "tools"} answered:`, ...results.map(fenced), ...notOffered].join("\n");
  if (notOffered.length > 0) return [label, ...notOffered].join(" ");
  if (/^\/?help[.!?]*$/i.test(question)) return help;
  const earlier = messages.filter((message) => message.role === "user" || message.role === "assistant").length - 1;
  const memory =
    earlier > 0
      ? `This session has ${earlier} earlier ${earlier === 1 ? "message" : "messages"}.`
      : "This session has no earlier messages.";
  if (question === "") return `${label} You sent no text. ${memory}`;
  return `${label} You said: ${question}\n${memory} Write "help" to see what I can do.`;
}

/** A tool's output as a Markdown code block, fenced by more backticks than it holds in a row. */
function fenced(output: string): string {
  const longest = Math.max(2, ...[...output.matchAll(/`+/g)].map(([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${output.replace(/\n$/, "")}\n${fence}`;
}

function cut(text: string, maxTokens: number | undefined, stop: readonly string[]): Plan {
  const stops = stop.filter((sequence) => sequence !== "").map((sequence) => text.indexOf(sequence));
  const stopsAt = Math.min(text.length, ...stops.filter((at) => at >= 0));
  const words = wordsOf(text.slice(0, stopsAt));
  if (maxTokens === undefined || words.length <= maxTokens) return { text: words.join(""), toolCalls: [], finishReason: "stop" };
  return { text: words.slice(0, maxTokens).join(""), toolCalls: [], finishReason: "length" };
}
