import { createHash } from "node:crypto";
import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import { appendLines, auditFilePath, lineOf } from "../../control-plane/audit-file.ts";
import { startAuditRelay } from "../../control-plane/audit-relay.ts";
import { verifyAudit } from "../../control-plane/audit-verify.ts";
import { type AuditEntry, hashOfEntry } from "../../domain/audit.ts";
import { canonicalJson } from "../../domain/canonical-json.ts";
import { sha256Hex } from "../../domain/sha256.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { listEntries, readChain } from "../../storage/audit-repository.ts";
import { runSql } from "../storage/fresh-database.ts";
import { quiet } from "../turn-stack.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";

let stage: ChangesStage | undefined;
afterEach(async () => {
  await stage?.close();
  stage = undefined;
});

const length = 6;

async function startWithChain(): Promise<{ readonly stage: ChangesStage; readonly chain: TenantId }> {
  stage = await startChanges();
  const { tenantId } = await stage.createTenant();
  for (let n = 0; n < length; n++) await stage.make(tenantId, { type: n % 2 === 0 ? "tenant.suspend" : "tenant.resume" });
  await stage.relay.flush();
  return { stage, chain: tenantId };
}

/** As somebody who owns the database: the trigger is only against accidents. */
const tamper = async ({ stack }: ChangesStage, ...statements: string[]): Promise<void> =>
  void (await runSql(
    stack.ownerUrl,
    "alter table control.audit_entry disable trigger user",
    ...statements,
    "alter table control.audit_entry enable trigger user",
  ));

const entriesOf = async ({ stack }: ChangesStage, chain: string): Promise<readonly AuditEntry[]> =>
  await stack.database.withControl(async (tx) => await readChain(tx, chain, 0, 100));

const at = (chain: string, seq: number): string => `where chain = '${chain}' and seq = ${seq}`;

/** Makes entries from `from` on say another actor, with hashes that fit again, and the chain's end too. */
async function rewrite(own: ChangesStage, chain: string, from: number): Promise<readonly AuditEntry[]> {
  const entries = [...(await entriesOf(own, chain))];
  const statements: string[] = [];
  for (let index = from - 1; index < entries.length; index++) {
    const { hash: _hash, ...fields } = entries[index] as AuditEntry;
    const changed = { ...fields, actor: { type: "admin", id: "mallory" } as const, prev: entries[index - 1]?.hash ?? "0".repeat(64) };
    const entry = { ...changed, hash: hashOfEntry(changed) };
    entries[index] = entry;
    statements.push(
      `update control.audit_entry set actor_id = 'mallory', prev = '${entry.prev}', hash = '${entry.hash}' ${at(chain, entry.seq)}`,
    );
  }
  await tamper(own, ...statements, `update control.chain_head set hash = '${entries.at(-1)?.hash}' where chain = '${chain}'`);
  return entries;
}

/** The file as it would be if these had been the chain's entries. */
function rewriteFile({ stack }: ChangesStage, chain: string, entries: readonly AuditEntry[]): void {
  const path = auditFilePath(stack.home);
  const others = readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line !== "" && !line.includes(`"chain":"${chain}"`));
  writeFileSync(path, [...others, ...entries.map(lineOf)].map((line) => `${line}\n`).join(""));
}

type Tampering = (own: ChangesStage, chain: string) => Promise<unknown>;

