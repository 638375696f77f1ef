import { randomBytes } from "node:crypto";
import type { FastifyInstance, FastifyPluginAsync } from "fastify";
import { beforeAll, afterAll, describe, expect, test } from "vitest";
import pino from "pino";
import { type AdminScope, createAuthentication } from "../../control-plane/authentication.ts";
import { type MintedAdminKey, mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import { type TenantId, parseTenantId } from "../../domain/tenant.ts";
import { type Access, tenantOf } from "../../gateway/access.ts";
import { createGateway } from "../../gateway/gateway.ts";
import { openDatabase } from "../../storage/database.ts";
import { freshDatabase, quiet, temporaryHome } from "../storage/fresh-database.ts";
import { testTenants } from "../control-plane/control-stage.ts";
import { errorBody, gatewayStage } from "./gateway-stage.ts";

describe("credentials at the door", () => {
  let app: FastifyInstance;
  let close: () => Promise<void>;
  let acme: { readonly id: TenantId; readonly token: string };
  let suspended: { readonly token: string };
  const keys: Partial<Record<AdminScope, MintedAdminKey>> = {};
  const ran: string[] = [];

  beforeAll(async () => {
    const database = await openDatabase({ ownerUrl: await freshDatabase(), log: quiet });
    const { home, remove } = temporaryHome();
    const tenants = testTenants({ database, home });
    const named = async (name: string) => {
      const { tenant, token } = await tenants.create({ id: `${name}-${randomBytes(4).toString("hex")}` });
      return { id: tenant.id, token };
    };
    acme = await named("acme");
    const late = await named("late");
    suspended = late;
    await database.withControl((tx) => tx.execute("update control.tenant set state = 'suspended' where id = $1", [late.id]));
    for (const scope of ["read", "tenants", "billing", "all"] as const) {
      const key = mintAdminKey(scope);
      keys[scope] = key;
      await database.withControl((tx) =>
        tx.execute("insert into control.admin_key (id, hash, scopes) values ($1, $2, $3)", [key.keyId, key.hash, [scope]]),
      );
    }
    const authentication = createAuthentication({ database, log: quiet });
    app = await createGateway({
      authenticate: authentication.authenticate,
      logger: pino({ level: "silent" }),
      routes: [oneRoutePerAccess],
    });
    close = async () => {
      await app.close();
      await authentication.close();
      await database.close();
      remove();
    };
  });
  afterAll(async () => await close());

  const accesses: readonly Access[] = ["public", "tenant", "admin:read", "admin:tenants", "admin:billing", "tenant-or-admin:billing"];
  const oneRoutePerAccess: FastifyPluginAsync = async (routes) => {
    for (const access of accesses) {
      routes.post(`/${access.replace(":", "-")}/:tenant`, { config: { access } }, async (request) => {
        ran.push(access);
        return { principal: request.principal ?? null, tenant: access === "tenant" ? tenantOf(request) : null };
      });
    }
  };

  let callers = 0;
  const call = async (
    access: Access,
    authorization: string | undefined,
    payload: object | string = {},
    remoteAddress = `192.0.2.${++callers}`,
  ) =>
    await app.inject({
      method: "POST",
      remoteAddress,
      url: `/${access.replace(":", "-")}/${acme.id}?tenant=globex`,
      headers: { "content-type": "application/json", ...(authorization === undefined ? {} : { authorization }) },
      payload,
    });
  const bearers = {
    nobody: () => undefined,
    "a tenant": () => `Bearer ${acme.token}`,
    "a suspended tenant": () => `Bearer ${suspended.token}`,
    "a reading admin": () => `Bearer ${keys.read?.key}`,
    "a billing admin": () => `Bearer ${keys.billing?.key}`,
    "an admin of tenants": () => `Bearer ${keys.tenants?.key}`,
    "an admin of everything": () => `Bearer ${keys.all?.key}`,
  };

  const table: Readonly<Record<keyof typeof bearers, readonly number[]>> = {
    //                        public tenant read tenants billing either
    nobody: /*              */ [200, 401, 401, 401, 401, 401],
    "a tenant": /*          */ [200, 200, 403, 403, 403, 200],
    "a suspended tenant": /**/ [200, 403, 403, 403, 403, 403],
    "a reading admin": /*   */ [200, 401, 200, 403, 403, 403],
    "a billing admin": /*   */ [200, 401, 403, 403, 200, 200],
    "an admin of tenants": /**/ [200, 401, 403, 200, 403, 403],
    "an admin of everything": [200, 401, 200, 200, 200, 200],
  };
  const cases = Object.entries(table).flatMap(([who, row]) =>
    row.map((status, place) => [who as keyof typeof bearers, accesses[place] as Access, status] as const),
  );

  test.each(cases)("%s on a route for %s: %i", async (who, access, status) => {
    const before = ran.length;

    const answer = await call(access, bearers[who]());

    expect(answer.statusCode).toBe(status);
    expect(ran.length - before).toBe(status === 200 ? 1 : 0);
    if (status === 401) expect(answer.headers["www-authenticate"]).toBe("Bearer");
    if (status === 401) expect(answer.json()).toEqual(errorBody("invalid_api_key", { type: "invalid_request_error" }));
    if (status === 403)
      expect(answer.json()).toEqual(errorBody(who === "a suspended tenant" ? "tenant_suspended" : "forbidden", { type: "forbidden" }));
  });

  test("one body answers every bad credential: nothing tells them apart", async () => {
    const foreign = mintTenantToken(parseTenantId("nobody-here"));
    const bad = [
      undefined,
      "",
      "Bearer",
      "Bearer ",
      acme.token,
      `Basic ${Buffer.from(acme.token).toString("base64")}`,
      `Bearer ${acme.token}0`,
      `Bearer ${acme.token.slice(0, -1)}`,
      `Bearer ${acme.token.slice(0, -1)}${acme.token.endsWith("0") ? "1" : "0"}`,
      `Bearer ${acme.token} ${acme.token}`,
      `Bearer ${foreign.token}`,
      `Bearer ${mintAdminKey("all").key}`,
      `Bearer ${keys.all?.key}`, // an admin key is no key on a tenant's route
      `Bearer ${"x".repeat(10_000)}`,
      "Bearer tk_' or 1=1 --",
    ];

    const answers = await Promise.all(bad.map(async (authorization) => await call("tenant", authorization)));

    expect(new Set(answers.map(({ statusCode }) => statusCode))).toEqual(new Set([401]));
    expect(new Set(answers.map(({ body }) => body)).size).toBe(1);
  });

  test("the tenant is the token's, whatever path, query and body say", async () => {
    const answer = await call("tenant", bearers["a tenant"](), { tenant: "globex" });

    expect(answer.json()).toMatchObject({ tenant: { tenantId: acme.id, requestId: answer.headers["x-request-id"] } });
  });

  test("an address that failed twenty times in a minute is slowed, but never a valid credential, nor another address", async () => {
    const fail = async (address: string) => await call("tenant", "Bearer tk_guess", {}, address);
    for (let failure = 0; failure < 20; failure++) expect((await fail("198.51.100.1")).statusCode).toBe(401);

    const limited = await fail("198.51.100.1");

    expect(limited.statusCode).toBe(429);
    expect(limited.json()).toEqual(errorBody("rate_limited", { type: "rate_limited" }));
    expect(Number(limited.headers["retry-after"])).toBeGreaterThan(0);
    expect(Number(limited.headers["retry-after"])).toBeLessThanOrEqual(60);
    expect((await call("tenant", bearers["a tenant"](), {}, "198.51.100.1")).statusCode).toBe(200);
    expect((await fail("198.51.100.2")).statusCode).toBe(401);
  });

  test("nobody's body is read before his credential: a broken one is still answered 401", async () => {
    expect((await call("tenant", undefined, "{")).statusCode).toBe(401);
    expect((await call("admin:read", bearers["a tenant"](), "{")).statusCode).toBe(403);
    expect((await call("tenant", bearers["a tenant"](), "{")).statusCode).toBe(400);
  });
});

test("a route that does not say who may call it keeps the gateway from starting", async () => {
  const undeclared: FastifyPluginAsync = async (routes) => {
    routes.get("/v1/forgotten", async () => "open to the world");
  };

  await expect(gatewayStage(undeclared)).rejects.toThrow("route GET /v1/forgotten does not declare its access");
});

test("HEAD has its GET's access", async () => {
  const { app } = await gatewayStage(
    async (routes) => void routes.get("/v1/thing", { config: { access: "tenant" } }, async () => "secret"),
  );

  expect((await app.inject({ method: "HEAD", url: "/v1/thing" })).statusCode).toBe(401);
  expect((await app.inject({ method: "HEAD", url: "/v1/thing", headers: { authorization: "Bearer acme" } })).statusCode).toBe(200);
});
