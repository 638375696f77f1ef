import type { FastifyInstance, FastifyReply } from "fastify";
import type { QuotaLeases } from "../control-plane/quota-leases.ts";
import type { TenantId } from "../domain/tenant.ts";

export type RateLimitDeps = { readonly quota: Pick<QuotaLeases, "standingOf"> };

/** `x-ratelimit-*` on every authenticated answer of a tenant (contract §3); absent where there is no ceiling. */
export function registerRateLimitHeaders(app: FastifyInstance, deps: RateLimitDeps): void {
  app.addHook("onSend", async (request, reply) => {
    if (request.principal?.kind === "tenant") await setRateLimitHeaders(deps, reply, request.principal.tenantId);
  });
}

/** For answers that are streamed past the framework. */
export async function setRateLimitHeaders({ quota }: RateLimitDeps, reply: FastifyReply, tenantId: TenantId): Promise<void> {
  const standing = await quota.standingOf(tenantId).catch(() => undefined); // a header is not worth an answer
  if (standing === undefined) return;
  for (const name of ["requests", "tokens"] as const) {
    const { limit, remaining, resetSeconds } = standing[name];
    if (limit === undefined || remaining === undefined) continue;
    void reply.header(`x-ratelimit-limit-${name}`, String(limit));
    void reply.header(`x-ratelimit-remaining-${name}`, String(Math.max(0, remaining)));
    void reply.header(`x-ratelimit-reset-${name}`, String(resetSeconds));
  }
}
