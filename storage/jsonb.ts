/**
 * `value` as text for a jsonb binding. Postgres refuses the character NUL and lone surrogates inside jsonb, in keys as in values,
 * which any client, model or program may send: they become U+FFFD, the replacement character.
 */
export function toJsonb(value: unknown): string {
  const text = JSON.stringify(value);
  return /\\u(0000|d[89a-f])/i.test(text) ? JSON.stringify(storable(JSON.parse(text))) : text;
}

function storable(value: unknown): unknown {
  if (typeof value === "string") return storableText(value);
  if (Array.isArray(value)) return value.map(storable);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, held]) => [storableText(key), storable(held)]));
}

const storableText = (text: string): string => text.toWellFormed().replaceAll("\0", "\uFFFD");

/** `text` for a text binding, which refuses NUL as jsonb does. */
export const toStorableText = (text: string | undefined): string | undefined => (text === undefined ? undefined : storableText(text));
