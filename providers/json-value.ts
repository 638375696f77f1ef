/** A JSON object of somebody else's making: every field may be anything. */
export type JsonObject = Readonly<Record<string, unknown>>;

const nothing: JsonObject = {};

/** The value as an object whose fields can be looked at; an empty one for everything that is not an object. */
export const asObject = (value: unknown): JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : nothing;

export const asArray = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);

/** The value if it is a text that is not empty. */
export const asText = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : undefined);

/** The parsed text, undefined if it is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
