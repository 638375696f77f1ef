import { fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, inject, test } from "vitest";
import { auditAnchors } from "../../control-plane/anchor-audit.ts";
import { type AnchorKeeper, startAnchorKeeper } from "../../control-plane/anchor-keeper.ts";
import { directoryPlace } from "../../control-plane/anchor-place.ts";
import { auditFilePath, lineOf } from "../../control-plane/audit-file.ts";
import { auditSigningKeyPath, keyIdOf, openSigningKey, publicKeyOf, signingKeyOf } from "../../control-plane/audit-signing-key.ts";
import { verifyAudit } from "../../control-plane/audit-verify.ts";
import { type AuditEntry, hashOfEntry } from "../../domain/audit.ts";
import type { SignedAnchor } from "../../domain/audit-anchor.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { readAnchors } from "../../storage/audit-anchor-repository.ts";
import { readChain } from "../../storage/audit-repository.ts";
import { runSql } from "../storage/fresh-database.ts";
import { quiet } from "../turn-stack.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";

const length = 6;
const dayMs = 24 * 60 * 60 * 1_000;

let stage: ChangesStage;
const started: AnchorKeeper[] = [];
afterEach(async () => {
  for (const keeper of started.splice(0)) await keeper.stop();
  await stage.close();
});

/** A chain of six entries whose last one is signed. */
async function startWithChain(options: Parameters<typeof startChanges>[0] = {}): Promise<TenantId> {
  stage = await startChanges(options);
  const { tenantId } = await stage.createTenant();
  await grow(tenantId, length);
  await stage.relay.flush();
  await stage.anchors.flush();
  return tenantId;
}

async function grow(chain: TenantId, entries: number): Promise<void> {
  for (let n = 0; n < entries; n++) await stage.make(chain, { type: n % 2 === 0 ? "tenant.suspend" : "tenant.resume" });
}

const tables = ["audit_entry", "audit_anchor", "audit_key"];

/** As somebody who owns the database: triggers are only against accidents. */
const tamper = async (...statements: string[]): Promise<void> =>
  void (await runSql(
    stage.stack.ownerUrl,
    ...tables.map((table) => `alter table control.${table} disable trigger user`),
    ...statements,
    ...tables.map((table) => `alter table control.${table} enable trigger user`),
  ));

const entriesOf = async (chain: string): Promise<readonly AuditEntry[]> =>
  await stage.stack.database.withControl(async (tx) => await readChain(tx, chain, 0, 5_000));
const anchorsOf = async (chain: string): Promise<readonly SignedAnchor[]> =>
  (await stage.stack.database.withControl(async (tx) => await readAnchors(tx, chain))).filter(({ key }) => key === stage.anchors.keyId);

const placePath = (): string => join(stage.stack.home, "audit-anchors");

/** Rewrites the chain from its first entry on, with all hashes, its end and the file: what is left is what was signed. */
async function rewriteEverything(chain: string): Promise<readonly AuditEntry[]> {
  let prev = "0".repeat(64);
  const entries = (await entriesOf(chain)).map(({ hash: _hash, ...fields }) => {
    const changed = { ...fields, actor: { type: "admin", id: "mallory" } as const, prev };
    prev = hashOfEntry(changed);
    return { ...changed, hash: prev };
  });
  await tamper(
    ...entries.map(
      (entry) =>
        `update control.audit_entry set actor_id = 'mallory', prev = '${entry.prev}', hash = '${entry.hash}' where chain = '${chain}' and seq = ${entry.seq}`,
    ),
    `update control.chain_head set hash = '${prev}' where chain = '${chain}'`,
  );
  rewriteFile(chain, entries);
  return entries;
}

function rewriteFile(chain: string, entries: readonly AuditEntry[]): void {
  const path = auditFilePath(stage.stack.home);
  const others = readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line !== "" && !line.includes(`"chain":"${chain}"`));
  writeFileSync(path, [...others, ...entries.map(lineOf)].map((line) => `${line}\n`).join(""));
}

/** The workflow's memory is gone too: its history's retention is over, or somebody deleted it. */
async function forgetWorkflow(chain: string): Promise<void> {
  await stage.stack.connection.client.workflow.getHandle(`tenant:${chain}`).terminate();
}

const verifyWithoutWorkflows = async (anchors = stage.anchors, sinceMs?: number) =>
  await verifyAudit(
    { database: stage.stack.database, home: stage.stack.home, flush: stage.relay.flush, stateOf: async () => undefined, anchors },
    { sinceMs },
  );

