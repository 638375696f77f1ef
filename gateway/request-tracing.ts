import type { IncomingHttpHeaders } from "node:http";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { TenantId } from "../domain/tenant.ts";

/** One request as a trace sees it. */
export type TracedRequest = {
  /** Runs what belongs to the request. */
  run(work: () => void): void;
  end(answer: { readonly status: number; readonly tenantId: TenantId | undefined }): void;
};

export type RequestTracing = {
  /** @param route the pattern, never the path, which holds what callers like */
  began(request: { readonly method: string; readonly route: string; readonly headers: IncomingHttpHeaders }): TracedRequest;
};

/** Requests of the API; probes, metrics and pages would only hide them. */
const isTraced = (route: string | undefined): route is string => route !== undefined && /^\/(v1|rpc)(\/|$)/.test(route);

/** Before authentication, so that a refused request is in the trace of whoever sent it. */
export function registerTracing(app: FastifyInstance, tracing: RequestTracing): void {
  const traced = new WeakMap<FastifyRequest, TracedRequest>();
  app.addHook("onRequest", async (request) => {
    const { url: route } = request.routeOptions;
    if (isTraced(route)) traced.set(request, tracing.began({ method: request.method, route, headers: request.headers }));
  });
  // A body is read in the context of its connection, so the request's is entered behind that.
  app.addHook("preHandler", (request, _reply, done) => {
    const span = traced.get(request);
    if (span === undefined) done();
    else span.run(done);
  });
  app.addHook("onResponse", async (request, reply) =>
    traced
      .get(request)
      ?.end({ status: reply.statusCode, tenantId: request.principal?.kind === "tenant" ? request.principal.tenantId : undefined }),
  );
}
