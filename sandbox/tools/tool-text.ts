/** What the model reads of one tool call, at most. */
export const MAX_CONTENT_BYTES = 64 * 1024;

/** Text from bytes; a character that a cut split at the end is left out. */
export function decodeText(bytes: Uint8Array, { cutAtEnd = false } = {}): string {
  return new TextDecoder().decode(bytes, { stream: cutAtEnd });
}

/** Beginning and end of a text that is too long, with a note of what is missing: the end is where errors are. */
export function cutMiddle(text: string, maxBytes: number): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= maxBytes) return text;
  const head = decodeText(bytes.subarray(0, maxBytes >> 1), { cutAtEnd: true });
  const tail = new TextDecoder().decode(skipBrokenStart(bytes.subarray(bytes.length - (maxBytes >> 1))));
  return `${head}\n[… ${bytes.length - maxBytes} bytes left out …]\n${tail}`;
}

/** Without the continuation bytes of a character that began before the cut. */
function skipBrokenStart(bytes: Uint8Array): Uint8Array {
  const start = bytes.findIndex((byte) => (byte & 0xc0) !== 0x80);
  return start === -1 ? bytes : bytes.subarray(start);
}

/** A file name as one line of text: one with control characters is quoted. */
export const showName = (name: string): string => (/[\p{Cc}"\\]/u.test(name) ? JSON.stringify(name) : name);