/** Another keeper over the same home and database, as the next start of the gateway makes it. */
async function restartKeeper(more: Partial<Parameters<typeof startAnchorKeeper>[0]> = {}): Promise<AnchorKeeper> {
  const { database, home } = stage.stack;
  const key = more.key ?? (await openSigningKey({ database, home, log: quiet }));
  const keeper = await startAnchorKeeper({
    database,
    key,
    places: [directoryPlace(placePath(), key)],
    log: quiet,
    intervalMs: 3_600_000,
    ...more,
  });
  started.push(keeper);
  await keeper.flush();
  return keeper;
}

describe("what somebody who owns the database cannot hide", () => {
  const tamperings: readonly (readonly [string, number, (chain: TenantId) => Promise<unknown>])[] = [
    ["a rewrite of the whole chain, its end and its file", 1, rewriteEverything],
    [
      "the same with new anchors, signed with a key of the attacker's",
      1,
      async (chain) => {
        const entries = await rewriteEverything(chain);
        const key = signingKeyOf(Buffer.alloc(32, 7).toString("base64"));
        const { seq, hash } = entries.at(-1) as AuditEntry;
        const forged = key.sign({ chain, seq, hash, run: null, ts: new Date().toISOString() });
        const spki = publicKeyOf(key.publicKey).export({ format: "der", type: "spki" }).toString("hex");
        await tamper(
          `insert into control.audit_key (id, public_key) values ('${key.id}', '\\x${spki}')`,
          `delete from control.audit_anchor where chain = '${chain}'`,
          `insert into control.audit_anchor (chain, seq, hash, ts, key_id, signature) values ('${chain}', ${seq}, '${hash}', '${forged.ts}', '${key.id}', '${forged.signature}')`,
        );
      },
    ],
    [
      "the same with its anchors made to fit, under the signatures that were there",
      length,
      async (chain) => {
        const entries = await rewriteEverything(chain);
        await tamper(
          ...(await anchorsOf(chain)).map(
            ({ seq }) => `update control.audit_anchor set hash = '${entries[seq - 1]?.hash}' where chain = '${chain}' and seq = ${seq}`,
          ),
        );
        rmSync(placePath(), { recursive: true });
      },
    ],
    [
      "a tail that was cut off before its anchor, in the file too",
      4,
      async (chain) => {
        const kept = (await entriesOf(chain)).slice(0, 3);
        await tamper(
          `delete from control.audit_entry where chain = '${chain}' and seq > 3`,
          `update control.chain_head set seq = 3, hash = '${kept[2]?.hash}' where chain = '${chain}'`,
        );
        rewriteFile(chain, kept);
      },
    ],
    [
      "a chain of which nothing is left",
      1,
      async (chain) => {
        await tamper(`delete from control.audit_entry where chain = '${chain}'`, `delete from control.chain_head where chain = '${chain}'`);
        rewriteFile(chain, []);
      },
    ],
    [
      "an edited entry",
      3,
      async (chain) => await tamper(`update control.audit_entry set actor_id = 'nobody' where chain = '${chain}' and seq = 3`),
    ],
    ["a deleted entry", 2, async (chain) => await tamper(`delete from control.audit_entry where chain = '${chain}' and seq = 2`)],
    ["a deleted anchor", length, async (chain) => await tamper(`delete from control.audit_anchor where chain = '${chain}'`)],
    [
      "an anchor of another chain under this one's name",
      length,
      async (chain) =>
        await tamper(
          `insert into control.audit_anchor select '${chain}', seq, hash, run, ts + interval '1 second', key_id, signature from control.audit_anchor where chain = '${chain}'`,
        ),
    ],
  ];

  for (const [name, seq, attack] of tamperings) {
    test(`${name} is found at ${seq}, though its workflow is gone`, async () => {
      const chain = await startWithChain();
      expect(await verifyWithoutWorkflows()).toMatchObject({ ok: true, findings: [] });

      await attack(chain);
      const { ok, findings } = await verifyWithoutWorkflows();

      expect(ok).toBe(false);
      expect(findings).toContainEqual({ chain, seq, what: expect.any(String) });
    });
  }

  test("a recorded public key that was swapped is named", async () => {
    await startWithChain();
    const other = publicKeyOf(signingKeyOf(Buffer.alloc(32, 9).toString("base64")).publicKey).export({ format: "der", type: "spki" });

    await tamper(`update control.audit_key set public_key = '\\x${other.toString("hex")}'`);

    expect((await verifyWithoutWorkflows()).findings).toContainEqual({
      chain: "anchors",
      seq: 0,
      what: expect.stringContaining("is another one"),
    });
  });

  test("a key that nobody recorded by an entry is named, and one whose record is gone", async () => {
    await startWithChain();
    await tamper(`insert into control.audit_key (id, public_key) select repeat('ab', 32), public_key from control.audit_key`);
    const strange = await verifyWithoutWorkflows();
    await tamper("delete from control.audit_key");
    const lost = await verifyWithoutWorkflows();

    expect(strange.findings).toContainEqual({ chain: "system", seq: 3, what: expect.stringContaining("has no entry") });
    expect(lost.findings).toContainEqual({ chain: "anchors", seq: 0, what: expect.stringContaining("is not recorded any more") });
  });

  test("a line of the file that was edited, and one of the place that was, are named", async () => {
    const chain = await startWithChain();
    const entries = await entriesOf(chain);
    rewriteFile(
      chain,
      entries.map((entry) => (entry.seq === 2 ? { ...entry, outcome: "refused" as const } : entry)),
    );
    const file = await verifyWithoutWorkflows();
    rewriteFile(chain, entries);
    const [name = ""] = readdirSync(placePath()).filter((one) => one.endsWith(".jsonl"));
    const text = readFileSync(join(placePath(), name), "utf8");
    writeFileSync(join(placePath(), name), text.replace(`"chain":"${chain}"`, `"chain":"other-chain"`));
    const place = await verifyWithoutWorkflows();

    expect(file.findings).toContainEqual({ chain, seq: 2, what: expect.stringContaining("audit.jsonl") });
    expect(place.findings).toContainEqual({ chain, seq: length, what: expect.stringContaining("was removed from") });
    expect(place.findings.some((finding) => finding.chain === "other-chain")).toBe(true);
  });

  test("a rewritten chain is not signed again, however much it grows", async () => {
    const chain = await startWithChain();
    await rewriteEverything(chain);
    const alarms: string[] = [];

    await restartKeeper({ everyEntries: 1, everyMs: 0, log: (message) => void alarms.push(message) });
    await forgetWorkflow(chain);
    await grow(chain, 2);
    await restartKeeper({ everyEntries: 1, log: (message) => void alarms.push(message) });

    expect((await anchorsOf(chain)).map(({ seq }) => seq)).toEqual([length]);
    expect(alarms.filter((message) => message.startsWith("ALARM")).length).toBeGreaterThan(0);
    expect((await stage.verify()).findings).toContainEqual({ chain, seq: 1, what: expect.stringContaining("signed on") });
  });
});

