import type { FastifyPluginAsync } from "fastify";
import { AppError } from "../domain/app-error.ts";
import { isLocalProgram } from "./http-edge.ts";

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
      async (request, reply) => {
        const { readiness, reasons } = await lookAt(checks);
        const shown = isLocalProgram(request) && Object.keys(reasons).length > 0 ? { ...readiness, reasons } : readiness;
        return await reply.code(readiness.status === "ok" ? 200 : 503).send(shown);
      },
    );
  };

export type Readiness = { readonly status: "ok" | "unavailable"; readonly checks: Record<string, "ok" | "failed"> };

/** Only whether it works: why it does not stands in the log, not on a public page. */
export const readinessOf = async (checks: Readonly<Record<string, ReadinessCheck>>): Promise<Readiness> => (await lookAt(checks)).readiness;

/** `reasons`: what the operator has to mend in `config.yaml`, for programs of this machine. */
async function lookAt(
  checks: Readonly<Record<string, ReadinessCheck>>,
): Promise<{ readonly readiness: Readiness; readonly reasons: Readonly<Record<string, string>> }> {
  const results = await Promise.all(Object.entries(checks).map(async ([name, check]) => [name, await outcomeOf(check)] as const));
  const isReady = results.every(([, { state }]) => state === "ok");
  return {
    readiness: { status: isReady ? "ok" : "unavailable", checks: Object.fromEntries(results.map(([name, { state }]) => [name, state])) },
    reasons: Object.fromEntries(results.flatMap(([name, { reason }]) => (reason === undefined ? [] : [[name, reason]]))),
  };
}

async function outcomeOf(check: ReadinessCheck): Promise<{ readonly state: "ok" | "failed"; readonly reason?: string }> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error("timed out")), checkTimeoutMs);
  try {
    await Promise.race([check(), late]);
    return { state: "ok" };
  } catch (error) {
    return error instanceof AppError && error.code === "invalid_configuration"
      ? { state: "failed", reason: error.message }
      : { state: "failed" };
  } finally {
    clearTimeout(timer);
  }
}
