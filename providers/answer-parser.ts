/** A piece of an answer: one server-sent event, or the whole body of a server that answered plain JSON. */
export type AnswerItem =
  | { readonly type: "event"; readonly event: string | undefined; readonly data: string }
  | { readonly type: "whole"; readonly data: string };

export type AnswerParser = {
  /** Takes the next characters of the body and gives what they completed. */
  push(text: string): readonly AnswerItem[];
  /** Takes the end of the body: an event without its closing blank line, or the JSON text. */
  end(): readonly AnswerItem[];
};

/**
 * Reads a body as server-sent events (lines end with LF, CR or CRLF, in any mixture and cut anywhere), or, if it begins with a
 * brace or bracket, as one JSON text: what a body is, it says itself; content types of compatible servers do not.
 * The SDKs' own stream readers are not used: they do not tell `[DONE]` from a connection that ended, which decides whether an
 * answer is whole, and they do not read plain JSON from a server that was asked to stream.
 */
export function createAnswerParser(): AnswerParser {
  let shape: "unknown" | "events" | "json" = "unknown";
  let pending: string[] = []; // pieces of the unfinished line, or of the JSON text
  let endedWithCarriageReturn = false;
  let event: string | undefined;
  let data: string[] = [];

  function takeLine(line: string): AnswerItem | undefined {
    if (line === "") {
      const item: AnswerItem | undefined = data.length === 0 ? undefined : { type: "event", event, data: data.join("\n") };
      event = undefined;
      data = [];
      return item;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    return undefined; // comments, ids and what nobody knows
  }

  function takeLines(text: string): readonly AnswerItem[] {
    const rest = endedWithCarriageReturn && text.startsWith("\n") ? text.slice(1) : text;
    if (text !== "") endedWithCarriageReturn = text.endsWith("\r");
    const lines = rest.split(/\r\n|\n|\r/);
    const last = lines.pop() ?? "";
    if (lines.length === 0) {
      pending.push(last);
      return [];
    }
    lines[0] = pending.join("") + (lines[0] ?? "");
    pending = [last];
    return lines.map(takeLine).filter((item) => item !== undefined);
  }

  return {
    push(text) {
      if (shape === "unknown") {
        const first = text.trimStart()[0];
        if (first !== undefined) shape = first === "{" || first === "[" ? "json" : "events";
      }
      if (shape !== "json") return takeLines(text);
      pending.push(text);
      return [];
    },
    end() {
      if (shape === "json") return [{ type: "whole", data: pending.join("") }];
      return takeLines("\n\n");
    },
  };
}