describe("when an anchor is made", () => {
  test("a chain's first entry at once, then every thousandth, then whatever is a day old", async () => {
    const chain = await startWithChain();
    await restartKeeper({ everyEntries: 4 });
    await grow(chain, 3);
    await restartKeeper({ everyEntries: 4 });
    const early = (await anchorsOf(chain)).map(({ seq }) => seq);
    await grow(chain, 1);
    await restartKeeper({ everyEntries: 4 });
    const counted = (await anchorsOf(chain)).map(({ seq }) => seq);
    await grow(chain, 1);
    await restartKeeper({ now: () => Date.now() + dayMs - 60_000 });
    const nearly = (await anchorsOf(chain)).map(({ seq }) => seq);
    await restartKeeper({ now: () => Date.now() + dayMs });

    expect([early, counted, nearly]).toEqual([[6], [6, 10], [6, 10]]);
    expect((await anchorsOf(chain)).map(({ seq }) => seq)).toEqual([6, 10, 11]);
    expect(await stage.verify()).toMatchObject({ ok: true });
  });

  test("the first entry of each new run of the workflow", async () => {
    const chain = await startWithChain({ changesPerRun: 3 });
    const runs = new Set<string>();
    for (let n = 0; n < 9; n++) {
      await grow(chain, 1);
      await stage.anchors.flush();
    }
    const anchors = await anchorsOf(chain);
    for (const { run } of anchors) runs.add(run ?? "");

    expect(runs.size).toBe(anchors.length);
    expect(anchors.length).toBeGreaterThanOrEqual(3);
    expect(await stage.verify()).toMatchObject({ ok: true });
  });

  test("an entry that was written by a process that was killed before it could sign", async () => {
    const chain = await startWithChain();
    const { stack, namespace } = stage;
    const child = fork(fileURLToPath(new URL("anchor-worker.ts", import.meta.url)), [
      JSON.stringify({
        ownerUrl: stack.ownerUrl,
        namespace,
        temporalAddress: inject("temporalAddress"),
        bundleDirectory: inject("bundleDirectory"),
      }),
      stack.home,
      chain,
    ]);
    await once(child, "message"); // it has signed, and would now put the anchor into its place
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
    const stored = (await anchorsOf(chain)).map(({ seq }) => seq);
    const placed = async () =>
      (await directoryPlace(placePath()).list()).anchors.filter((anchor) => anchor.chain === chain).map(({ seq }) => seq);
    const before = await placed();

    await restartKeeper();

    expect(stored).toEqual([length, length + 2]);
    expect(before).toEqual([length]);
    expect(await placed()).toEqual([length, length + 2]);
    await grow(chain, 1); // the workflow goes on where the dead process left it
    expect(await stage.verify()).toMatchObject({ ok: true, findings: [] });
  });
});

