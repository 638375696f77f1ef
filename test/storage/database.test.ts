import { describe, expect, onTestFinished, test } from "vitest";
import { tenantSchemaOf, type TenantContext } from "../../domain/tenant.ts";
import { openDatabase, type Database, type TenantTx } from "../../storage/database.ts";
import { databaseWith, freshDatabase, quiet, runSql, someTenant } from "./fresh-database.ts";

const schemaOf = ({ tenantId }: TenantContext): string => tenantSchemaOf(tenantId);

const addSession = (database: Database, tenant: TenantContext, id: string): Promise<number> =>
  database.withTenant(tenant, (tx) => tx.execute("insert into session (id, channel) values ($1, 'api')", [id]));

const insertLedgerRow = (
  tx: TenantTx,
  row: { id: string; tenantId: string; at?: string; cost?: bigint; input?: number },
): Promise<number> =>
  tx.execute(
    `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens, cache_write_tokens,
       output_tokens, reasoning_tokens, tool_calls, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
     values ($1, $2, 'api:a:default', $3, 'demo', 'chat', $4, 7, 5, 20, 3, 1, $5, $5, 0, 'card') on conflict (id) do nothing`,
    [row.id, row.tenantId, row.at ?? "2026-06-03T10:00:00Z", row.input ?? 100, row.cost ?? 9_007_199_254_740_993n],
  );

/** Two tenants with a secret each, on a pool of one connection, so that every call is the next user of the last one's connection. */
const acmeAndGlobex = async (): Promise<{ database: Database; acme: TenantContext; globex: TenantContext; ownerUrl: string }> => {
  const { database, ownerUrl, tenants } = await databaseWith({ poolSize: 1 }, "acme", "globex");
  const [acme, globex] = tenants;
  await addSession(database, acme, "secret of acme");
  await addSession(database, globex, "secret of globex");
  return { database, acme, globex, ownerUrl };
};

const sessionsSeenBy = (database: Database, tenant: TenantContext, sql = "select id from session"): Promise<{ id: string }[]> =>
  database.withTenant(tenant, (tx) => tx.query<{ id: string }>(sql));

