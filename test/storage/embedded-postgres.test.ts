import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { openDatabase } from "../../storage/database.ts";
import { startEmbeddedPostgres, type EmbeddedPostgres, type EmbeddedPostgresOptions } from "../../storage/embedded-postgres.ts";
import { postgresProcessesIn } from "../../storage/linux-process.ts";
import { quiet, runSql, temporaryHome } from "./fresh-database.ts";

const start = async (home: string, options: Partial<EmbeddedPostgresOptions> = {}): Promise<EmbeddedPostgres> => {
  const server = await startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet, ...options });
  onTestFinished(() => server.stop());
  return server;
};

const newHome = (): string => {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  return home;
};

let template: Promise<string> | undefined;

/** A home whose Postgres was stopped in order: a copy, which is quicker than a first start for each test. */
const usedHome = async (): Promise<string> => {
  template ??= (async () => {
    const { home, remove } = temporaryHome();
    removeTemplate = remove;
    await (await startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet })).stop();
    return home;
  })();
  const from = join(await template, "postgres");
  const to = join(newHome(), "postgres");
  execFileSync("sh", [
    "-c",
    `mkdir -m 711 ${to} && cp -al ${from}/server-* ${to} && cp -a ${from}/data ${from}/*.conf ${from}/state.json ${to}`,
  ]);
  return dirname(to);
};

let removeTemplate = (): void => undefined;
afterAll(() => removeTemplate());

const until = async (what: () => boolean | Promise<boolean>, timeoutMs = 10_000): Promise<void> => {
  for (const end = Date.now() + timeoutMs; Date.now() < end; await sleep(20)) if (await what()) return;
  throw new Error("it did not happen in time");
};

const isAlive = (pid: number): boolean => {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};

/** A process that is not ours to end, to be named by a stale lock file. */
const innocent = (): number => {
  const child = spawn("sleep", ["60"]);
  onTestFinished(() => void child.kill("SIGKILL"));
  return child.pid ?? 0;
};

