import { createHash, randomBytes } from "node:crypto";
import type { FastifyInstance, FastifyPluginAsync, LightMyRequestResponse } from "fastify";
import pino from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createAdminSessions } from "../../control-plane/admin-sessions.ts";
import { createAuthentication } from "../../control-plane/authentication.ts";
import { mintAdminKey } from "../../control-plane/credentials.ts";
import { createAdminLoginRoutes } from "../../gateway/admin-login-routes.ts";
import { createGateway } from "../../gateway/gateway.ts";
import { createPageRoutes } from "../../gateway/page-routes.ts";
import { openDatabase, type Database } from "../../storage/database.ts";
import { testTenants } from "../control-plane/control-stage.ts";
import { freshDatabase, quiet, runSql, temporaryHome } from "../storage/fresh-database.ts";

const host = "127.0.0.1:18789";
const origin = `http://${host}`;
const page = { accept: "text/html,application/xhtml+xml" };

describe("an administrator's browser", () => {
  let database: Database;
  let ownerUrl: string;
  let tenantToken: string;
  const closers: (() => Promise<unknown> | void)[] = [];
  const logged: string[] = [];
  const root = mintAdminKey("env");

  /** A gateway process: they share nothing but the database. */
  async function startGateway({ rootAdminKey }: { rootAdminKey?: string } = {}): Promise<FastifyInstance> {
    const authentication = createAuthentication({ database, rootAdminKey, log: quiet });
    const sessions = createAdminSessions({ database, rootAdminKey });
    const app = await createGateway({
      authenticate: authentication.authenticate,
      authenticateSession: async (id) => (await sessions.find(id)).principal,
      logger: pino({ level: "silent" }),
      routes: [
        createPageRoutes(),
        createAdminLoginRoutes({
          sessions,
          authenticate: authentication.authenticateCredential,
          log: (...entry) => void logged.push(JSON.stringify(entry)),
        }),
        someRoutes,
      ],
    });
    closers.push(
      () => app.close(),
      () => authentication.close(),
    );
    return app;
  }

  const someRoutes: FastifyPluginAsync = async (app) => {
    const answer = async () => ({ ran: true });
    app.get("/temporal", { config: { access: "admin-page:read" } }, answer);
    app.post("/temporal", { config: { access: "admin-page:read" } }, answer);
    app.get("/v1/things", { config: { access: "admin:read" } }, answer);
    app.post("/v1/things", { config: { access: "admin:all" } }, answer);
    app.get("/v1/mine", { config: { access: "tenant" } }, answer);
  };

  async function newKey(scopes: readonly string[] = ["all"]): Promise<{ readonly key: string; readonly id: string }> {
    const minted = mintAdminKey(`k${randomBytes(4).toString("hex")}`);
    await database.withControl((tx) =>
      tx.execute("insert into control.admin_key (id, hash, scopes) values ($1, $2, $3)", [minted.keyId, minted.hash, scopes]),
    );
    return { key: minted.key, id: minted.keyId };
  }

  const login = async (app: FastifyInstance, key: unknown, headers: Record<string, string> = {}): Promise<LightMyRequestResponse> =>
    await app.inject({
      method: "POST",
      url: "/admin/login",
      headers: { host, "content-type": "application/json", ...headers },
      payload: JSON.stringify({ key }),
    });

  const cookieOf = (answer: LightMyRequestResponse): string => String(answer.headers["set-cookie"]).split(";")[0] ?? "";

  async function signedIn(app: FastifyInstance, scopes?: readonly string[]) {
    const { key, id } = await newKey(scopes);
    const answer = await login(app, key);
    expect(answer.statusCode).toBe(200);
    return { key, id, cookie: cookieOf(answer) };
  }

  const get = async (app: FastifyInstance, url: string, headers: Record<string, string> = {}): Promise<number> =>
    (await app.inject({ url, headers: { host, ...headers } })).statusCode;
  const post = async (app: FastifyInstance, url: string, headers: Record<string, string> = {}): Promise<number> =>
    (await app.inject({ method: "POST", url, headers: { host, "content-type": "application/json", ...headers }, payload: "{}" }))
      .statusCode;

  let app: FastifyInstance;
  beforeAll(async () => {
    ownerUrl = await freshDatabase();
    database = await openDatabase({ ownerUrl, log: quiet });
    const { home, remove } = temporaryHome();
    const { token } = await testTenants({ database, home }).create({ id: `acme-${randomBytes(4).toString("hex")}` });
    tenantToken = token;
    app = await startGateway();
    closers.push(() => database.close(), remove);
  });
  afterAll(async () => {
    for (const close of closers) await close();
  });

  test("gets a cookie that no script reads and no other site sends, and of which only a hash is kept", async () => {
    const { key, id } = await newKey(["read"]);
    const answer = await login(app, key);
    const secret = cookieOf(answer).split("=")[1] ?? "";

    expect(answer.statusCode).toBe(200);
    expect(String(answer.headers["set-cookie"])).toBe(`openclaw_admin=${secret}; Max-Age=43200; Path=/; HttpOnly; SameSite=Strict`);
    expect(secret).toMatch(/^[A-Za-z0-9_-]{43}$/);
    expect(answer.json()).toEqual({ key_id: id, scopes: ["read"], expires_at: expect.any(String) });
    expect(answer.headers["cache-control"]).toBe("no-store");
    const { rows } = await runSql(
      ownerUrl,
      `select id_hash, table_to_xml('control.admin_session', true, false, '')::text as dump from control.admin_session where key_id = '${id}'`,
    );
    expect(rows[0].id_hash).toEqual(createHash("sha256").update(secret).digest());
    expect(rows[0].dump).not.toContain(secret);
    expect(logged.join("\n")).toContain(id);
    expect(logged.join("\n")).not.toContain(secret);
    expect(logged.join("\n")).not.toContain(key);
  });

  test("off this machine the cookie is bound to TLS and to the host", async () => {
    const { key } = await newKey();
    const answer = await login(app, key, { host: "gateway.example:443" });

    expect(String(answer.headers["set-cookie"])).toMatch(/^__Host-openclaw_admin=.*Path=\/; HttpOnly; Secure; SameSite=Strict$/);
    expect(await get(app, "/temporal", { cookie: cookieOf(answer), host: "gateway.example:443" })).toBe(200);
    expect(await get(app, "/temporal", { cookie: cookieOf(answer).replace("__Host-", ""), host: "gateway.example:443" })).toBe(401);
    expect(String((await login(app, key, { host: "127.evil.example" })).headers["set-cookie"])).toContain("Secure");
  });

  test("is let in by the cookie, and by a key itself", async () => {
    const { cookie, key } = await signedIn(app);

    expect(await get(app, "/temporal", { cookie })).toBe(200);
    expect(await get(app, "/temporal", { authorization: `Bearer ${key}` })).toBe(200);
    expect(await get(app, "/temporal", { cookie: `a=b; ${cookie}; c=d` })).toBe(200);
    expect((await app.inject({ url: "/admin/session", headers: { host, cookie } })).json()).toMatchObject({ scopes: ["all"] });
  });

  test("that is not signed in is shown the login, and its scripts are told 401", async () => {
    const answer = await app.inject({ url: "/temporal?query=a%20b", headers: { host, ...page } });

    expect([answer.statusCode, answer.headers.location]).toEqual([303, "/admin?next=%2Ftemporal%3Fquery%3Da%2520b"]);
    expect(await get(app, "/temporal", { "sec-fetch-mode": "cors", accept: "text/html" })).toBe(401);
    expect(await get(app, "/temporal")).toBe(401);
    expect(await get(app, "/temporal", { cookie: "openclaw_admin=" })).toBe(401);
    expect(await get(app, "/temporal", { cookie: `openclaw_admin=${"A".repeat(43)}` })).toBe(401);
    expect(await get(app, "/temporal", { cookie: `openclaw_admin=${"A".repeat(7_000)}` })).toBe(401);
    expect(await get(app, "/temporal", { cookie: "openclaw_admin=%00%ff; ;;=" })).toBe(401);
  });

  test.each([
    ["nothing", {}],
    ["a number", { key: 1 }],
    ["a scope of the caller's", { key: `ak_x_${"0".repeat(32)}`, scopes: ["all"] }],
  ])("cannot sign in with %s", async (_name, body) => {
    const answer = await app.inject({
      method: "POST",
      url: "/admin/login",
      headers: { host, "content-type": "application/json" },
      payload: JSON.stringify(body),
    });

    expect([answer.statusCode, answer.headers["set-cookie"]]).toEqual([400, undefined]);
  });

  test("cannot sign in with a tenant's token, and a tenant is refused at the pages", async () => {
    const answer = await login(app, tenantToken);

    expect([answer.statusCode, answer.headers["set-cookie"]]).toEqual([403, undefined]);
    expect(await get(app, "/temporal", { authorization: `Bearer ${tenantToken}` })).toBe(403);
    expect(await get(app, "/temporal", { ...page, authorization: `Bearer ${tenantToken}` })).toBe(403);
  });

  test("meets only what its key's scopes open", async () => {
    const { cookie } = await signedIn(app, ["billing"]);

    expect(await get(app, "/temporal", { cookie })).toBe(403);
    expect(await get(app, "/admin/session", { cookie })).toBe(200);
  });

  test("the cookie is no credential of the API, for nobody", async () => {
    const { cookie } = await signedIn(app);

    expect([await get(app, "/v1/things", { cookie }), await get(app, "/v1/mine", { cookie })]).toEqual([401, 401]);
    expect(await post(app, "/v1/things", { cookie, origin, "sec-fetch-site": "same-origin" })).toBe(401);
    expect(await get(app, "/v1/things", { cookie, authorization: `Bearer ${cookie.split("=")[1]}` })).toBe(401);
  });

  test("only a page of this gateway may act with it", async () => {
    const { cookie } = await signedIn(app);

    expect(await post(app, "/temporal", { cookie, origin })).toBe(200);
    expect(await post(app, "/temporal", { cookie, origin, "sec-fetch-site": "same-origin" })).toBe(200);
    const strangers = [
      {},
      { origin: "null" },
      { origin: "https://evil.example" },
      { origin: "http://127.0.0.1:3000" },
      { origin: `http://${host}.evil.example` },
      { origin: "not a url" },
      { origin, "sec-fetch-site": "same-site" },
      { origin, "sec-fetch-site": "cross-site" },
    ];
    expect(await Promise.all(strangers.map(async (headers) => await post(app, "/temporal", { cookie, ...headers })))).toEqual(
      strangers.map(() => 403),
    );
    expect(await post(app, "/admin/logout", { cookie, origin: "https://evil.example" })).toBe(403);
    const { key } = await newKey();
    expect((await login(app, key, { origin: "https://evil.example" })).statusCode).toBe(403);
  });

  test("signing out ends the session everywhere, also for whoever copied the cookie", async () => {
    const second = await startGateway();
    const { cookie } = await signedIn(app);
    expect(await get(second, "/temporal", { cookie })).toBe(200);

    const answer = await app.inject({ method: "POST", url: "/admin/logout", headers: { host, cookie, origin } });

    expect([answer.statusCode, String(answer.headers["set-cookie"])]).toEqual([204, expect.stringContaining("Max-Age=0")]);
    expect([await get(app, "/temporal", { cookie }), await get(second, "/temporal", { cookie })]).toEqual([401, 401]);
  });

  test("a revoked key ends its sessions at once in every process, and no other key's", async () => {
    const second = await startGateway();
    const { cookie, id } = await signedIn(app);
    const other = await signedIn(app);
    expect(await get(second, "/temporal", { cookie })).toBe(200);

    await database.withControl((tx) => tx.execute("update control.admin_key set revoked_at = now() where id = $1", [id]));

    expect([await get(app, "/temporal", { cookie }), await get(second, "/temporal", { cookie })]).toEqual([401, 401]);
    expect(await get(second, "/temporal", { cookie: other.cookie })).toBe(200);
  });

  test("a session is over after twelve hours", async () => {
    const { cookie, id } = await signedIn(app);
    await runSql(ownerUrl, `update control.admin_session set expires_at = now() - interval '1 second' where key_id = '${id}'`);

    expect(await get(app, "/temporal", { cookie })).toBe(401);
  });

  test("the process's own root key signs in where it is the root key, and nowhere else", async () => {
    const own = await startGateway({ rootAdminKey: root.key });
    const answer = await login(own, root.key);

    expect(answer.json()).toMatchObject({ key_id: "env", scopes: ["all"] });
    expect(await get(own, "/temporal", { cookie: cookieOf(answer) })).toBe(200);
    expect(await get(app, "/temporal", { cookie: cookieOf(answer) })).toBe(401);
  });

  test("failed logins count as failed authentications of their address, and a right key is not slowed by them", async () => {
    const fresh = await startGateway();
    const { key } = await newKey();
    const statuses = [];
    for (let n = 0; n < 21; n++) statuses.push((await login(fresh, `ak_nobody_${"0".repeat(32)}`)).statusCode);
    const refused = await login(fresh, "x");

    expect(statuses).toEqual([...Array.from({ length: 20 }, () => 401), 429]);
    expect([refused.statusCode, refused.headers["retry-after"]]).toEqual([429, expect.stringMatching(/^\d+$/)]);
    expect(await get(fresh, "/v1/things", { authorization: "Bearer wrong" })).toBe(429);
    expect((await login(fresh, key)).statusCode).toBe(200);
  });

  test("the login page needs nothing, and runs under the policy of all pages", async () => {
    const answer = await app.inject("/admin");

    expect(answer.statusCode).toBe(200);
    expect(String(answer.headers["content-security-policy"])).toContain("script-src 'self'");
    expect(answer.body).not.toMatch(/<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=/);
    expect((await app.inject("/admin.js")).statusCode).toBe(200);
  });
});