describe("a forgotten tenant cannot leak", () => {
  test("1: without a tenant, an unqualified name is nothing", async () => {
    const { database } = await acmeAndGlobex();

    await expect(database.withControl((tx) => tx.query("select * from session"))).rejects.toMatchObject({ code: "42P01" });
  });

  test("2: without a tenant, a qualified name is denied", async () => {
    const { database, acme } = await acmeAndGlobex();

    await expect(database.withControl((tx) => tx.query(`select * from ${schemaOf(acme)}.session`))).rejects.toMatchObject({
      code: "42501",
    });
  });

  test("3: a forgotten filter shows the tenant's own rows", async () => {
    const { database, acme, globex } = await acmeAndGlobex();

    expect(await sessionsSeenBy(database, acme)).toEqual([{ id: "secret of acme" }]);
    expect(await sessionsSeenBy(database, globex)).toEqual([{ id: "secret of globex" }]);
  });

  test("4: another tenant's qualified name is denied", async () => {
    const { database, acme, globex } = await acmeAndGlobex();

    await expect(sessionsSeenBy(database, acme, `select id from ${schemaOf(globex)}.session`)).rejects.toMatchObject({ code: "42501" });
  });

  test("5: another tenant's search_path finds nothing", async () => {
    const { database, acme, globex } = await acmeAndGlobex();

    const seen = database.withTenant(acme, async (tx) => {
      await tx.query(`set local search_path = ${schemaOf(globex)}`);
      return tx.query("select id from session");
    });

    await expect(seen).rejects.toMatchObject({ code: "42P01" });
  });

  test("6: statements cannot be stacked, so an injected SET ROLE does not come along with a value", async () => {
    const { database, acme, globex } = await acmeAndGlobex();

    await expect(sessionsSeenBy(database, acme, `select 1; set role ${schemaOf(globex)}; select id from session`)).rejects.toMatchObject({
      code: "42601",
    });
  });

  for (const injected of ["set role", "set session role"]) {
    test(`7: an injected "${injected}" ends with its transaction: the connection's next users are who they should be`, async () => {
      const { database, acme, globex } = await acmeAndGlobex();
      const backend = (): Promise<{ pid: number }[]> => database.withControl((tx) => tx.query("select pg_backend_pid() as pid"));
      const before = await backend();

      await database.withTenant(acme, (tx) => tx.query(`${injected} ${schemaOf(globex)}`));
      await database.withTenant(acme, (tx) => tx.query(`set search_path = ${schemaOf(globex)}`));
      const next = await database.withControl((tx) => tx.query("select current_user::text as who, current_setting('search_path') as path"));
      const acmes = await sessionsSeenBy(database, acme);
      const globexes = await sessionsSeenBy(database, globex);

      expect(await backend()).toEqual(before);
      expect(next).toEqual([{ who: "openclaw_gateway", path: "control" }]);
      expect(acmes).toEqual([{ id: "secret of acme" }]);
      expect(globexes).toEqual([{ id: "secret of globex" }]);
      await expect(database.withControl((tx) => tx.query(`select * from ${schemaOf(globex)}.session`))).rejects.toMatchObject({
        code: "42501",
      });
    });
  }

  test("an injected COMMIT ends the call with an error, and the next user is not affected", async () => {
    const { database, acme, globex } = await acmeAndGlobex();

    const escaped = database.withTenant(acme, async (tx) => {
      await tx.query("commit");
      await tx.query(`set role ${schemaOf(globex)}`);
    });

    await expect(escaped).rejects.toMatchObject({ name: "AppError", code: "internal" });
    expect(await sessionsSeenBy(database, acme)).toEqual([{ id: "secret of acme" }]);
    expect(await database.withControl((tx) => tx.query("select current_user::text as who"))).toEqual([{ who: "openclaw_gateway" }]);
  });

  test("a tenant's role cannot change tables, make objects, reach control tables or become the owner", async () => {
    const { database, acme } = await acmeAndGlobex();

    for (const sql of [
      "drop table message",
      "create table mine (n int)",
      "create temporary table mine (n int)",
      "create table public.mine (n int)",
      "update schema_version set version = 9",
      "select * from control.tenant",
      "select * from control.tenant_token",
      "select * from control.admin_key",
      "set role openclaw",
      "set session authorization openclaw",
    ]) {
      await expect(sessionsSeenBy(database, acme, sql), sql).rejects.toMatchObject({ code: expect.stringMatching(/^(42501|42P01)$/) });
    }
  });

  test("the gateway's login sees no tenant table by itself and owns nothing", async () => {
    const { ownerUrl } = await acmeAndGlobex();

    const { rows } = await runSql(
      ownerUrl,
      `select rolsuper, rolinherit, rolcreaterole, rolcreatedb, (select count(*)::int from pg_class where relowner = r.oid) as owned
       from pg_roles r where rolname = 'openclaw_gateway'`,
    );

    expect(rows).toEqual([{ rolsuper: false, rolinherit: false, rolcreaterole: false, rolcreatedb: false, owned: 0 }]);
  });
});