describe("the embedded Postgres", () => {
  test("is made at the first start, kept by the next, and remembers port and password", async () => {
    const home = newHome();

    const firstStartedAt = performance.now();
    const first = await start(home);
    const firstMs = performance.now() - firstStartedAt;
    await runSql(first.ownerUrl, "create table kept (n int)", "insert into kept values (1)");
    await first.stop();
    const goneAfterStop = !isAlive(first.pid);
    const secondStartedAt = performance.now();
    const second = await start(home);
    const secondMs = performance.now() - secondStartedAt;
    const { rows } = await runSql(second.ownerUrl, "select n from kept");

    expect(goneAfterStop).toBe(true);
    expect(rows).toEqual([{ n: 1 }]);
    expect(second.ownerUrl).toBe(first.ownerUrl);
    expect(new URL(first.ownerUrl).pathname).toBe("/openclaw");
    expect(firstMs).toBeLessThan(10_000); // 1.1 s on a quiet 2-core machine
    expect(secondMs).toBeLessThan(5_000); // 0.1 s
  });

  test("listens on loopback only, asks for the password, and keeps it to itself", async () => {
    const home = await usedHome();

    const server = await start(home);
    const settings = await runSql(
      server.ownerUrl,
      "select current_setting('listen_addresses') as a, current_setting('unix_socket_directories') as u, current_setting('fsync') as f",
    );
    const wrong = new URL(server.ownerUrl);
    wrong.password = "wrong";

    expect(settings.rows).toEqual([{ a: "127.0.0.1", u: "", f: "on" }]);
    await expect(runSql(wrong.href, "select 1")).rejects.toMatchObject({ code: "28P01" });
    expect(statSync(join(home, "postgres/state.json")).mode & 0o777).toBe(0o600);
    expect(statSync(join(home, "postgres/server.log")).mode & 0o777).toBe(0o600);
    expect(readFileSync(`/proc/${server.pid}/cmdline`, "utf8")).not.toContain(new URL(server.ownerUrl).password);
  });

  test("carries pgvector as its checksums say, with HNSW and distances", async () => {
    const directory = fileURLToPath(new URL("../../storage/pgvector/", import.meta.url));
    for (const line of readFileSync(join(directory, "SHA256SUMS"), "utf8").trim().split("\n")) {
      const [sum, file] = line.split(/\s+/);
      expect(
        createHash("sha256")
          .update(readFileSync(join(directory, file ?? "")))
          .digest("hex"),
        file,
      ).toBe(sum);
    }

    const server = await start(await usedHome());
    const { rows } = await runSql(
      server.ownerUrl,
      "create extension vector",
      "create table note (id int primary key, embedding vector(3))",
      "insert into note select n, array[n, n % 7, n % 11]::vector from generate_series(1, 500) n",
      "create index on note using hnsw (embedding vector_l2_ops)",
      "set enable_seqscan = off",
      "select id, embedding <-> '[42,0,9]' as distance from note order by embedding <-> '[42,0,9]' limit 2",
    );

    expect(rows[0]).toEqual({ id: 42, distance: 0 });
    expect(rows[1].distance).toBeGreaterThan(0);
  });

  test("comes back on the same port after a kill -9, with every committed row", async () => {
    const server = await start(await usedHome());
    const { pid, ownerUrl } = server;
    await runSql(ownerUrl, "create table kept (n int)");
    let acknowledged = 0;
    const writing = (async () => {
      for (;;) await runSql(ownerUrl, `insert into kept values (${acknowledged + 1})`).then(() => acknowledged++);
    })().catch(() => undefined);
    await until(() => acknowledged >= 10);

    const killedAt = performance.now();
    process.kill(pid, "SIGKILL");
    await writing;
    await until(() =>
      runSql(ownerUrl, "select 1").then(
        () => true,
        () => false,
      ),
    );
    const backMs = performance.now() - killedAt;
    const { rows } = await runSql(ownerUrl, "select count(*)::int as n from kept");

    expect(server.pid).not.toBe(pid);
    expect(server.ownerUrl).toBe(ownerUrl);
    expect(rows[0].n).toBeGreaterThanOrEqual(acknowledged);
    expect(backMs).toBeLessThan(5_000);
  });

  test("a call that comes while it is being started again waits for it", async () => {
    const server = await start(await usedHome());
    const database = await openDatabase({ ownerUrl: server.ownerUrl, log: quiet });
    onTestFinished(() => database.close());
    const heard: string[] = [];
    await database.listen("news", (payload) => void heard.push(payload), { onReconnect: () => void heard.push("gap") });
    await database.withControl((tx) => tx.query("select 1"));

    process.kill(server.pid, "SIGKILL");
    await sleep(20);
    const rows = await database.withControl((tx) => tx.query("select 1 as n"));
    await until(() => heard.includes("gap"));
    await database.notify("news", "again");

    expect(rows).toEqual([{ n: 1 }]);
    await until(() => heard.includes("again"));
  });

  test("recovers again and again from killed postmasters, also in the middle of a restart", async () => {
    const server = await start(await usedHome());
    await runSql(server.ownerUrl, "create table kept (n int)");

    for (let round = 1; round <= 5; round++) {
      const pid = server.pid;
      await runSql(server.ownerUrl, `insert into kept values (${round})`);
      process.kill(pid, "SIGKILL");
      await until(
        () =>
          server.pid !== pid &&
          runSql(server.ownerUrl, "select 1").then(
            () => true,
            () => false,
          ),
      );
    }
    const { rows } = await runSql(server.ownerUrl, "select count(*)::int as n from kept");

    expect(rows).toEqual([{ n: 5 }]);
  });

  test("stops for good, even right after a crash", async () => {
    const home = await usedHome();
    const server = await start(home);

    process.kill(server.pid, "SIGKILL");
    await server.stop();

    expect(postgresProcessesIn(realpathSync(join(home, "postgres/data")))).toEqual([]);
  });

  test("stops within seconds although a client is in a long query", async () => {
    const server = await start(await usedHome());
    const busy = runSql(server.ownerUrl, "select pg_sleep(600)").catch((error: { code: string }) => error.code);
    await sleep(200);

    const stoppedAt = performance.now();
    await server.stop();

    expect(performance.now() - stoppedAt).toBeLessThan(4_000);
    expect(await busy).toBe("57P01");
  });

  test("does not outlive a process of ours that is killed, and the next start has its rows", async () => {
    const home = await usedHome();
    const child = spawn(process.execPath, [fileURLToPath(new URL("./start-postgres.ts", import.meta.url)), join(home, "postgres")]);
    onTestFinished(() => void child.kill("SIGKILL"));
    const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
    const { ownerUrl, pid } = JSON.parse(line) as { ownerUrl: string; pid: number };
    await runSql(ownerUrl, "create table kept (n int)", "insert into kept values (1)");

    child.kill("SIGKILL");
    const server = await start(home);
    const { rows } = await runSql(server.ownerUrl, "select n from kept");

    expect(rows).toEqual([{ n: 1 }]);
    expect(server.pid).not.toBe(pid);
    expect(isAlive(pid)).toBe(false);
  });

  test("ends an orphan that nothing told to go", async () => {
    const home = await usedHome();
    const orphan = startWithoutSupervision(home);
    await until(() => readLockFile(home).split("\n")[7]?.trim() === "ready");

    const said: string[] = [];
    const second = await start(home, { log: (message) => void said.push(message) });

    expect(said).toContain("ending an orphaned Postgres");
    expect(isAlive(orphan)).toBe(false);
    expect((await runSql(second.ownerUrl, "select 1 as n")).rows).toEqual([{ n: 1 }]);
  });

  test("is not run twice, and the second start harms nothing", async () => {
    const home = await usedHome();
    const server = await start(home);

    const second = startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet });

    await expect(second).rejects.toThrow(/another process already runs the Postgres/);
    expect((await runSql(server.ownerUrl, "select 1 as n")).rows).toEqual([{ n: 1 }]);
  });

  test("a stale lock file that names an innocent process is cleared, and the process lives", async () => {
    const home = await usedHome();
    const first = await start(home);
    await first.stop();
    const pid = innocent();
    const data = realpathSync(join(home, "postgres/data"));
    writeFileSync(join(data, "postmaster.pid"), `${pid}\n${data}\n1700000000\n${first.port}\n\n127.0.0.1\n        0         0\nready   \n`);

    const second = await start(home);

    expect(isAlive(pid)).toBe(true);
    expect((await runSql(second.ownerUrl, "select 1 as n")).rows).toEqual([{ n: 1 }]);
  });

  test("moves to a free port when the remembered one is taken, and refuses to move from a given one", async () => {
    const home = await usedHome();
    const first = await start(home);
    await first.stop();
    const squatter = createServer().listen({ port: first.port, host: "127.0.0.1" });
    onTestFinished(() => void squatter.close());
    await new Promise((resolve) => void squatter.once("listening", resolve));

    const second = await start(home);
    const secondPort = second.port;
    await second.stop();
    const given = startEmbeddedPostgres({ dataDir: join(home, "postgres"), port: first.port, log: quiet });

    expect(secondPort).not.toBe(first.port);
    await expect(given).rejects.toThrow(new RegExp(`port ${first.port} .* is taken`));
  });

  test("says clearly what is wrong with a data directory of another version, and leaves it alone", async () => {
    const home = newHome();
    mkdirSync(join(home, "postgres/data"), { recursive: true });
    writeFileSync(join(home, "postgres/data/PG_VERSION"), "15\n");
    chmodSync(join(home, "postgres"), 0o711);

    const started = startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet });

    await expect(started).rejects.toThrow(/made by Postgres 15, and this version carries Postgres 17/);
    expect(readFileSync(join(home, "postgres/data/PG_VERSION"), "utf8")).toBe("15\n");
  });

  test("quotes the server's last words when it cannot start", async () => {
    const home = await usedHome();
    writeFileSync(join(home, "postgres/tuning.conf"), "shared_buffers = 'nonsense'\n", { mode: 0o644 });

    const started = startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet });

    await expect(started).rejects.toThrow(/did not start[\s\S]*shared_buffers/);
  });

  test.runIf(process.getuid?.() === 0)(
    "as root in a closed home, lives where its own user can reach it, linked from the home",
    async () => {
      const home = mkdtempSync("/root/openclaw-test-");
      chmodSync(home, 0o700);
      const link = join(home, "postgres");
      onTestFinished(() => {
        rmSync(dirname(realpathSync(link)), { recursive: true });
        rmSync(home, { recursive: true });
      });

      const server = await start(home);
      const real = realpathSync(link);

      expect(lstatSync(link).isSymbolicLink()).toBe(true);
      expect(real).toMatch(/^\/var\/lib\/openclaw\/[0-9a-f]{16}\/postgres$/);
      expect(statSync(`/proc/${server.pid}`).uid).toBe(Number(execFileSync("id", ["-u", "openclaw-postgres"], { encoding: "utf8" })));
      expect((await runSql(server.ownerUrl, "select 1 as n")).rows).toEqual([{ n: 1 }]);
    },
  );
});

const readLockFile = (home: string): string => {
  const path = join(home, "postgres/data/postmaster.pid");
  return existsSync(path) ? readFileSync(path, "utf8") : "";
};

/** A postmaster on the home's data whose parent knows nothing of it. */
function startWithoutSupervision(home: string): number {
  const directory = realpathSync(join(home, "postgres"));
  const server = execFileSync("sh", ["-c", `echo ${directory}/server-*/bin/postgres`], { encoding: "utf8" }).trim();
  const words = [
    "-D",
    join(directory, "data"),
    "-c",
    `config_file=${directory}/postgresql.conf`,
    "-c",
    `hba_file=${directory}/pg_hba.conf`,
    "-p",
    "0",
  ];
  const port = JSON.parse(readFileSync(join(directory, "state.json"), "utf8")) as { port: number };
  words[words.length - 1] = String(port.port);
  const owner = statSync(join(directory, "data"));
  const child = spawn(server, words, {
    ...(process.getuid?.() === 0 ? { uid: owner.uid, gid: owner.gid } : {}),
    cwd: directory,
    stdio: "ignore",
    detached: true,
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child.pid ?? 0;
}
