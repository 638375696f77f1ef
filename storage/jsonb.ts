/**
 * `value` as text for a jsonb binding. Postgres refuses the character NUL and lone surrogates inside jsonb, which any client, model
 * or program may send: they become U+FFFD, the replacement character.
 */
export function toJsonb(value: unknown): string {
  const text = JSON.stringify(value);
  return /\\u(0000|d[89a-f])/i.test(text) ? JSON.stringify(value, wellFormed) : text;
}

function wellFormed(_key: string, value: unknown): unknown {
  return typeof value === "string" ? value.toWellFormed().replaceAll("\0", "\uFFFD") : value;
}

/** `text` for a text binding, which refuses NUL as jsonb does. */
export const toStorableText = (text: string | undefined): string | undefined => text?.toWellFormed().replaceAll("\0", "\uFFFD");
