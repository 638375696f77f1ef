import type { FastifyReply } from "fastify";
import { answerTaken } from "./slow-readers.ts";

/** What may wait for a reader of a stream, in bytes, before nothing more is written to it. The kernel's own buffers come on top. */
const unreadBytes = 256 * 1024;

/** Server-sent events over the raw response, begun by the first one. */
export function createEventStream(reply: FastifyReply) {
  let isOpen = false;
  const { raw } = reply;
  const isGone = (): boolean => raw.destroyed || raw.writableEnded;
  const isFull = (): boolean => !isGone() && raw.writableLength > unreadBytes;
  const write = (text: string): void => {
    if (!isGone()) raw.write(text);
  };
  return {
    isOpen: () => isOpen,
    /** Whether so much waits for the reader that what can wait had better do so, too. */
    isFull,
    /** Calls `listener` whenever the reader has caught up. */
    onDrain: (listener: () => void): void => void raw.on("drain", listener),
    /** Resolves when there is room again, or nobody to read it. */
    async room(): Promise<void> {
      while (isFull()) {
        await new Promise<void>((resolve) => {
          const go = (): void => {
            raw.off("drain", go).off("close", go);
            resolve();
          };
          raw.on("drain", go).on("close", go);
        });
      }
    },
    /** `name` is the event's type, where the protocol names its events. */
    send(data: object, name?: string): void {
      if (!isOpen) {
        isOpen = true;
        reply.hijack();
        raw.writeHead(200, {
          ...(reply.getHeaders() as Record<string, string>),
          "content-type": "text/event-stream; charset=utf-8",
          "cache-control": "no-cache, no-transform",
          "x-accel-buffering": "no",
        });
      }
      write(`${name === undefined ? "" : `event: ${name}\n`}data: ${JSON.stringify(data)}\n\n`);
    },
    /** Resolves when the last of it has been taken, or the reader has left. */
    async end(withDone: boolean): Promise<void> {
      if (withDone) write("data: [DONE]\n\n");
      raw.end();
      await answerTaken(raw);
    },
  };
}
