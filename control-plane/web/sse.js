/**
 * Server-sent events from bytes, as the HTML standard's "interpreting an event stream" says: line ends may be LF, CR or CRLF,
 * several `data` lines join with LF, comments are dropped, and an event that the stream's end cuts off does not count.
 *
 * @typedef {{ readonly event: string, readonly data: string, readonly id: string }} SseEvent
 */

/** Takes bytes cut anywhere, within a character or between CR and LF too, and gives the events that they complete. */
export class SseParser {
  #decoder = new TextDecoder(); // drops a byte order mark at the start
  #lineParts = /** @type {string[]} */ ([]);
  #sawCarriageReturn = false;
  #data = /** @type {string[]} */ ([]);
  #event = "";
  #id = "";

  /**
   * @param {Uint8Array} bytes
   * @returns {SseEvent[]}
   */
  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    /** @type {SseEvent[]} */
    const events = [];
    let start = 0;
    for (let at = 0; at < text.length; at += 1) {
      const code = text.charCodeAt(at);
      if (code !== lineFeed && code !== carriageReturn) {
        this.#sawCarriageReturn = false;
        continue;
      }
      if (code === lineFeed && this.#sawCarriageReturn) {
        this.#sawCarriageReturn = false; // the second half of CRLF
      } else {
        this.#sawCarriageReturn = code === carriageReturn;
        this.#lineParts.push(text.slice(start, at));
        this.#takeLine(this.#lineParts.join(""), events);
        this.#lineParts = [];
      }
      start = at + 1;
    }
    if (start < text.length) this.#lineParts.push(text.slice(start));
    return events;
  }

  /**
   * @param {string} line
   * @param {SseEvent[]} events
   */
  #takeLine(line, events) {
    if (line === "") return this.#dispatch(events);
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment, sent to keep the connection open
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
  }

  /** @param {SseEvent[]} events */
  #dispatch(events) {
    if (this.#data.length > 0) events.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
    this.#data = [];
    this.#event = "";
  }
}

const lineFeed = 10;
const carriageReturn = 13;

/**
 * The events of a response body, in order. Leaving the loop early cancels the stream.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<SseEvent, void, undefined>}
 */
export async function* readSse(body) {
  const parser = new SseParser();
  const reader = body.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield* parser.push(part.value);
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
