import type { FastifyInstance, FastifyPluginAsync, FastifyReply, FastifyRequest } from "fastify";
import type { Tenants } from "../../control-plane/tenants.ts";
import { tenantOf, tenantPrincipalOf } from "../access.ts";
import { idempotencyKeyOf } from "../idempotency-key.ts";
import { changeOptionsOf } from "../admin-change.ts";
import { tenantOfPath } from "../admin-path.ts";
import type { RpcEndpoint } from "./rpc-endpoint.ts";
import type { RpcCaller } from "./rpc-method.ts";

export type RpcRouteDeps = { readonly endpoint: RpcEndpoint; readonly tenants: Pick<Tenants, "get"> };

/**
 * JSON-RPC 2.0 over HTTP. What the protocol can answer is answered with status 200, or 204 when there is nothing to answer; who is
 * not let in, or sends something else than JSON, meets the errors of every other route.
 */
export const createRpcRoutes =
  ({ endpoint, tenants }: RpcRouteDeps): FastifyPluginAsync =>
  async (app) => {
    takeJsonAsText(app);

    app.post(
      "/rpc",
      { config: { access: "tenant", describes: { summary: "JSON-RPC 2.0; batches of at most 20", body: endpoint.message } } },
      async (request, reply) => {
        const { tokenHashPrefix } = tenantPrincipalOf(request);
        return await answer(request, reply, {
          context: tenantOf(request),
          actor: { type: "tenant", id: tokenHashPrefix },
          isSuspended: false,
          idempotencyKey: idempotencyKeyOf(request),
        });
      },
    );

    app.post(
      "/v1/tenants/:tenant/rpc",
      { config: { access: "admin:tenants", describes: { summary: "The methods of /rpc, for a tenant", body: endpoint.message } } },
      async (request, reply) => {
        const { actor } = changeOptionsOf(request);
        const { id, state } = await tenants.get(tenantOfPath(request));
        return await answer(request, reply, {
          context: { tenantId: id, requestId: request.id },
          actor,
          isSuspended: state !== "active",
          idempotencyKey: idempotencyKeyOf(request),
        });
      },
    );

    async function answer(request: FastifyRequest, reply: FastifyReply, caller: RpcCaller): Promise<FastifyReply> {
      const text = await endpoint.answer(typeof request.body === "string" ? request.body : "", caller);
      void reply.header("cache-control", "no-store");
      if (text === undefined) return await reply.code(204).send();
      return await reply.type("application/json; charset=utf-8").send(text);
    }
  };

/** The endpoint reads JSON itself: a message that is none gets JSON-RPC's own answer. */
function takeJsonAsText(app: FastifyInstance): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, body, done) => done(null, body));
}
