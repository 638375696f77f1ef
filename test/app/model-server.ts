import { mockTextOf } from "../fixtures/mock-openai-script.ts";
import { type MockCall, start } from "../fixtures/mock-openai-server.ts";

/** The deterministic provider, seen by what the last user message of a call says. */
export type ModelServer = {
  /** What goes into `base_url`. */
  readonly url: string;
  /** Makes calls with this question wait: before the first byte, or behind so many chunks. */
  hold(question: string, afterChunks?: number): HeldCall;
  callsOf(question: string): number;
  lastMessages(): readonly { role: string; content: unknown }[];
  /** The most tokens that the last call's answer was allowed. */
  lastCeiling(): number | undefined;
  allCalls(): number;
  close(): Promise<void>;
};

export type HeldCall = { readonly arrived: Promise<unknown>; release(): void; isReleased(): boolean };

const messagesOf = ({ body }: MockCall) => body["messages"] as readonly { role: string; content: unknown }[];
const questionOf = (call: MockCall): string => mockTextOf(messagesOf(call).findLast(({ role }) => role === "user")?.content);

export async function startModelServer(): Promise<ModelServer> {
  const server = await start();
  return {
    url: server.url,
    hold(question, afterChunks = 0) {
      const hold = server.control.hold({ when: (call) => questionOf(call) === question, afterChunks });
      let isReleased = false;
      return {
        arrived: hold.arrived,
        isReleased: () => isReleased,
        release() {
          isReleased = true;
          hold.release();
        },
      };
    },
    callsOf: (question) => server.calls().filter((call) => questionOf(call) === question).length,
    lastMessages() {
      const last = server.calls().at(-1);
      return last === undefined ? [] : messagesOf(last);
    },
    lastCeiling() {
      const body = server.calls().at(-1)?.body;
      return (body?.["max_completion_tokens"] ?? body?.["max_tokens"]) as number | undefined;
    },
    allCalls: () => server.calls().length,
    close: async () => await server.close(),
  };
}
