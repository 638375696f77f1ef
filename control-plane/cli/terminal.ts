import { once } from "node:events";
import type { Readable, Writable } from "node:stream";

/** Where a command writes, and what it may assume about the reader. */
export type Terminal = {
  /** The answer. Waits where the reader is slower. */
  write(text: string): Promise<void>;
  /** Remarks for a person, on stderr. */
  note(line: string): void;
  /** The present state of long work, on stderr: one line that is rewritten where a person watches. Undefined ends it. */
  progress(line: string | undefined): void;
  /** A program's own bytes, as they are. */
  pass(stream: "stdout" | "stderr", bytes: Uint8Array): Promise<void>;
  /** What was put into the command, to its end; nothing where a person would have to type it. @throws when it is more than `maxBytes` */
  input(maxBytes: number): Promise<Uint8Array>;
  /** Whether a person reads the answer: then tables and colour, else plain text. */
  readonly interactive: boolean;
  readonly colour: boolean;
};

type TerminalStreams = {
  readonly stdout: Writable & { readonly isTTY?: boolean };
  readonly stderr: Writable & { readonly isTTY?: boolean };
  /** Opened only by a command that reads it. Default: none. */
  readonly stdin?: () => Readable & { readonly isTTY?: boolean };
  readonly variables: Readonly<Record<string, string | undefined>>;
};

export function createTerminal({ stdout, stderr, stdin, variables }: TerminalStreams): Terminal {
  const interactive = stdout.isTTY === true;
  return {
    interactive,
    colour: interactive && !variables["NO_COLOR"] && variables["TERM"] !== "dumb",
    async write(text) {
      if (!stdout.write(interactive ? withoutControls(text) : text)) await once(stdout, "drain");
    },
    async pass(stream, bytes) {
      const into = stream === "stdout" ? stdout : stderr;
      if (!into.write(bytes)) await once(into, "drain");
    },
    async input(maxBytes) {
      const from = stdin?.();
      if (from === undefined || from.isTTY === true) return new Uint8Array();
      const chunks: Uint8Array[] = [];
      let size = 0;
      for await (const chunk of from as AsyncIterable<Uint8Array>) {
        size += chunk.length;
        if (size > maxBytes) throw new Error(`stdin has more than ${maxBytes} bytes`);
        chunks.push(chunk);
      }
      return Buffer.concat(chunks);
    },
    progress(line) {
      const text = line === undefined ? undefined : withoutControls(line);
      if (stderr.isTTY === true) stderr.write(text === undefined ? "\n" : `\r\u001b[K${text}`);
      else if (text !== undefined) stderr.write(`${text}\n`);
    },
    note(line) {
      stderr.write(`${withoutControls(line)}\n`);
    },
  };
}

/** Our own colours and nothing else: a model, a tenant's name or a server cannot move the cursor or set the window's title. */
// oxlint-disable-next-line no-control-regex -- controls are what this is about
const controls = /(\u001b\[(?:0|1|2|31|32|33)m)|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const withoutControls = (text: string): string => text.replace(controls, (_match, own: string | undefined) => own ?? "");

export type Colour = "bold" | "dim" | "red" | "green" | "yellow";
const colourCodes: Readonly<Record<Colour, number>> = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 };

export const paint = (terminal: Terminal, colour: Colour, text: string): string =>
  terminal.colour ? `\u001b[${colourCodes[colour]}m${text}\u001b[0m` : text;

export type Column<Row> = { readonly title: string; readonly align?: "right"; cell(row: Row): string };

/** A table for a person; tab-separated lines without a header for a script. */
export function tableText<Row>(terminal: Terminal, columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const cells = rows.map((row) => columns.map((column) => column.cell(row).replace(/[\t\r\n]/g, " ")));
  if (!terminal.interactive) return cells.map((line) => `${line.join("\t")}\n`).join("");
  const widths = columns.map(({ title }, index) => Math.max(title.length, ...cells.map((line) => line[index]?.length ?? 0)));
  const lineOf = (line: readonly string[]): string =>
    line
      .map((cell, index) => (columns[index]?.align === "right" ? cell.padStart(widths[index] ?? 0) : cell.padEnd(widths[index] ?? 0)))
      .join("  ")
      .trimEnd();
  return [paint(terminal, "bold", lineOf(columns.map(({ title }) => title))), ...cells.map(lineOf)].map((line) => `${line}\n`).join("");
}

export const jsonText = (value: unknown): string => `${JSON.stringify(value, undefined, 2)}\n`;
