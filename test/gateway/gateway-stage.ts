import type { AddressInfo } from "node:net";
import type { FastifyInstance, FastifyPluginAsync } from "fastify";
import pino from "pino";
import { expect, onTestFinished } from "vitest";
import type { Principal } from "../../control-plane/authentication.ts";
import { AppError } from "../../domain/app-error.ts";
import { parseTenantId } from "../../domain/tenant.ts";
import { createGateway } from "../../gateway/gateway.ts";
import type { EdgeOptions } from "../../gateway/http-edge.ts";
import type { TokenWatch } from "../../gateway/token-watch.ts";

export type GatewayStage = { readonly app: FastifyInstance; readonly logged: Record<string, unknown>[] };

/** A gateway with these routes behind `authenticate`, closed when the test ends; by default every bearer is the tenant of that name. */
export async function gatewayStage(
  route: FastifyPluginAsync,
  authenticate: (authorization: string | undefined) => Promise<Principal> = anyTenant,
  edge: EdgeOptions = {},
): Promise<GatewayStage> {
  const logged: Record<string, unknown>[] = [];
  const logger = pino({ level: "error" }, { write: (line: string) => void logged.push(JSON.parse(line)) });
  const app = await createGateway({ authenticate, logger, edge, routes: [route] });
  onTestFinished(async () => {
    app.server.closeAllConnections();
    await app.close();
  });
  return { app, logged };
}

async function anyTenant(authorization: string | undefined): Promise<Principal> {
  const [, name] = /^Bearer (.+)$/.exec(authorization ?? "") ?? [];
  if (name === undefined) throw new AppError("invalid_api_key");
  return { kind: "tenant", tenantId: parseTenantId(name), displayName: undefined, tokenHashPrefix: "00000000", tokenEpoch: 1 };
}

/** Listens on a free port. @returns the address */
export async function listening(app: FastifyInstance): Promise<{ readonly url: string; readonly port: number }> {
  await app.listen({ host: "127.0.0.1", port: 0 });
  const { port } = app.server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, port };
}

/** What an error of the contract looks like: all four keys, and nothing beside them. */
export const errorBody = (code: string, more: { type?: string; param?: string | null; message?: unknown } = {}) => ({
  error: { message: expect.stringMatching(/\S/), type: expect.any(String), param: null, code, ...more },
});

/** Tokens that nobody rotates. */
export const steadyTokens: TokenWatch = { watch: () => ({ ended: new Promise<never>(() => {}), stop() {} }) };
