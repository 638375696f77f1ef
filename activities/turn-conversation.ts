import { charactersOf, charactersPerToken, isInstruction, newestThatFit } from "../domain/context-window.ts";
import type { ChatMessage, ModelReply } from "../domain/conversation.ts";
import type { PromptFile } from "../storage/prompt-files.ts";
import type { JournaledCall, ToolRun, TurnRow } from "../storage/turn-repository.ts";

type TurnSoFar = {
  readonly turn: TurnRow;
  readonly calls: readonly JournaledCall[];
  readonly toolRuns: readonly ToolRun[];
};

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
  const room = roomTokens * charactersPerToken - charactersOf([...instructions, ...own]);
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