describe("a transaction", () => {
  test("commits what it did, and rolls back when its function throws", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;

    await addSession(database, acme, "kept");
    const thrown = database.withTenant(acme, async (tx) => {
      await tx.execute("insert into session (id, channel) values ('lost', 'api')");
      throw new Error("the caller's own");
    });

    await expect(thrown).rejects.toThrow("the caller's own");
    expect(await sessionsSeenBy(database, acme)).toEqual([{ id: "kept" }]);
  });

  test("an error of the caller's own does not cost the connection, one of the database does", async () => {
    const { database, tenants } = await databaseWith({ poolSize: 1 }, "acme");
    const [acme] = tenants;
    const backend = async (): Promise<unknown> =>
      (await database.withTenant(acme, (tx) => tx.query<{ pid: number }>("select pg_backend_pid() as pid")))[0]?.pid;

    const first = await backend();
    await database.withTenant(acme, () => Promise.reject(new Error("no"))).catch(() => undefined);
    const second = await backend();
    await database.withTenant(acme, (tx) => tx.query("select 1 / 0")).catch(() => undefined);
    const third = await backend();

    expect(second).toBe(first);
    expect(third).not.toBe(second);
  });

  test("that failed inside does not pass for committed when its function swallows the error", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;

    const swallowed = database.withTenant(acme, async (tx) => {
      await tx.execute("insert into session (id, channel) values ('lost', 'api')");
      await tx.query("select 1 / 0").catch(() => undefined);
      return "looks fine";
    });

    await expect(swallowed).rejects.toMatchObject({ name: "AppError", code: "internal" });
    expect(await sessionsSeenBy(database, acme)).toEqual([]);
  });

  test("is of no use after its function has returned", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;
    let kept: TenantTx | undefined;

    await database.withTenant(acme, async (tx) => void (kept = tx));

    await expect(kept?.query("select 1")).rejects.toThrow(/this transaction has ended/);
  });

  test("gives up by itself: statement timeout, lock timeout, read only", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;
    await addSession(database, acme, "one");

    const slow = database.withTenant(acme, (tx) => tx.query("select pg_sleep(5)"), { statementTimeoutMs: 100 });
    await expect(slow).rejects.toMatchObject({ code: "unavailable", details: { sqlState: "57014" } });
    const blocked = database.withTenant(acme, async (holder) => {
      await holder.query("select * from session for update");
      await expect(
        database.withTenant(acme, (tx) => tx.query("select * from session for update"), { lockTimeoutMs: 100 }),
      ).rejects.toMatchObject({ code: "unavailable", details: { sqlState: "55P03" } });
    });
    await blocked;
    const written = database.withTenant(acme, (tx) => tx.execute("delete from session"), { readOnly: true });
    await expect(written).rejects.toMatchObject({ code: "25006" });
    const settings = await database.withTenant(acme, (tx) =>
      tx.query("select current_setting('statement_timeout') as s, current_setting('lock_timeout') as l"),
    );
    expect(settings).toEqual([{ s: "4s", l: "3s" }]);
  });

  test("gives bigint for int8, text for dates and parsed jsonb", async () => {
    const { database, tenants } = await databaseWith({}, "acme");

    const rows = await database.withTenant(tenants[0], (tx) =>
      tx.query(
        "select 9007199254740993::int8 as big, $1::int8 as sent, date '2026-06-03' as day, timestamptz '2026-06-03T10:00:00Z' as at, '{\"a\":[1]}'::jsonb as body",
        [9_007_199_254_740_995n],
      ),
    );

    expect(rows).toEqual([
      {
        big: 9_007_199_254_740_993n,
        sent: 9_007_199_254_740_995n,
        day: "2026-06-03",
        at: new Date("2026-06-03T10:00:00Z"),
        body: { a: [1] },
      },
    ]);
  });

  test("waits for a free connection no longer than it may", async () => {
    const { database, tenants } = await databaseWith({ poolSize: 1 }, "acme");
    const [acme] = tenants;

    const startedAt = performance.now();
    const starved = await database.withTenant(acme, () => addSession(database, acme, "nested").catch((error: unknown) => error));

    expect(starved).toMatchObject({ name: "AppError", code: "unavailable" });
    expect(performance.now() - startedAt).toBeLessThan(8_000);
  });

  test("many at once on few connections all do their work", async () => {
    const { database, tenants } = await databaseWith({ poolSize: 4 }, "acme", "globex");

    await Promise.all(Array.from({ length: 200 }, (_, n) => addSession(database, tenants[n % 2] ?? tenants[0], `s${n}`)));

    for (const tenant of tenants) expect(await sessionsSeenBy(database, tenant)).toHaveLength(100);
  });

  test("survives the loss of every connection: the next one works", async () => {
    const { database, ownerUrl, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;
    await Promise.all([1, 2, 3].map((n) => addSession(database, acme, `s${n}`)));

    const during = database.withTenant(acme, async (tx) => {
      await runSql(
        ownerUrl,
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'openclaw_gateway' and datname = current_database()",
      );
      await tx.query("select 1");
    });

    await expect(during).rejects.toMatchObject({ name: "AppError", code: "unavailable" });
    expect(await sessionsSeenBy(database, acme)).toHaveLength(3);
  });
});

test("a transaction of a tenant that was deleted meanwhile says so, whatever is already gone; another failure stays what it is", async () => {
  const { database, ownerUrl, tenants } = await databaseWith({}, "gone", "alive");
  const [{ tenantId, ...context }, alive] = tenants;
  const touch = async (of = { tenantId, ...context }) =>
    await database.withTenant(of, async (tx) => await tx.execute("insert into turn default values")).catch((error: unknown) => error);
  const steps = [
    async () => await database.closeTenantSchema(tenantId),
    async () => void (await runSql(ownerUrl, `drop schema tenant_${tenantId.replaceAll("-", "_")} cascade`)),
    async () => await database.dropTenantSchema(tenantId),
  ];
  expect(await touch()).not.toMatchObject({ code: "tenant_deleted" });
  await database.withControl(async (tx) => await tx.execute("update tenant set state = 'deleted' where id = $1", [tenantId]));

  for (const step of steps) {
    await step();
    expect(await touch()).toMatchObject({ code: "tenant_deleted" });
  }
  await runSql(ownerUrl, `drop table tenant_${alive.tenantId.replaceAll("-", "_")}.turn cascade`);
  expect(await touch(alive)).toMatchObject({ code: "42P01" });
});

