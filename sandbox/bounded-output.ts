import type { Readable } from "node:stream";

/** A program that writes this many times what is kept is killed: it would only burn our time. */
const FLOOD_FACTOR = 4;

export type BoundedOutput = { readonly bytes: () => Uint8Array; readonly truncated: () => boolean; readonly ended: Promise<void> };

type OutputOptions = { readonly limitBytes: number; readonly onFlood: () => void; readonly onKept?: (chunk: Uint8Array) => void };

/** Keeps the first `limitBytes` of a stream, reads on past them, and calls `onFlood` when the program does not stop. */
export function keepOutput(stream: Readable, { limitBytes, onFlood, onKept }: OutputOptions): BoundedOutput {
  const chunks: Buffer[] = [];
  let seenBytes = 0;
  stream.on("data", (chunk: Buffer) => {
    const room = limitBytes - seenBytes;
    if (room > 0) {
      const kept = chunk.subarray(0, room);
      chunks.push(kept);
      onKept?.(kept);
    }
    seenBytes += chunk.length;
    if (seenBytes > limitBytes * FLOOD_FACTOR) onFlood();
  });
  const ended = new Promise<void>((resolve) => {
    // A sandbox that waited may have died meanwhile.
    if (stream.closed) resolve();
    stream.once("close", () => resolve());
    stream.on("error", () => stream.destroy());
  });
  return { bytes: () => Buffer.concat(chunks), truncated: () => seenBytes > limitBytes, ended };
}
