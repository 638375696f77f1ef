import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { type OverlayFiles, startOverlayFiles } from "../../control-plane/overlay-files.ts";
import { digestOfOverlay } from "../../control-plane/overlay.ts";
import { type OverlayReader, type Overlays, createOverlayWriter, openOverlayReader } from "../../control-plane/overlays.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { type Database, openDatabase } from "../../storage/database.ts";
import { overlayChannel } from "../../storage/overlay-repository.ts";
import { tenantDirectory } from "../../storage/tenant-paths.ts";
import { quiet, runSql, temporaryHome } from "../storage/fresh-database.ts";
import { testFieldEncryption } from "../storage/test-field-encryption.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";
import { someGround } from "./some-overlay.ts";

let stage: ChangesStage;
beforeAll(async () => {
  stage = await startChanges();
});
afterAll(async () => await stage.close());

const patience = { timeout: 30_000 };
const ground = () => someGround;
const byRoot = (requestId: string) => ({ actor: { type: "admin", id: "root" }, requestId }) as const;
let requests = 0;

/** One gateway's reader, writer and files, on a home and with connections of its own. */
async function startHome({ files = true, changes = stage.changes } = {}) {
  const database = await openDatabase({ ownerUrl: stage.stack.ownerUrl, log: quiet });
  const queries = { count: 0 };
  const counted: Pick<Database, "withControl" | "listen"> = {
    listen: async (...given) => await database.listen(...given),
    withControl: async (...given) => (queries.count++, await database.withControl(...given)),
  };
  const reader = await openOverlayReader({ database: counted, encryption: testFieldEncryption, ground });
  const write = createOverlayWriter({ reader, database, encryption: testFieldEncryption, ground, changes });
  const { home, remove } = temporaryHome();
  const logged: string[] = [];
  const start = async (): Promise<OverlayFiles> =>
    await startOverlayFiles({ database, home, reader, write, log: (message) => void logged.push(message), intervalMs: 100 });
  const running = files ? await start() : undefined;
  onTestFinished(async () => {
    await running?.stop();
    await reader.close();
    await database.close();
    remove();
  });
  return {
    home,
    database,
    reader,
    queries,
    logged,
    start,
    writeAs: write,
    write: async (tenantId: TenantId, text: string) => await write(tenantId, text, byRoot(`req_${process.pid}_${requests++}`)),
    fileOf: (tenantId: TenantId) => join(tenantDirectory(home, tenantId), "config.yaml"),
  };
}

const codeOf = async (work: Promise<unknown>): Promise<string> =>
  await work.then(
    () => "fine",
    (error: unknown) => (error instanceof AppError ? `${error.code} ${error.client.param ?? ""}`.trim() : String(error)),
  );
const promptOf = async (reader: OverlayReader, tenantId: TenantId) => (await reader.of(tenantId)).overlay.systemPrompt;
const actionsOf = async (tenantId: TenantId) =>
  (await runSql(stage.stack.ownerUrl, `select actor_id, outcome from control.audit_entry where chain = '${tenantId}' order by seq`))
    .rows as {
    actor_id: string;
    outcome: string;
  }[];
const contentOf = (path: string): string | undefined =>
  existsSync(path) && statSync(path).isFile() ? readFileSync(path, "utf8") : undefined;
