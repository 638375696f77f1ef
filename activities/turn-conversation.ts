import type { ChatMessage, ModelReply } from "../domain/conversation.ts";
import type { PromptFile } from "../storage/prompt-files.ts";
import type { JournaledCall, ToolRun, TurnRow } from "../storage/turn-repository.ts";

type TurnSoFar = {
  readonly turn: TurnRow;
  readonly calls: readonly JournaledCall[];
  readonly toolRuns: readonly ToolRun[];
};

/** Characters of a prompt per token when it is cut to the context window: low, so that it errs towards a shorter prompt. */
const charactersPerToken = 3;

/** What stands in front of a call in agent mode: the overlay's system prompt and the files of the tenant's memory. */
export function promptOf(systemPrompt: string | undefined, files: readonly PromptFile[]): string | undefined {
  const parts = [systemPrompt ?? "", ...files.map(({ name, text }) => `# ${name}\n\n${text}`)].filter((part) => part.trim() !== "");
  return parts.length === 0 ? undefined : parts.join("\n\n");
}

/** The messages of a model call: the tenant's prompt, instructions, transcript cut to the context window, the turn's own input, and its steps so far. */
export function composeMessages({
  prompt,
  transcript,
  model,
  ...soFar
}: TurnSoFar & {
  readonly prompt?: string | undefined;
  readonly transcript: readonly ChatMessage[];
  readonly model: { readonly contextWindow: number; readonly maxOutputTokens: number };
}): readonly ChatMessage[] {
  const { messages } = soFar.turn.request;
  const front: readonly ChatMessage[] = prompt === undefined ? [] : [{ role: "system", content: prompt }];
  const instructions = [...front, ...(soFar.turn.stateless ? [] : messages.filter(isInstruction))];
  const input = soFar.turn.stateless ? messages : messages.filter((message) => !isInstruction(message));
  const own = [...input, ...stepsOf(soFar)];
  const roomTokens = model.contextWindow - Math.min(model.maxOutputTokens, model.contextWindow / 2);
  const room = roomTokens * charactersPerToken - sizeOf([...instructions, ...own]);
  return [...instructions, ...newestThatFit(transcript, room), ...own];
}

/** What a finished turn adds to its session's transcript. */
export function transcriptOf({
  turn,
  earlier,
  toolRuns,
  reply,
}: {
  readonly turn: TurnRow;
  readonly earlier: readonly JournaledCall[];
  readonly toolRuns: readonly ToolRun[];
  readonly reply: ModelReply;
}): readonly ChatMessage[] {
  if (turn.stateless) return [];
  const input = turn.request.messages.filter((message) => !isInstruction(message));
  return [...input, ...stepsOf({ turn, calls: earlier, toolRuns }), assistantMessage(reply)];
}

const isInstruction = ({ role }: ChatMessage): boolean => role === "system" || role === "developer";

const assistantMessage = ({ content, toolCalls, refusal }: ModelReply): ChatMessage => ({
  role: "assistant",
  content,
  ...(refusal === undefined ? {} : { refusal }),
  ...(toolCalls.length === 0 ? {} : { toolCalls }),
});

function stepsOf({ calls, toolRuns }: TurnSoFar): readonly ChatMessage[] {
  return calls.flatMap(({ step, reply }) => [
    assistantMessage(reply),
    ...toolRuns.filter((run) => run.step === step).map(({ toolCallId, content }): ChatMessage => ({ role: "tool", toolCallId, content })),
  ]);
}

const sizeOf = (messages: readonly ChatMessage[]): number => messages.reduce((size, message) => size + JSON.stringify(message).length, 0);

/** The newest messages that fit, beginning with a user's: a provider refuses a tool's answer without the call before it. */
function newestThatFit(transcript: readonly ChatMessage[], room: number): readonly ChatMessage[] {
  let left = room;
  let first = transcript.length;
  for (let index = transcript.length - 1; index >= 0; index--) {
    const message = transcript[index];
    if (message === undefined) break;
    left -= sizeOf([message]);
    if (left < 0) break;
    if (message.role === "user") first = index;
  }
  return transcript.slice(first);
}
