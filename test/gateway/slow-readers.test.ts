import { once } from "node:events";
import { type Socket, connect } from "node:net";
import type { FastifyInstance } from "fastify";
import { describe, expect, test } from "vitest";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { gatewayStage, listening } from "./gateway-stage.ts";
import { chatBody, chatHeaders, chatStage, done, scriptedTurns, textEvents } from "./scripted-turns.ts";

/** The kernel takes some megabytes for a reader who does not read: these are more, as events. */
const words = Array.from({ length: 60_000 }, (_, n) => `w${n} `);
const whole = words.join("");

/** The gateway's side of the connections to it. */
function socketsOf(app: FastifyInstance): readonly Socket[] {
  const sockets: Socket[] = [];
  app.server.on("connection", (socket: Socket) => void sockets.push(socket));
  return sockets;
}

/** Asks over a socket of its own, which is not read before `read` is called. */
async function unreadCall(port: number, path: string, payload: string) {
  const socket = connect(port, "127.0.0.1");
  await once(socket, "connect");
  socket.pause();
  const head = Object.entries({ ...chatHeaders, host: "x", connection: "close", "content-length": Buffer.byteLength(payload) });
  socket.write(`POST ${path} HTTP/1.1\r\n${head.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n${payload}`);
  return {
    socket,
    async read(): Promise<string> {
      let text = "";
      socket.setEncoding("utf8").on("data", (piece: string) => (text += piece));
      socket.resume();
      await once(socket, "close");
      return text;
    },
  };
}

/** The text of the chunks of a raw answer, and how many brought some. */
function spoken(raw: string): { readonly text: string; readonly chunks: number } {
  const deltas = [...raw.matchAll(/^data: (\{.*\})$/gm)].map(([, json]) => JSON.parse(json ?? "").choices?.[0]?.delta?.content ?? "");
  const pieces = deltas.filter((piece) => piece !== "");
  return { text: pieces.join(""), chunks: pieces.length };
}

describe("a caller who does not read his stream", () => {
  test("makes the gateway keep no more than a bound, and gets all of it in larger pieces when he reads", async () => {
    const { promise: isRead, resolve: readNow } = Promise.withResolvers<void>();
    const { promise: isSaid, resolve: said } = Promise.withResolvers<void>();
    const turns = scriptedTurns(async (emit) => {
      for (const event of textEvents(...words)) emit(event);
      said();
      await isRead;
      return done({ content: `${whole}The end.` });
    });
    const { app } = await chatStage(turns);
    const sockets = socketsOf(app);
    const { port } = await listening(app);
    const call = await unreadCall(port, "/v1/chat/completions", chatBody({ stream: true }));
    await isSaid;
    expect(sockets[0]?.writableLength).toBeGreaterThan(0);
    expect(sockets[0]?.writableLength).toBeLessThan(300_000);

    const reading = call.read();
    readNow();
    const answer = await reading;
    const { text, chunks } = spoken(answer);
    expect(text).toBe(`${whole}The end.`);
    expect(chunks).toBeLessThan(words.length / 10);
    expect(answer).toContain("data: [DONE]");
  });

  test("hears what was said meanwhile as soon as he has caught up, and each word behind it at once", async () => {
    const { promise: isHeard, resolve: heard } = Promise.withResolvers<void>();
    const turns = scriptedTurns(async (emit) => {
      for (const event of textEvents(...words)) emit(event);
      await isHeard; // were the rest held back until the end, the call would never end
      emit({ type: "text", offset: whole.length, text: "The end." });
      return done({ content: `${whole}The end.` });
    });
    const { app } = await chatStage(turns);
    const { url } = await listening(app);
    const answer = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers: chatHeaders, body: chatBody({ stream: true }) });
    let body = "";
    for await (const bytes of (answer.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
      body += bytes;
      if (bytes.includes(words.at(-1) ?? "")) heard();
    }
    expect(spoken(body).text).toBe(`${whole}The end.`);
  });

  test("gets a tool's arguments and an error behind what was said, none of it lost", async () => {
    const { promise: isSaid, resolve: said } = Promise.withResolvers<void>();
    const { promise: isRead, resolve: readNow } = Promise.withResolvers<void>();
    const pieces = Array.from({ length: 40_000 }, (_, n) => `${n},`);
    const turns = scriptedTurns(async (emit) => {
      const start: TurnEvent = { type: "tool_call", index: 0, id: "call_1", name: "count", arguments: "" };
      emit(start);
      for (const piece of pieces) emit({ type: "tool_call", index: 0, arguments: piece });
      said();
      await isRead;
      return { state: "failed", error: { code: "provider_error", message: "gone" } };
    });
    const { app } = await chatStage(turns);
    const { port } = await listening(app);
    const call = await unreadCall(port, "/v1/chat/completions", chatBody({ stream: true }));
    await isSaid;
    const reading = call.read();
    readNow();
    const raw = await reading;
    const data = [...raw.matchAll(/^data: (\{.*\})$/gm)].map(([, json]) => JSON.parse(json ?? ""));
    expect(data.map(({ choices }) => choices?.[0]?.delta?.tool_calls?.[0]?.function?.arguments ?? "").join("")).toBe(pieces.join(""));
    expect(data.at(-1)).toMatchObject({ error: { code: "provider_error" } });
  });

  test("is cut when he takes nothing for the configured time, and his turn ends all the same", async () => {
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const turns = scriptedTurns(async (emit) => {
      for (const event of textEvents(...words, "x".repeat(12_000_000))) emit(event);
      await ended;
      return done({ content: whole });
    });
    const { app } = await chatStage(turns, "", { slowReaderSeconds: 1 });
    const [sockets, { port }] = [socketsOf(app), await listening(app)];
    const call = await unreadCall(port, "/v1/chat/completions", chatBody({ stream: true }));
    while (sockets.length === 0) await once(app.server, "connection");
    await once(sockets[0] as Socket, "close");
    end();
    const raw = await call.read();
    expect(raw).toContain("w0 ");
    expect(raw).not.toContain("[DONE]");
  });
});

describe("a large answer that is no stream", () => {
  const large = { text: "x".repeat(36_000_000) };
  const largeRoute = async (app: FastifyInstance): Promise<void> => {
    app.post("/large", { config: { access: "tenant" } }, async () => large);
  };

  test("comes whole, with its length, to somebody who reads it over a thin line for longer than the limit", async () => {
    const { app } = await gatewayStage(largeRoute, undefined, { slowReaderSeconds: 1 });
    const { port } = await listening(app);
    const { socket } = await unreadCall(port, "/large", "{}");
    let [taken, head] = [0, ""];
    const line = setInterval(() => {
      const piece: Buffer | null = socket.read(Math.min(32_768, Math.max(1, socket.readableLength)));
      if (taken === 0 && piece !== null) head = piece.toString("latin1", 0, 2_000);
      taken += piece?.length ?? 0;
    }, 2);
    await once(socket, "close");
    clearInterval(line);
    const length = Number(/content-length: (\d+)/i.exec(head)?.[1]);
    expect(length).toBe(JSON.stringify(large).length);
    expect(taken - head.indexOf("\r\n\r\n") - 4).toBe(length);
  });

  test("is not kept for somebody who does not read it", async () => {
    const { app } = await gatewayStage(largeRoute, undefined, { slowReaderSeconds: 1 });
    const [sockets, { port }] = [socketsOf(app), await listening(app)];
    await unreadCall(port, "/large", "{}");
    while (sockets.length === 0) await once(app.server, "connection");
    await once(sockets[0] as Socket, "close");
    expect(sockets[0]?.destroyed).toBe(true);
  });
});
