import type { FastifyReply } from "fastify";

/** Server-sent events over the raw response, begun by the first one. */
export function createEventStream(reply: FastifyReply) {
  let isOpen = false;
  const { raw } = reply;
  const write = (text: string): void => {
    if (!raw.destroyed && !raw.writableEnded) raw.write(text);
  };
  return {
    isOpen: () => isOpen,
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
    end(withDone: boolean): void {
      if (withDone) write("data: [DONE]\n\n");
      raw.end();
    },
  };
}