const tamperings: readonly (readonly [string, number, Tampering])[] = [
  ["an edited entry", 3, async (own, chain) => await tamper(own, `update control.audit_entry set actor_id = 'nobody' ${at(chain, 3)}`)],
  ["a deleted entry", 4, async (own, chain) => await tamper(own, `delete from control.audit_entry ${at(chain, 4)}`)],
  [
    "two entries that changed places",
    2,
    async (own, chain) =>
      await tamper(
        own,
        ...["100 where seq = 2", "2 where seq = 3", "3 where seq = 100"].map(
          (move) => `update control.audit_entry set seq = ${move} and chain = '${chain}'`,
        ),
      ),
  ],
  [
    "an inserted entry",
    length + 1,
    async (own, chain) =>
      await tamper(
        own,
        `insert into control.audit_entry select chain, seq + 1, ts, actor_type, 'ghost', action, tenant, target, outcome, request_id, workflow_id, hash, repeat('ab', 32), 'op', answer from control.audit_entry ${at(chain, length)}`,
        `update control.chain_head set seq = ${length + 1}, hash = repeat('ab', 32) where chain = '${chain}'`,
      ),
  ],
  [
    "a tail that was cut off, in file and database",
    5,
    async (own, chain) => {
      await tamper(own, `delete from control.audit_entry where chain = '${chain}' and seq >= 5`);
      await tamper(
        own,
        `update control.chain_head set seq = 4, hash = (select hash from control.audit_entry ${at(chain, 4)}) where chain = '${chain}'`,
      );
      rewriteFile(own, chain, await entriesOf(own, chain));
    },
  ],
  ["entries that were hashed anew from one on", 3, async (own, chain) => await rewrite(own, chain, 3)],
  [
    "a whole chain that was rewritten, with its file: its anchor and its workflow remember",
    1,
    async (own, chain) => rewriteFile(own, chain, await rewrite(own, chain, 1)),
  ],
  [
    "a line of the file that was edited",
    2,
    async (own, chain) => {
      const entries = await entriesOf(own, chain);
      rewriteFile(
        own,
        chain,
        entries.map((entry) => (entry.seq === 2 ? { ...entry, outcome: "refused" as const } : entry)),
      );
    },
  ],
  [
    "lines of the file that were cut off",
    length,
    async ({ stack }) => truncateSync(auditFilePath(stack.home), readFileSync(auditFilePath(stack.home)).lastIndexOf(10, -2) + 1),
  ],
];

for (const [name, seq, attack] of tamperings) {
  test(`${name} is found at ${seq}`, async () => {
    const { stage: own, chain } = await startWithChain();
    expect(await own.verify()).toMatchObject({ ok: true, findings: [] });

    await attack(own, chain);
    const verification = await own.verify();

    expect(verification.ok).toBe(false);
    expect(verification.findings).toEqual([{ chain, seq, what: expect.any(String) }]);
  });
}

test("a line of the file that is no entry is named by its number", async () => {
  const { stage: own } = await startWithChain();
  appendFileSync(auditFilePath(own.stack.home), "not an entry\n");

  expect((await own.verify()).findings).toEqual([
    { chain: "audit.jsonl", seq: length + 3, what: expect.stringContaining(`line ${length + 3}`) },
  ]);
});

test("a relay that starts after a crash completes the file: nothing twice, a line that was cut short anew", async () => {
  const { stage: own, chain } = await startWithChain();
  await own.relay.stop();
  await own.make(chain, { type: "tenant.resume" });
  appendFileSync(auditFilePath(own.stack.home), `{"chain":"${chain}","seq":7,"half`); // the crash came in the middle of a line
  const path = auditFilePath(own.stack.home);

  const relay = await startAuditRelay({ database: own.stack.database, home: own.stack.home, log: quiet });
  await relay.flush();

  const lines = readFileSync(path, "utf8").trimEnd().split("\n");
  expect(lines.filter((line) => line.includes(`"chain":"${chain}"`)).map((line) => (JSON.parse(line) as AuditEntry).seq)).toEqual([
    1, 2, 3, 4, 5, 6, 7,
  ]);
  const { database, home } = own.stack;
  expect((await verifyAudit({ database, home, flush: relay.flush, stateOf: own.stateOf, anchors: own.anchors })).findings).toEqual([]);
  await relay.stop();
});

test("lines keep to their own form: what is appended after an unfinished line replaces it", async () => {
  const { stage: own } = await startWithChain();
  const path = `${auditFilePath(own.stack.home)}.copy`;
  writeFileSync(path, "one\ntw");

  appendLines(path, ["two", "three"]);

  expect(readFileSync(path, "utf8")).toBe("one\ntwo\nthree\n");
});

