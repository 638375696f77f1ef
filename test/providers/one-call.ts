import {
  ModelCallError,
  type ModelDelta,
  type ModelProvider,
  type ModelRequest,
  type ModelResult,
} from "../../providers/model-provider.ts";

export const someRequest = (over: Partial<ModelRequest> = {}): ModelRequest => ({
  model: "test-model",
  messages: [{ role: "user", content: "Hello there" }],
  tools: [],
  settings: {},
  callId: "trn_01JTEST0000000000000000000.0",
  ...over,
});

export type FinishedCall = { readonly deltas: readonly ModelDelta[]; readonly result: ModelResult };

export const finishCall = (provider: ModelProvider, request: ModelRequest = someRequest()): Promise<FinishedCall> =>
  drainCall(provider.call(request, new AbortController().signal));

export async function drainCall(call: AsyncGenerator<ModelDelta, ModelResult, undefined>): Promise<FinishedCall> {
  const deltas: ModelDelta[] = [];
  for (;;) {
    const next = await call.next();
    if (next.done) return { deltas, result: next.value };
    deltas.push(next.value);
  }
}

/** The error that a call ends with; a call that ends well is an error of the test. */
export async function failedCall(
  provider: ModelProvider,
  request: ModelRequest = someRequest(),
  signal = new AbortController().signal,
): Promise<ModelCallError> {
  return await failureOf(drainCall(provider.call(request, signal)));
}

export async function failureOf(call: Promise<unknown>): Promise<ModelCallError> {
  const outcome = await call.then(
    () => new Error("the call ended well"),
    (error: unknown) => error,
  );
  if (outcome instanceof ModelCallError) return outcome;
  throw outcome;
}

/** What the deltas say, put together as a client would. */
export function assemble(deltas: readonly ModelDelta[]): { text: string; toolCalls: { id: string; name: string; arguments: string }[] } {
  const toolCalls: { id: string; name: string; arguments: string }[] = [];
  let text = "";
  for (const delta of deltas) {
    if (delta.type === "text") text += delta.text;
    if (delta.type !== "tool_call") continue;
    const known = toolCalls[delta.index];
    if (known === undefined)
      toolCalls[delta.index] = { id: delta.id ?? "no id", name: delta.name ?? "no name", arguments: delta.arguments };
    else known.arguments += delta.arguments;
  }
  return { text, toolCalls };
}