describe("the ledger", () => {
  test("is summed by UTC day as it is written, once per id, in the reply's transaction", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [{ tenantId }] = tenants;

    const rows = [
      { id: "trn_1.1", at: "2026-06-03T23:59:59.999Z" },
      { id: "trn_1.2", at: "2026-06-04T00:00:00Z" },
      { id: "trn_2.1", at: "2026-06-04T12:00:00+13:00" }, // 3 June in UTC
      { id: "trn_1.1", at: "2026-06-09T00:00:00Z" }, // a repeat
    ];
    for (const row of rows) await database.withTenant(tenants[0], (tx) => insertLedgerRow(tx, { ...row, tenantId }));
    await database
      .withTenant(tenants[0], async (tx) => {
        await insertLedgerRow(tx, { id: "trn_3.1", tenantId });
        throw new Error("the reply could not be stored");
      })
      .catch(() => undefined);
    const daily = await database.withTenant(tenants[0], (tx) => tx.query("select * from control.usage_daily order by day"));

    const one = {
      tokens_in: 105n,
      tokens_out: 20n,
      tokens_cached: 7n,
      reasoning_tokens: 3n,
      tool_calls: 1n,
      cost_nano_usd: 9_007_199_254_740_993n,
      calls: 1n,
      cache_write_tokens: 5n,
    };
    const two = {
      tokens_in: 210n,
      tokens_out: 40n,
      tokens_cached: 14n,
      reasoning_tokens: 6n,
      tool_calls: 2n,
      cost_nano_usd: 18_014_398_509_481_986n,
      calls: 2n,
      cache_write_tokens: 10n,
    };
    expect(daily).toEqual([
      { tenant_id: tenantId, day: "2026-06-03", model: "demo", ...two },
      { tenant_id: tenantId, day: "2026-06-04", model: "demo", ...one },
    ]);
  });

  test("sums stay equal to the rows under parallel writers", async () => {
    const { database, tenants } = await databaseWith({ poolSize: 8 }, "acme", "globex");

    await Promise.all(
      Array.from({ length: 100 }, (_, n) => {
        const tenant = tenants[n % 2] ?? tenants[0];
        return database.withTenant(tenant, (tx) =>
          insertLedgerRow(tx, { id: `trn_${Math.floor(n / 2) % 40}.${n % 2}`, tenantId: tenant.tenantId, cost: BigInt(n), input: n }),
        );
      }),
    );
    const [sums] = await database.withControl((tx) =>
      tx.query(`select (select count(*) from usage_ledger) as rows, (select sum(calls) from usage_daily)::int8 as calls,
        (select sum(cost_nano_usd) from usage_ledger) = (select sum(cost_nano_usd) from usage_daily) as cost_equal,
        (select sum(input_tokens + cache_write_tokens) from usage_ledger) = (select sum(tokens_in) from usage_daily) as tokens_equal`),
    );

    expect(sums).toEqual({ rows: 80n, calls: 80n, cost_equal: true, tokens_equal: true });
  });

  test("a tenant can neither write nor see another's rows", async () => {
    const { database, tenants } = await databaseWith({ poolSize: 1 }, "acme", "globex");
    const [acme, globex] = tenants;
    await database.withTenant(globex, (tx) => insertLedgerRow(tx, { id: "trn_g.1", tenantId: globex.tenantId }));
    await database.withTenant(globex, (tx) =>
      tx.execute("insert into control.open_turn (tenant_id, turn_id, lane, kind) values ($1, 'trn_g', 'lane', 'chat')", [globex.tenantId]),
    );

    const forged = database.withTenant(acme, (tx) => insertLedgerRow(tx, { id: "trn_f.1", tenantId: globex.tenantId }));
    await expect(forged).rejects.toMatchObject({ code: "42501" });
    const forgedTurn = database.withTenant(acme, (tx) =>
      tx.execute("insert into control.open_turn (tenant_id, turn_id, lane, kind) values ($1, 'trn_f', 'lane', 'chat')", [globex.tenantId]),
    );
    await expect(forgedTurn).rejects.toMatchObject({ code: "42501" });
    const seen = await database.withTenant(acme, async (tx) => [
      await tx.query("select * from control.usage_ledger"),
      await tx.query("select * from control.usage_daily"),
      await tx.query("select * from control.open_turn"),
      await tx.execute("update control.open_turn set attempts = 9"),
      await tx.execute("delete from control.open_turn"),
    ]);

    expect(seen).toEqual([[], [], [], 0, 0]);
    expect(await database.withControl((tx) => tx.query("select tenant_id, attempts from open_turn"))).toEqual([
      { tenant_id: globex.tenantId, attempts: 0 },
    ]);
  });

  test("cannot be changed, by a tenant or by the gateway", async () => {
    const { database, tenants } = await databaseWith({}, "acme");
    const [acme] = tenants;
    await database.withTenant(acme, (tx) => insertLedgerRow(tx, { id: "trn_1.1", tenantId: acme.tenantId }));

    for (const sql of [
      "update control.usage_ledger set cost_nano_usd = 0",
      "delete from control.usage_ledger",
      "truncate control.usage_ledger",
      "update control.usage_daily set cost_nano_usd = 0",
      "delete from control.usage_daily",
      "insert into control.usage_daily select * from control.usage_daily",
      "alter table control.usage_ledger disable row level security",
    ]) {
      await expect(
        database.withTenant(acme, (tx) => tx.query(sql)),
        sql,
      ).rejects.toMatchObject({ code: "42501" });
      await expect(
        database.withControl((tx) => tx.query(sql)),
        sql,
      ).rejects.toMatchObject({ code: "42501" });
    }
  });
});

