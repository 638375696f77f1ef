import type { FastifyPluginAsync } from "fastify";

/** One thing that must work before the gateway takes traffic; resolves when it does, rejects with why it does not. */
export type ReadinessCheck = () => Promise<void>;

const checkTimeoutMs = 2_000;

export const createHealthRoutes =
  (checks: Readonly<Record<string, ReadinessCheck>>): FastifyPluginAsync =>
  async (app) => {
    app.get("/healthz", { config: { access: "public", describes: { summary: "Whether the process lives" } } }, async () => ({
      status: "ok",
    }));

    app.get(
      "/readyz",
      { config: { access: "public", describes: { summary: "Whether it can take traffic, check by check" } } },
      async (_request, reply) => {
        const readiness = await readinessOf(checks);
        return await reply.code(readiness.status === "ok" ? 200 : 503).send(readiness);
      },
    );
  };

export type Readiness = { readonly status: "ok" | "unavailable"; readonly checks: Record<string, "ok" | "failed"> };

export async function readinessOf(checks: Readonly<Record<string, ReadinessCheck>>): Promise<Readiness> {
  const results = await Promise.all(Object.entries(checks).map(async ([name, check]) => [name, await outcomeOf(check)] as const));
  const isReady = results.every(([, outcome]) => outcome === "ok");
  return { status: isReady ? "ok" : "unavailable", checks: Object.fromEntries(results) };
}

/** Only whether it works: why it does not stands in the log, not on a public page. */
async function outcomeOf(check: ReadinessCheck): Promise<"ok" | "failed"> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error("timed out")), checkTimeoutMs);
  try {
    await Promise.race([check(), late]);
    return "ok";
  } catch {
    return "failed";
  } finally {
    clearTimeout(timer);
  }
}
