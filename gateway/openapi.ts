import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Access } from "./access.ts";

/** What a route says of itself beside its method, path and access. The schemas are those that its handler parses with. */
export type RouteDescription = {
  readonly summary: string;
  readonly query?: z.ZodType;
  /** Headers beside the credential, by the names that the document shows. */
  readonly headers?: z.ZodType;
  readonly body?: z.ZodType;
  /** Default `application/json`. */
  readonly bodyType?: string;
};

declare module "fastify" {
  interface FastifyContextConfig {
    describes?: RouteDescription;
  }
}

type Route = { readonly method: string; readonly url: string; readonly access: Access; readonly describes: RouteDescription | undefined };

const methods: ReadonlySet<string> = new Set(["GET", "POST", "PUT", "PATCH", "DELETE"]);

/**
 * The API's own description, from the routes that are registered after this call: none can be forgotten, and none described that is
 * not there. A route's security is its declared access.
 */
export function registerOpenApi(app: FastifyInstance): void {
  const routes: Route[] = [];
  app.addHook("onRoute", ({ method, url, config }) => {
    for (const name of [method].flat()) {
      if (methods.has(name) && config?.access !== undefined)
        routes.push({ method: name.toLowerCase(), url, access: config.access, describes: config.describes });
    }
  });
  let document: string | undefined;
  app.get(
    "/openapi.json",
    { config: { access: "public", describes: { summary: "This description, OpenAPI 3.1" } } },
    async (_request, reply) => await reply.type("application/json; charset=utf-8").send((document ??= JSON.stringify(describe(routes)))),
  );
}

function describe(routes: readonly Route[]): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const route of routes) (paths[pathOf(route.url)] ??= {})[route.method] = operationOf(route);
  return {
    openapi: "3.1.0",
    info: { title: "OpenClawMU", version: "0.1.0", license: { name: "Apache-2.0", identifier: "Apache-2.0" } },
    paths,
    components: {
      securitySchemes: {
        tenantToken: { type: "http", scheme: "bearer", description: "tk_<tenant>_<32 hex>" },
        adminKey: { type: "http", scheme: "bearer", description: "ak_<key id>_<32 hex>; the scope stands in x-access" },
        adminCookie: { type: "apiKey", in: "cookie", name: "openclaw_admin" },
      },
      schemas: { Error: errorSchema },
      responses: {
        Error: { description: "An error of ours", content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } } },
      },
    },
  };
}

/** Fastify's `:name` and `*` as the document writes them. */
const pathOf = (url: string): string => url.replaceAll(/:(\w+)/g, "{$1}").replace(/\*$/, "{path}");

function operationOf({ method, url, access, describes }: Route): object {
  const names = [...url.matchAll(/:(\w+)/g)].map(([, name]) => name ?? "").concat(url.endsWith("*") ? ["path"] : []);
  const isRepeatable = (access.startsWith("admin:") && method !== "get") || (access === "tenant" && method === "post");
  return {
    operationId: `${method} ${pathOf(url)}`,
    ...(describes === undefined ? {} : { summary: describes.summary }),
    "x-access": access,
    security: securityOf(access),
    parameters: [
      ...names.map((name) => ({ name, in: "path", required: true, schema: { type: "string" } })),
      ...parametersOf("query", describes?.query),
      ...parametersOf("header", describes?.headers),
      ...(isRepeatable ? [{ name: "Idempotency-Key", in: "header", required: false, schema: { type: "string", maxLength: 255 } }] : []),
    ],
    ...(describes?.body === undefined && describes?.bodyType === undefined
      ? {}
      : {
          requestBody: {
            required: true,
            content: { [describes.bodyType ?? "application/json"]: { schema: schemaOf(describes.body) } },
          },
        }),
    responses: {
      "2XX": { description: "Done" },
      ...(access === "public" ? {} : { "401": { $ref: "#/components/responses/Error" }, "403": { $ref: "#/components/responses/Error" } }),
      default: { $ref: "#/components/responses/Error" },
    },
  };
}

function securityOf(access: Access): readonly object[] {
  const [who = ""] = access.split(":");
  switch (who) {
    case "tenant":
      return [{ tenantToken: [] }];
    case "tenant-or-admin":
      return [{ tenantToken: [] }, { adminKey: [] }];
    case "admin":
      return [{ adminKey: [] }];
    case "local-or-admin":
      return [{}, { adminKey: [] }];
    case "admin-page":
      return [{ adminCookie: [] }, { adminKey: [] }];
    default:
      return [];
  }
}

/** What a caller sends: transforms are ours, and what JSON Schema cannot say is left open. */
const schemaOf = (schema: z.ZodType | undefined): Record<string, unknown> => {
  if (schema === undefined) return { type: "string" };
  const { $schema: _dialect, ...body } = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" });
  return body;
};

function parametersOf(place: "query" | "header", schema: z.ZodType | undefined): readonly object[] {
  if (schema === undefined) return [];
  const { properties = {}, required = [] } = schemaOf(schema) as { properties?: Record<string, object>; required?: readonly string[] };
  return Object.entries(properties).map(([name, of]) => ({ name, in: place, required: required.includes(name), schema: of }));
}

const errorSchema = {
  type: "object",
  required: ["error"],
  properties: {
    error: {
      type: "object",
      required: ["message", "type", "param", "code"],
      properties: {
        message: { type: "string" },
        type: { type: "string" },
        param: { type: ["string", "null"] },
        code: { type: "string" },
      },
    },
  },
};