function place(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

describe("what is known of overlays", () => {
  test("costs no query per turn, and is another at once when any process changes it", async () => {
    const [one, two] = [await startHome({ files: false }), await startHome({ files: false })];
    const { tenantId } = await stage.createTenant();

    await one.write(tenantId, "system_prompt: first\n");
    expect([await promptOf(one.reader, tenantId), await promptOf(two.reader, tenantId)]).toEqual(["first", "first"]);
    const before = two.queries.count;
    for (let turn = 0; turn < 50; turn++) await promptOf(two.reader, tenantId);
    expect(two.queries.count).toBe(before);

    await one.write(tenantId, "system_prompt: second\n");
    expect(await promptOf(one.reader, tenantId)).toBe("second");
    await expect.poll(async () => await promptOf(two.reader, tenantId), patience).toBe("second");
  });

  test("is read again after a notification that was missed", async () => {
    const two = await startHome({ files: false });
    const { tenantId } = await stage.createTenant();
    expect(await promptOf(two.reader, tenantId)).toBeUndefined();

    await runSql(
      stage.stack.ownerUrl,
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'openclaw-listen' and datname = current_database()",
      `insert into control.overlay (tenant_id, version, digest, fault) values ('${tenantId}', 0, '${digestOfOverlay("")}', '{"file":"f","digest":"d","message":"overlay line 1: x","param":"x"}')`,
    );

    await expect.poll(async () => await codeOf(two.reader.of(tenantId)), patience).toBe("overlay_refused x");
  });

  test("of one tenant never opens as another's, nor as another text of the same", async () => {
    const { reader, write } = await startHome({ files: false });
    const [a, b, c] = [await stage.createTenant(), await stage.createTenant(), await stage.createTenant()];
    await write(a.tenantId, "system_prompt: secret of a\n");
    await write(b.tenantId, "system_prompt: secret of b\n");
    await write(c.tenantId, "system_prompt: one\n");
    await write(c.tenantId, "system_prompt: two\n");
    const digest = (text: string) => digestOfOverlay(`system_prompt: ${text}\n`);

    await runSql(
      stage.stack.ownerUrl,
      `update control.overlay_text set sealed = (select sealed from control.overlay_text where tenant_id = '${a.tenantId}') where tenant_id = '${b.tenantId}'`,
      `update control.overlay_text set sealed = (select sealed from control.overlay_text where digest = '${digest("one")}') where digest = '${digest("two")}'`,
      `select pg_notify('${overlayChannel}', '${b.tenantId}')`,
    );

    expect(await codeOf(reader.textOf(b.tenantId))).toBe("internal");
    expect(await codeOf(reader.textOf(c.tenantId))).toBe("internal");
    expect((await reader.textOf(a.tenantId)).text).toBe("system_prompt: secret of a\n");
  });

  test("keeps a replaced text for the turns that began with it, and then no longer", async () => {
    const { reader, write } = await startHome({ files: false });
    const { tenantId } = await stage.createTenant();
    const texts = ["system_prompt: one\n", "system_prompt: two\n", "system_prompt: three\n"] as const;
    await write(tenantId, texts[0]);
    await write(tenantId, texts[1]);
    expect((await reader.at(tenantId, digestOfOverlay(texts[0]))).systemPrompt).toBe("one");

    await runSql(
      stage.stack.ownerUrl,
      `update control.overlay_text set used_at = now() - interval '8 days' where tenant_id = '${tenantId}'`,
    );
    await write(tenantId, texts[2]);

    const other = await startHome({ files: false });
    expect((await other.reader.at(tenantId, digestOfOverlay(texts[1]))).systemPrompt).toBe("two");
    expect(await codeOf(other.reader.at(tenantId, digestOfOverlay(texts[0])))).toBe("overlay_refused");
  });
});

describe("a change", () => {
  test("without its text is refused and recorded as refused", async () => {
    const { tenantId } = await stage.createTenant();

    expect(await codeOf(stage.make(tenantId, { type: "overlay.write", digest: "a".repeat(64) }))).toBe("conflict");

    expect(await actionsOf(tenantId)).toEqual([{ actor_id: "root", outcome: "refused" }]);
  });

  test("of many at once is one after the other: every text was in force, and the last one stays", async () => {
    const home = await startHome();
    const { tenantId } = await stage.createTenant();

    await Promise.all(Array.from({ length: 12 }, async (_, index) => await home.write(tenantId, `system_prompt: p${index}\n`)));

    const { text, version } = await home.reader.textOf(tenantId);
    expect(version).toBe(12);
    expect(await actionsOf(tenantId)).toHaveLength(12);
    await expect.poll(() => contentOf(home.fileOf(tenantId)), patience).toBe(text);
    expect(await actionsOf(tenantId)).toHaveLength(12);
  });
});

describe("the files", () => {
  test("of every home follow a change, and an edit in any of them is one change", async () => {
    const [one, two] = [await startHome(), await startHome()];
    const { tenantId } = await stage.createTenant();

    await one.write(tenantId, "system_prompt: written\n");
    for (const home of [one, two]) await expect.poll(() => contentOf(home.fileOf(tenantId)), patience).toBe("system_prompt: written\n");
    expect(statSync(two.fileOf(tenantId)).mode & 0o777).toBe(0o600);

    place(two.fileOf(tenantId), "system_prompt: edited\n");
    await expect.poll(() => contentOf(one.fileOf(tenantId)), patience).toBe("system_prompt: edited\n");

    expect(await promptOf(one.reader, tenantId)).toBe("edited");
    expect(await actionsOf(tenantId)).toEqual([
      { actor_id: "root", outcome: "applied" },
      { actor_id: "file", outcome: "applied" },
    ]);
    expect(readdirSync(dirname(two.fileOf(tenantId))).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  test("that go back to an earlier text are a change again", async () => {
    const home = await startHome();
    const { tenantId } = await stage.createTenant();

    for (const prompt of ["a", "b", "a"]) {
      place(home.fileOf(tenantId), `system_prompt: ${prompt}\n`);
      await expect.poll(async () => await promptOf(home.reader, tenantId), patience).toBe(prompt);
    }

    expect(await actionsOf(tenantId)).toHaveLength(3);
  });

  test("that is bad in one home stops the tenant everywhere; the other home's good file does not hide it", async () => {
    const [one, two] = [await startHome(), await startHome()];
    const { tenantId } = await stage.createTenant();
    await one.write(tenantId, "system_prompt: good\n");
    await expect.poll(() => contentOf(two.fileOf(tenantId)), patience).toBe("system_prompt: good\n");

    place(two.fileOf(tenantId), "quotas: {}\n");
    for (const { reader } of [one, two])
      await expect.poll(async () => await codeOf(reader.of(tenantId)), patience).toBe("overlay_refused quotas");
    place(one.fileOf(tenantId), "system_prompt: good\n");
    utimesSync(one.fileOf(tenantId), 1, 1);
    expect((await one.reader.textOf(tenantId)).fault).toContain("quotas");

    rmSync(two.fileOf(tenantId));
    for (const { reader } of [one, two]) await expect.poll(async () => await codeOf(reader.of(tenantId)), patience).toBe("fine");
    await expect.poll(() => contentOf(two.fileOf(tenantId)), patience).toBe("system_prompt: good\n");
    expect(await actionsOf(tenantId)).toHaveLength(1);
  });

  test.each([
    ["a queue", (path: string) => void execFileSync("mkfifo", [path]), "is not a plain file"],
    ["more than 64 KB", (path: string) => writeFileSync(path, `#${"x".repeat(65_536)}`), "is larger than 65536 bytes"],
    ["bytes that are no text", (path: string) => writeFileSync(path, Buffer.from([0x6d, 0xff])), "is not UTF-8 text"],
    ["an explicit null", (path: string) => writeFileSync(path, "~\n"), "must be a mapping"],
  ])("that hold %s stop their tenant and nobody waits", async (_what, make, says) => {
    const home = await startHome();
    const { tenantId } = await stage.createTenant();
    mkdirSync(dirname(home.fileOf(tenantId)), { recursive: true });

    make(home.fileOf(tenantId));
    await expect.poll(async () => (await home.reader.textOf(tenantId)).fault, patience).toContain(says);

    await home.write(tenantId, "system_prompt: mended\n");
    expect(await codeOf(home.reader.of(tenantId))).toBe("fine");
    await expect.poll(() => contentOf(home.fileOf(tenantId)), patience).toBe("system_prompt: mended\n");
  });

  test("that are emptied and written by an editor are read when it is done", async () => {
    const home = await startHome();
    const { tenantId } = await stage.createTenant();
    await home.write(tenantId, "denied_tools: [exec]\n");
    await expect.poll(() => contentOf(home.fileOf(tenantId)), patience).toBe("denied_tools: [exec]\n");

    truncateSync(home.fileOf(tenantId), 0);
    writeFileSync(home.fileOf(tenantId), "denied_tools: [exec, write]\n");
    await expect.poll(async () => (await home.reader.of(tenantId)).overlay.deniedTools.has("write"), patience).toBe(true);

    expect(await actionsOf(tenantId)).toHaveLength(2);
  });

  test("that cannot be recorded are tried again, and until then the accepted text holds", async () => {
    let isAway = true;
    const changes: ChangesStage["changes"] = {
      ...stage.changes,
      async make(...given) {
        if (isAway) throw new AppError("unavailable");
        await stage.changes.make(...given);
      },
    };
    const home = await startHome({ changes });
    const { tenantId } = await stage.createTenant();
    place(home.fileOf(tenantId), "system_prompt: waits\n");
    await expect.poll(() => home.logged.join(), patience).toContain("trying on");
    expect(await promptOf(home.reader, tenantId)).toBeUndefined();

    isAway = false;

    await expect.poll(async () => await promptOf(home.reader, tenantId), patience).toBe("waits");
    expect(await actionsOf(tenantId)).toEqual([{ actor_id: "file", outcome: "applied" }]);
  });

  test("that were bad are looked at again by the next start, and stay bad when they are", async () => {
    const home = await startHome({ files: false });
    const { tenantId } = await stage.createTenant();
    place(home.fileOf(tenantId), "model: gone\n");
    utimesSync(home.fileOf(tenantId), 1, 1);
    await (await home.start()).stop();
    expect(await codeOf(home.reader.of(tenantId))).toBe("overlay_refused model");
    await (await home.start()).stop();
    expect(await codeOf(home.reader.of(tenantId))).toBe("overlay_refused model");

    place(home.fileOf(tenantId), "model: large\n");
    utimesSync(home.fileOf(tenantId), 1, 1);
    await (await home.start()).stop();

    expect((await home.reader.of(tenantId)).overlay.model).toBe("large");
  });

  test("of a home that goes by another name now are behind where they hold an earlier text, not edited", async () => {
    const home = await startHome({ files: false });
    const { tenantId } = await stage.createTenant();
    await home.write(tenantId, "system_prompt: earlier\n");
    await (await home.start()).stop();
    await home.write(tenantId, "system_prompt: later\n");
    await runSql(stage.stack.ownerUrl, `delete from control.overlay_file where tenant_id = '${tenantId}'`);
    utimesSync(home.fileOf(tenantId), 1, 1);

    await (await home.start()).stop();

    expect(contentOf(home.fileOf(tenantId))).toBe("system_prompt: later\n");
    expect(await actionsOf(tenantId)).toHaveLength(2);
  });

  test("of a deleted tenant are left alone", async () => {
    const home = await startHome({ files: false });
    const { tenantId } = await stage.createTenant();
    await home.write(tenantId, "system_prompt: x\n");
    await runSql(stage.stack.ownerUrl, `update control.tenant set state = 'deleted' where id = '${tenantId}'`);

    await (await home.start()).stop();

    expect(existsSync(dirname(home.fileOf(tenantId)))).toBe(false);
    expect(await codeOf(home.write(tenantId, "system_prompt: y\n"))).toBe("not_found");
  });
});

test("what the service gives to others is what the interface says", async () => {
  const { reader, writeAs } = await startHome({ files: false });
  const overlays: Overlays = { ...reader, write: writeAs };
  const { tenantId } = await stage.createTenant();

  await overlays.write(tenantId, "model: large\n", { actor: { type: "tenant", id: "0a1b2c3d" }, requestId: `req_rpc_${tenantId}` });

  expect(await overlays.textOf(tenantId)).toEqual({
    text: "model: large\n",
    digest: digestOfOverlay("model: large\n"),
    version: 1,
    fault: undefined,
  });
  expect(await actionsOf(tenantId)).toEqual([{ actor_id: "0a1b2c3d", outcome: "applied" }]);
  expect(
    await codeOf(
      overlays.write(tenantId, "quotas: {}\n", { actor: { type: "tenant", id: "0a1b2c3d" }, requestId: `req_rpc2_${tenantId}` }),
    ),
  ).toBe("overlay_refused quotas");
});
