import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";

/** One thing that the server does with an answer's body. */
export type WireStep =
  /** Bytes to send. */
  | string
  | Uint8Array
  /** Waits for the test. */
  | Promise<unknown>
  | typeof cut
  | typeof hang;

/** Ends the connection without ending the answer. */
export const cut = Symbol("cut");

/** Sends nothing more; the client has to leave. */
export const hang = Symbol("hang");

export type WireReply = {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly steps: readonly WireStep[];
};

export type SeenRequest = {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Record<string, unknown>;
  /** Which of the server's connections brought it, counted from 1. */
  readonly connection: number;
  /** Settles when the client left before the answer was whole. */
  readonly clientLeft: Promise<void>;
};

/** A provider that answers each request with the next reply of its script, byte for byte. */
export type WireServer = {
  readonly url: string;
  readonly requests: readonly SeenRequest[];
  answer(...replies: readonly WireReply[]): void;
  close(): Promise<void>;
};

export async function startWireServer(): Promise<WireServer> {
  const script: WireReply[] = [];
  const requests: SeenRequest[] = [];
  const connections = new Map<Socket, number>();
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const text = Buffer.concat(pieces).toString();
    const clientLeft = new Promise<void>((resolve) => response.once("close", () => response.writableFinished || resolve()));
    requests.push({
      method: request.method ?? "",
      url: request.url ?? "",
      headers: request.headers,
      body: text === "" ? {} : JSON.parse(text),
      connection: connections.get(request.socket) ?? 0,
      clientLeft,
    });
    await play(response, script.shift() ?? { status: 500, steps: ["no reply is left in the script"] });
  };
  const server = createServer((request, response) => void answer(request, response));
  server.on("connection", (socket) => connections.set(socket, connections.size + 1));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    answer: (...replies) => void script.push(...replies),
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

async function play(response: ServerResponse, { status = 200, headers = {}, steps }: WireReply): Promise<void> {
  response.on("error", () => undefined);
  response.writeHead(status, { "content-type": "text/event-stream", ...headers });
  response.flushHeaders();
  for (const step of steps) {
    if (response.destroyed) return;
    if (step === hang) return;
    if (step === cut) return void response.destroy();
    if (step instanceof Promise) await step;
    else await new Promise<void>((written) => response.write(step, () => written()));
  }
  response.end();
}

/** Each value as the data of a server-sent event. */
export const dataEvents = (...values: readonly unknown[]): string =>
  values.map((value) => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`).join("");

/** Each value as an event named by its type, as Anthropic sends them. */
export const namedEvents = (...values: readonly { readonly type: string; readonly [key: string]: unknown }[]): string =>
  values.map((value) => `event: ${value.type}\ndata: ${JSON.stringify(value)}\n\n`).join("");

/** The bytes of `text` in pieces of the given lengths, taken in turn: inside characters, inside line ends, anywhere. */
export function bytePieces(text: string, lengths: readonly number[]): Uint8Array[] {
  const bytes = Buffer.from(text);
  const pieces: Uint8Array[] = [];
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const length = lengths[turn % lengths.length] ?? 1;
    pieces.push(bytes.subarray(at, at + length));
    at += length;
  }
  return pieces;
}
