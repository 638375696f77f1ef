import type { Readable } from "node:stream";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { decodeOverlay, overlayMaxBytes } from "../control-plane/overlay.ts";
import type { Overlays } from "../control-plane/overlays.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { changeOptionsOf } from "./admin-change.ts";
import { tenantOfPath } from "./admin-path.ts";

export type OverlayDeps = { readonly tenants: Pick<Tenants, "get">; readonly overlays: Overlays };

const yamlTypes = ["application/yaml", "application/x-yaml", "text/yaml"];

/** Says that the text is not what the tenant's turns use now, and why; ASCII, as headers are. */
const faultHeader = "x-openclaw-overlay-fault";
const headerText = (text: string): string => text.replaceAll(/[^\x20-\x7e]/gu, "?").slice(0, 1_000);

/** The tenant's overlay as the YAML text that it is. */
export const createOverlayRoutes =
  ({ tenants, overlays }: OverlayDeps): FastifyPluginAsync =>
  async (app) => {
    app.removeAllContentTypeParsers();
    app.addContentTypeParser(yamlTypes, async (_request: unknown, body: Readable) => await readYaml(body));
    app.addContentTypeParser("*", async () => {
      throw notYaml();
    });

    const tenantIdOf = async (request: FastifyRequest): Promise<TenantId> => (await tenants.get(tenantOfPath(request))).id;

    app.get(
      "/v1/tenants/:tenant/overlay",
      { config: { access: "admin:read", describes: { summary: "The tenant's overlay as YAML" } } },
      async (request, reply) => {
        const { text, fault } = await overlays.textOf(await tenantIdOf(request));
        if (fault !== undefined) void reply.header(faultHeader, headerText(fault));
        return await reply.header("cache-control", "no-store").type("application/yaml; charset=utf-8").send(text);
      },
    );

    app.put(
      "/v1/tenants/:tenant/overlay",
      {
        config: {
          access: "admin:tenants",
          describes: { summary: "Replaces the tenant's overlay; a refused one changes nothing", bodyType: "application/yaml" },
        },
      },
      async (request, reply) => {
        if (typeof request.body !== "string") throw notYaml(); // without a content type there is no body: an accident must not empty an overlay
        const tenantId = await tenantIdOf(request);
        await overlays.write(tenantId, request.body, changeOptionsOf(request));
        return await reply.header("cache-control", "no-store").type("application/yaml; charset=utf-8").send(request.body);
      },
    );
  };

const notYaml = (): AppError =>
  new AppError("unsupported_media_type", { client: { message: "An overlay is sent as content type application/yaml." } });

/** @throws {AppError} `request_too_large`, `overlay_refused` */
async function readYaml(body: Readable): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  // The stream outlives a refusal: the rest of the body is read before the answer, or the client would meet a closed connection.
  for await (const chunk of body.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    if (size > overlayMaxBytes) throw new AppError("request_too_large", { client: { message: "An overlay has at most 64 KB." } });
    chunks.push(chunk);
  }
  return decodeOverlay(Buffer.concat(chunks));
}
