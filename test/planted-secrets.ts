/** A planted secret in every form in which bytes that hold it may be stored: raw, hex, and base64 at each of its three alignments. */
const formsOf = (secret: string | Uint8Array): readonly Buffer[] => {
  const bytes = Buffer.from(secret);
  const base64 = [0, 1, 2].map((offset) => {
    const text = Buffer.concat([Buffer.alloc(offset), bytes]).toString("base64");
    return text.slice(offset === 0 ? 0 : 4, -4); // what stands before and behind it shares the characters at the edges
  });
  const hex = bytes.toString("hex");
  return [
    bytes,
    Buffer.from(hex),
    Buffer.from(hex.toUpperCase()),
    Buffer.from(bytes.toString("latin1"), "utf16le"),
    ...base64.map((text) => Buffer.from(text)),
  ];
};

/** @returns the names of the secrets that are in `bytes` in some form */
export function leaksIn(bytes: Uint8Array, secrets: Readonly<Record<string, string | Uint8Array>>): readonly string[] {
  const place = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Object.entries(secrets).flatMap(([name, secret]) => (formsOf(secret).some((form) => place.includes(form)) ? [name] : []));
}
