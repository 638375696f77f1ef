import type { Server, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import { finished } from "node:stream/promises";
import type { FastifyInstance } from "fastify";

export type SlowReaderOptions = {
  /** `http.slow_reader_seconds`: a connection on which something waits to be read, and of which nothing is taken for so long, is cut. */
  readonly seconds: number;
  readonly onCut: () => void;
};

export interface SlowReaders {
  /** Bytes that wait in this process for callers to read them. */
  unreadBytes(): number;
  stop(): void;
}

/** Resolves when the last byte of an answer has left this process, or its caller has. */
export async function answerTaken(response: ServerResponse): Promise<void> {
  await finished(response).catch(() => {});
}

const pieceBytes = 64 * 1024;

/**
 * Writes large bodies piece by piece: of one write nothing shows until the last of it has been taken, so that somebody who reads
 * steadily over a thin line would look like somebody who does not read.
 */
export function sendInPieces(app: FastifyInstance): void {
  app.addHook("onSend", async (request, reply, payload) => {
    if (typeof payload !== "string" || payload.length <= 4 * pieceBytes || request.method === "HEAD") return payload;
    const bytes = Buffer.from(payload);
    void reply.header("content-length", bytes.length);
    return Readable.from(piecesOf(bytes), { objectMode: false });
  });
}

function* piecesOf(bytes: Buffer): Generator<Buffer> {
  for (let start = 0; start < bytes.length; start += pieceBytes) yield bytes.subarray(start, start + pieceBytes);
}

type Progress = { readonly takenBytes: number; readonly sinceMs: number };

/** How often it is looked at, in parts of the time that a reader has. */
const looks = 8;

/** Cuts the connections of callers who do not read what they asked for: answers of any kind, streams and WebSockets. */
export function cutSlowReaders(server: Server, { seconds, onCut }: SlowReaderOptions): SlowReaders {
  const open = new Map<Socket, Progress>();
  server.on("connection", (socket: Socket) => {
    open.set(socket, { takenBytes: 0, sinceMs: performance.now() });
    socket.once("close", () => open.delete(socket));
  });

  const look = (): void => {
    const nowMs = performance.now();
    for (const [socket, { takenBytes, sinceMs }] of open) {
      const waiting = socket.writableLength;
      const taken = socket.bytesWritten - waiting;
      if (waiting === 0 || taken > takenBytes) open.set(socket, { takenBytes: taken, sinceMs: nowMs });
      else if (nowMs - sinceMs > seconds * 1_000) {
        onCut();
        socket.destroy();
      }
    }
  };
  const timer = setInterval(look, (seconds * 1_000) / looks);
  timer.unref();

  return {
    unreadBytes: () => [...open.keys()].reduce((sum, { writableLength }) => sum + writableLength, 0),
    stop: () => clearInterval(timer),
  };
}
