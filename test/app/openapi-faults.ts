import { z } from "zod";

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json => value !== null && typeof value === "object" && !Array.isArray(value);
const listOf = (value: unknown): readonly Json[] => (Array.isArray(value) ? value.filter(isObject) : []);

const methods = new Set(["get", "put", "post", "delete", "options", "head", "patch", "trace"]);
const operationKeys = new Set([
  ..."tags summary description externalDocs operationId parameters requestBody responses callbacks deprecated security servers".split(" "),
]);

/** What OpenAPI 3.1 does not allow in a document, in sentences; the parts of the specification that ours has. */
export function openApiFaults(document: Json): readonly string[] {
  const faults: string[] = [];
  const say = (place: string, what: string): void => void faults.push(`${place}: ${what}`);

  const pointed = (reference: string): unknown =>
    reference
      .replace(/^#\//, "")
      .split("/")
      .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"))
      .reduce<unknown>((value, part) => (isObject(value) ? value[part] : undefined), document);
  const look = (value: unknown, place: string): void => {
    if (Array.isArray(value)) for (const [n, entry] of value.entries()) look(entry, `${place}/${n}`);
    if (!isObject(value)) return;
    if (typeof value["$ref"] === "string" && pointed(value["$ref"]) === undefined) say(place, `${value["$ref"]} leads nowhere`);
    for (const [key, entry] of Object.entries(value)) look(entry, `${place}/${key}`);
  };
  const checkSchema = (schema: unknown, place: string): void => {
    if (!isObject(schema)) return say(place, "has no schema");
    try {
      if (schema["$ref"] === undefined) z.fromJSONSchema(schema);
    } catch (error) {
      say(place, String(error));
    }
  };
  const checkContent = (content: unknown, place: string): void => {
    if (!isObject(content) || Object.keys(content).length === 0) return say(place, "has no content");
    for (const [type, media] of Object.entries(content)) {
      if (!/^[a-z]+\/[a-z0-9.+-]+$/.test(type)) say(place, `${type} is no media type`);
      checkSchema(isObject(media) ? media["schema"] : undefined, `${place} ${type}`);
    }
  };

  look(document, "#");
  const { openapi, info, paths, components } = document;
  if (!/^3\.1\.\d+$/.test(String(openapi))) say("openapi", String(openapi));
  if (!isObject(info) || typeof info["title"] !== "string" || typeof info["version"] !== "string") say("info", "has no title or version");
  const schemes = isObject(components) && isObject(components["securitySchemes"]) ? components["securitySchemes"] : {};
  for (const [name, scheme] of Object.entries(schemes)) {
    const { type, scheme: how, in: where, name: what } = isObject(scheme) ? scheme : {};
    const isWhole =
      (type === "http" && typeof how === "string") || (type === "apiKey" && typeof where === "string" && typeof what === "string");
    if (!isWhole) say(`securitySchemes/${name}`, "is not whole");
  }
  for (const [name, schema] of Object.entries(isObject(components) && isObject(components["schemas"]) ? components["schemas"] : {}))
    checkSchema(schema, `schemas/${name}`);

  const ids = new Set<unknown>();
  const templates = new Set<string>();
  for (const [path, item] of Object.entries(isObject(paths) ? paths : {})) {
    if (!path.startsWith("/") || /[:*]/.test(path)) say(path, "is no path template");
    const template = path.replaceAll(/\{[^}]*\}/g, "{}");
    if (templates.has(template)) say(path, "is there twice");
    templates.add(template);
    for (const [method, operation] of Object.entries(isObject(item) ? item : {})) {
      const place = `${method} ${path}`;
      if (!methods.has(method) || !isObject(operation)) {
        say(place, "is no operation");
        continue;
      }
      for (const key of Object.keys(operation)) if (!operationKeys.has(key) && !key.startsWith("x-")) say(place, `does not know ${key}`);
      if (ids.has(operation["operationId"])) say(place, "has another's operationId");
      ids.add(operation["operationId"]);

      const parameters = listOf(operation["parameters"]);
      const names = parameters.map((parameter) => `${String(parameter["in"])} ${String(parameter["name"])}`);
      if (new Set(names).size !== names.length) say(place, "has a parameter twice");
      const inPath = parameters.filter((parameter) => parameter["in"] === "path").map(({ name }) => name);
      const wanted = [...path.matchAll(/\{([^}]+)\}/g)].map(([, name]) => name);
      if (inPath.length !== wanted.length || !wanted.every((name) => inPath.includes(name)))
        say(place, "does not declare the path's parameters");
      for (const parameter of parameters) {
        if (!["path", "query", "header", "cookie"].includes(String(parameter["in"]))) say(place, "has a parameter nowhere");
        if (parameter["in"] === "path" && parameter["required"] !== true) say(place, "has a path's parameter that is not required");
        checkSchema(parameter["schema"], `${place} ${String(parameter["name"])}`);
      }
      const body = operation["requestBody"];
      if (body !== undefined) {
        if (method === "get") say(place, "has a body");
        checkContent(isObject(body) ? body["content"] : undefined, `${place} body`);
      }
      const responses = isObject(operation["responses"]) ? operation["responses"] : {};
      if (Object.keys(responses).length === 0) say(place, "has no responses");
      for (const [status, response] of Object.entries(responses)) {
        if (!/^(?:[1-5](?:\d\d|XX)|default)$/.test(status)) say(place, `${status} is no status`);
        if (!isObject(response) || (response["$ref"] === undefined && typeof response["description"] !== "string"))
          say(place, `${status} is not described`);
      }
      if (JSON.stringify(responses["default"]) !== JSON.stringify({ $ref: "#/components/responses/Error" }))
        say(place, "does not tell how it fails");
      for (const requirement of listOf(operation["security"]))
        for (const name of Object.keys(requirement)) if (!Object.hasOwn(schemes, name)) say(place, `does not know the credential ${name}`);
    }
  }
  return faults;
}