test("SHA-256 in a workflow is everybody's SHA-256", () => {
  const texts = [
    "",
    "abc",
    "ä€𝄞",
    "x".repeat(55),
    "x".repeat(56),
    "x".repeat(64),
    "x".repeat(1_000),
    canonicalJson({ b: [1, null], a: "\u2028" }),
  ];

  expect(texts.map(sha256Hex)).toEqual(texts.map((text) => createHash("sha256").update(text).digest("hex")));
});

test("ten thousand entries are listed page by page, each once, and verified", async () => {
  const { stage: own, chain } = await startWithChain();
  const { database } = own.stack;
  await own.relay.stop();
  await fillChain(own, chain, 10_000);
  const seen = new Set<string>();
  const started = performance.now();
  for (let after: Pick<AuditEntry, "ts" | "chain" | "seq"> | undefined, page: readonly AuditEntry[]; ; after = page.at(-1)) {
    page = await database.withControl(async (tx) => await listEntries(tx, { after, limit: 1_000 }), { readOnly: true });
    for (const entry of page) seen.add(`${entry.chain} ${entry.seq}`);
    if (page.length < 1_000) break;
  }
  const listedMs = performance.now() - started;
  const relay = await startAuditRelay({ database, home: own.stack.home, log: quiet });
  const { home } = own.stack;
  const verify = async () =>
    await verifyAudit({ database, home, flush: relay.flush, stateOf: async () => undefined, anchors: own.anchors });
  await verify();
  globalThis.gc?.();
  const heapBefore = process.memoryUsage().heapUsed;
  const verifying = performance.now();

  const verification = await verify();

  console.log(
    `10,000 entries: listed in ${listedMs.toFixed(0)} ms, verified in ${(performance.now() - verifying).toFixed(0)} ms, heap grew by ${((process.memoryUsage().heapUsed - heapBefore) / 1e6).toFixed(1)} MB`,
  );
  expect(verification).toMatchObject({ ok: true, findings: [] });
  expect(verification.entries).toBeGreaterThan(10_000);
  expect(seen.size).toBe(verification.entries);
  const one = await database.withControl(async (tx) => await listEntries(tx, { tenant: chain, action: "tenant.resume", limit: 5_000 }));
  expect(one.length).toBeGreaterThan(4_000);
  expect(one.every(({ tenant, action }) => tenant === chain && action === "tenant.resume")).toBe(true);
  await relay.stop();
}, 120_000);

/** Entries as the workflow would have written them, many with one time: what a list must not lose at the end of a page. */
async function fillChain(own: ChangesStage, chain: string, count: number): Promise<void> {
  const last = (await entriesOf(own, chain)).at(-1) as AuditEntry;
  let { seq, hash: prev } = last;
  const entries = Array.from({ length: count }, (_, n) => {
    const { hash: _hash, ...fields } = last;
    const ts = new Date(Date.parse(fields.ts) + Math.floor(n / 1_500) * 1_000).toISOString();
    const entry = { ...fields, seq: ++seq, prev, ts, action: n % 2 === 0 ? "tenant.suspend" : "tenant.resume" };
    prev = hashOfEntry(entry);
    return { ...entry, hash: prev, actor_type: entry.actor.type, actor_id: entry.actor.id, op_id: `op-${n}`, answer: {} };
  });
  const columns =
    "chain, seq, ts, actor_type, actor_id, action, tenant, target, outcome, request_id, workflow_id, prev, hash, op_id, answer";
  await own.stack.database.withControl(async (tx) => {
    await tx.execute(
      `insert into control.audit_entry (${columns}) select ${columns} from jsonb_populate_recordset(null::control.audit_entry, $1::jsonb)`,
      [JSON.stringify(entries)],
    );
    await tx.execute("update control.chain_head set seq = $2, hash = $3 where chain = $1", [chain, seq, prev]);
  });
}
