import { Agent, request } from "node:http";

/** What one turn took, from the first byte of the request. */
export type Timing = {
  readonly ms: number;
  /** To the first text of the answer, when it is streamed. */
  readonly firstTextMs: number | undefined;
};

/** Runs one turn for caller `caller`. @throws when the answer is not the right one */
export type Caller = (caller: number) => Promise<Timing>;

export type LoadOptions = {
  readonly callers: number;
  readonly seconds: number;
  /** Called when the measured time begins, which is when every caller has had one answer, and when it ends. */
  readonly mark: () => void;
};

export type LoadResult = {
  /** Of the turns that ended in the measured time. */
  readonly timings: readonly Timing[];
  readonly elapsedMs: number;
  /** All turns, the first one of each caller and the last ones too. */
  readonly turns: number;
};

/** A closed loop: each caller sends its next turn when it has the answer to the last one. Every turn that was begun is waited for. */
export async function runLoad(call: Caller, { callers, seconds, mark }: LoadOptions): Promise<LoadResult> {
  const timings: Timing[] = [];
  let turns = 0;
  let warm = 0;
  let state: "warming" | "measuring" | "over" = "warming";
  let startedAt = 0;
  let elapsedMs = 0;
  const over = Promise.withResolvers<void>();
  const begin = (): void => {
    state = "measuring";
    mark();
    startedAt = performance.now();
    setTimeout(() => {
      elapsedMs = performance.now() - startedAt;
      mark();
      state = "over";
      over.resolve();
    }, seconds * 1000);
  };
  const loop = async (caller: number): Promise<void> => {
    for (let isFirst = true; state !== "over"; isFirst = false) {
      const timing = await call(caller);
      turns++;
      if (state === "measuring") timings.push(timing);
      if (isFirst && ++warm === callers) begin();
    }
  };
  await Promise.all([...Array.from({ length: callers }, async (_, caller) => await loop(caller)), over.promise]);
  return { timings, elapsedMs, turns };
}

export type ChatOptions = {
  readonly url: string;
  /** Default: `/v1/chat/completions`. */
  readonly path?: string;
  readonly token: string;
  readonly model: string;
  readonly stream: boolean;
  readonly headersOf: (caller: number) => Readonly<Record<string, string>>;
};

const firstText = /"content": ?"[^"]/;
const agent = new Agent({ keepAlive: true }); // as many sockets as calls: nobody waits on this side

/** A chat completion over plain `node:http`: a client that costs little, since it shares the machine with what it measures. */
export function chatCaller({ url, path = "/v1/chat/completions", token, model, stream, headersOf }: ChatOptions): Caller {
  const { hostname, port } = new URL(url);
  const body = JSON.stringify({ model, stream, messages: [{ role: "user", content: "Say hello to the world." }] });
  return async (caller) =>
    await new Promise<Timing>((resolve, reject) => {
      const startedAt = performance.now();
      let text = "";
      let firstTextMs: number | undefined;
      const sent = request(
        {
          agent,
          hostname,
          port,
          path,
          method: "POST",
          headers: {
            authorization: `Bearer ${token}`,
            "content-type": "application/json",
            "content-length": Buffer.byteLength(body),
            ...headersOf(caller),
          },
        },
        (answer) => {
          answer.setEncoding("utf8");
          answer.on("data", (piece: string) => {
            text += piece;
            if (stream && firstTextMs === undefined && firstText.test(text)) firstTextMs = performance.now() - startedAt;
          });
          answer.on("error", reject);
          answer.on("end", () => {
            const isWhole = stream ? text.includes('"world."') && text.trimEnd().endsWith("data: [DONE]") : text.includes("Hello, world.");
            if (answer.statusCode === 200 && isWhole) resolve({ ms: performance.now() - startedAt, firstTextMs });
            else reject(new Error(`a turn answered ${answer.statusCode}: ${text.slice(0, 500)}`));
          });
        },
      );
      sent.on("error", reject);
      sent.end(body);
    });
}

/** Ends the callers' idle connections. */
export const closeConnections = (): void => agent.destroy();