describe("notifications", () => {
  test("arrive on their own channel, until one stops listening", async () => {
    const { database } = await databaseWith();
    const heard: string[] = [];

    const stop = await database.listen("tokens:a", (payload) => void heard.push(`a ${payload}`));
    await database.listen("tokens:b", (payload) => void heard.push(`b ${payload}`));
    await database.notify("tokens:a", "1");
    await database.notify("tokens:b", "2");
    await expect.poll(() => heard).toEqual(["a 1", "b 2"]);
    await stop();
    await database.notify("tokens:a", "3");
    await database.withControl((tx) => tx.query("select pg_notify('tokens:b', '4')"));
    await expect.poll(() => heard).toEqual(["a 1", "b 2", "b 4"]);

    await expect(database.notify("tokens:a", "x".repeat(8_000))).rejects.toThrow(RangeError);
  });

  test("go on after the connection was lost, and the gap is told", async () => {
    const { database, ownerUrl } = await databaseWith();
    const heard: string[] = [];
    await database.listen("a", (payload) => void heard.push(payload), { onReconnect: () => void heard.push("gap") });
    await database.listen("b", (payload) => void heard.push(payload));

    await runSql(
      ownerUrl,
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'openclaw-listen' and datname = current_database()",
    );
    await expect.poll(() => heard, { timeout: 5_000 }).toEqual(["gap"]);
    await database.notify("a", "1");
    await database.notify("b", "2");

    await expect.poll(() => heard).toEqual(["gap", "1", "2"]);
  });

  test("a handler that throws does not end the others", async () => {
    const { database } = await databaseWith();
    const heard: string[] = [];
    await database.listen("a", () => {
      throw new Error("mine");
    });
    await database.listen("a", (payload) => void heard.push(payload));

    await database.notify("a", "1");

    await expect.poll(() => heard).toEqual(["1"]);
  });
});

test("two processes' worth of databases open, create the same tenant and work side by side", async () => {
  const ownerUrl = await freshDatabase();
  const tenant = someTenant("acme");

  const databases = await Promise.all([1, 2, 3].map(() => openDatabase({ ownerUrl, log: quiet })));
  onTestFinished(async () => void (await Promise.all(databases.map((database) => database.close()))));
  await Promise.all(databases.map((database) => database.createTenantSchema(tenant.tenantId)));
  await Promise.all(databases.map((database, n) => addSession(database, tenant, `s${n}`)));

  for (const database of databases) expect(await sessionsSeenBy(database, tenant)).toHaveLength(3);
});