describe("with a key that was given out of band", () => {
  const trusted = () => {
    const key = publicKeyOf(readFileSync(join(placePath(), readdirSync(placePath()).find((name) => name.endsWith(".pem")) ?? ""), "utf8"));
    return new Map([[keyIdOf(key), key]]);
  };
  const audit = async (anchors: readonly SignedAnchor[], keys = trusted()) =>
    await auditAnchors({
      anchors,
      keys,
      async *entriesOf(chain) {
        yield await entriesOf(chain);
      },
    });

  test("a copy of the anchors finds a rewrite that reached even this home's own key and anchors", async () => {
    const chain = await startWithChain();
    const copy = (await directoryPlace(placePath()).list()).anchors;
    const keys = trusted();
    expect(await audit(copy, keys)).toMatchObject({ findings: [], chains: 2, anchors: 3 });
    const { database, home } = stage.stack;

    await rewriteEverything(chain);
    rmSync(placePath(), { recursive: true });
    rmSync(auditSigningKeyPath(home));
    await tamper("delete from control.audit_anchor");
    const usurper = await openSigningKey({ database, home, log: quiet });
    await restartKeeper({ key: usurper });

    expect((await audit(copy, keys)).findings).toEqual([{ chain, seq: 1, what: expect.any(String) }]);
    expect((await entriesOf("system")).filter(({ action }) => action === "audit-key.create")).toHaveLength(2); // the swap is itself an entry
  });

  test("anchors by other keys count for nothing", async () => {
    await startWithChain();
    const strange = publicKeyOf(signingKeyOf(Buffer.alloc(32, 5).toString("base64")).publicKey);

    expect(await audit((await directoryPlace(placePath()).list()).anchors, new Map([[keyIdOf(strange), strange]]))).toEqual({
      findings: [],
      chains: 0,
      anchors: 0,
      entries: 0,
    });
  });
});

test("what could not be compared is said", async () => {
  const chain = await startWithChain();
  await grow(chain, 2);

  const { notes, anchors } = await verifyWithoutWorkflows();

  expect(anchors).toBe(3); // one of the tenant's chain, two of the system's
  expect(notes.join("\n")).toContain("2 chains have no workflow to compare with");
  expect(notes.join("\n")).toMatch(/2 entries stand behind their chain's last anchor/);
});

test("from a time on, only what follows the anchor before it is read", async () => {
  const chain = await startWithChain();
  await grow(chain, 3);
  const [anchor] = await anchorsOf(chain);
  await tamper(`update control.audit_entry set actor_id = 'nobody' where chain = '${chain}' and seq = 2`);

  const since = await verifyWithoutWorkflows(stage.anchors, Date.parse(anchor?.ts ?? ""));
  await tamper(`update control.audit_entry set actor_id = 'nobody' where chain = '${chain}' and seq = ${length + 1}`);
  const later = await verifyWithoutWorkflows(stage.anchors, Date.parse(anchor?.ts ?? ""));

  expect(since).toMatchObject({ ok: true });
  expect(since.entries).toBeLessThan(length + 3);
  expect(later.findings).toEqual([{ chain, seq: length + 1, what: expect.any(String) }]);
});

test("the signing key is made once, is for its owner's eyes, and refuses to be anything else", async () => {
  await startWithChain();
  const { database, home } = stage.stack;
  const path = auditSigningKeyPath(home);
  const again = await openSigningKey({ database, home, log: quiet });
  expect(again.id).toBe(stage.anchors.keyId);

  renameSync(path, `${path}.kept`);
  writeFileSync(path, "not a key\n", { mode: 0o400 });
  await expect(openSigningKey({ database, home, log: quiet })).rejects.toThrow(/32 bytes in base64/);
  rmSync(path);
  writeFileSync(path, readFileSync(`${path}.kept`), { mode: 0o644 });
  await expect(openSigningKey({ database, home, log: quiet })).rejects.toThrow(/may be read by others/);
});
