/** Where in a schema a fault lies, and what it is. */
export type SchemaFault = { readonly path: readonly string[]; readonly message: string };

type Schema = Readonly<Record<string, unknown>>;

/**
 * What keeps a JSON Schema from being followed to the letter, by OpenAI's rules for `strict`: every object names all its
 * properties as required and allows no others. Undefined where nothing does. Providers have more rules of their own.
 */
export function strictSchemaFault(schema: unknown, path: readonly string[] = []): SchemaFault | undefined {
  if (!isObject(schema)) return undefined;
  return ownFault(schema, path) ?? firstFault(subschemas(schema), path);
}

function ownFault(schema: Schema, path: readonly string[]): SchemaFault | undefined {
  const isObjectSchema = [schema["type"]].flat().includes("object") || isObject(schema["properties"]);
  if (path.length === 0 && schema["type"] !== "object" && schema["$ref"] === undefined)
    return { path, message: "the root must have the type 'object'" };
  if (!isObjectSchema) return undefined;
  if (schema["additionalProperties"] !== false) return { path, message: "'additionalProperties' must be given and be false" };
  const required = new Set(Array.isArray(schema["required"]) ? schema["required"] : []);
  const missing = Object.keys(isObject(schema["properties"]) ? schema["properties"] : {}).find((name) => !required.has(name));
  return missing === undefined ? undefined : { path, message: `'required' must name every property, '${missing.slice(0, 64)}' is missing` };
}

/** The schemas inside a schema, each with the steps that lead to it. */
function* subschemas(schema: Schema): Generator<readonly [readonly string[], unknown]> {
  for (const key of ["properties", "$defs", "definitions"]) {
    const named = schema[key];
    if (isObject(named)) for (const [name, inner] of Object.entries(named)) yield [[key, name], inner];
  }
  for (const key of ["anyOf", "allOf", "oneOf", "prefixItems"]) {
    const several = schema[key];
    if (Array.isArray(several)) for (const [place, inner] of several.entries()) yield [[key, String(place)], inner];
  }
  yield [["items"], schema["items"]];
}

function firstFault(inner: Iterable<readonly [readonly string[], unknown]>, path: readonly string[]): SchemaFault | undefined {
  for (const [steps, schema] of inner) {
    const fault = strictSchemaFault(schema, [...path, ...steps]);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

const isObject = (value: unknown): value is Schema => typeof value === "object" && value !== null && !Array.isArray(value);
