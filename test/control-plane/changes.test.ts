import { spawn } from "node:child_process";
import { once } from "node:events";
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { changeOffline, writeChange } from "../../control-plane/audit-chain.ts";
import { createAuthentication } from "../../control-plane/authentication.ts";
import { mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import { type AuditEntry, hashOfEntry } from "../../domain/audit.ts";
import { canonicalJson } from "../../domain/canonical-json.ts";
import { parseTenantId, systemOwner, type TenantId } from "../../domain/tenant.ts";
import { readChain } from "../../storage/audit-repository.ts";
import { runSql } from "../storage/fresh-database.ts";
import { quiet } from "../turn-stack.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";

let stage: ChangesStage;
beforeAll(async () => {
  stage = await startChanges();
});
afterAll(async () => await stage.close());

const entriesOf = async (chain: string, at = stage) =>
  await at.stack.database.withControl(async (tx) => await readChain(tx, chain, 0, 1_000));
const rotation = (tenantId: TenantId) => {
  const { token, hash } = mintTenantToken(tenantId);
  return { token, command: { type: "token.rotate", tokenHash: hash.toString("hex") } as const };
};
const isLive = async (token: string): Promise<boolean> => {
  const authentication = createAuthentication({ database: stage.stack.database, log: quiet });
  const live = await authentication.authenticate(`Bearer ${token}`).then(
    () => true,
    () => false,
  );
  await authentication.close();
  return live;
};

test("a rotation ends the old token and is one entry, whose hash anybody can compute", async () => {
  const { tenantId, token } = await stage.createTenant();
  const { token: newToken, command } = rotation(tenantId);

  await stage.make(tenantId, command);

  expect(await isLive(token)).toBe(false);
  expect(await isLive(newToken)).toBe(true);
  const [entry, ...more] = await entriesOf(tenantId);
  expect(more).toEqual([]);
  expect(entry).toEqual({
    chain: tenantId,
    seq: 1,
    ts: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z$/),
    actor: { type: "admin", id: "root" },
    action: "token.rotate",
    tenant: tenantId,
    target: `token:${command.tokenHash.slice(0, 8)}`,
    outcome: "applied",
    request_id: expect.stringMatching(/^req_/),
    workflow_id: `tenant:${tenantId}`,
    prev: "0".repeat(64),
    hash: expect.stringMatching(/^[0-9a-f]{64}$/),
  });
  const { hash, ...fields } = entry ?? ({} as never);
  expect(createHash("sha256").update(canonicalJson(fields)).digest("hex")).toBe(hash);
  expect(hashOfEntry(fields)).toBe(hash);
  expect((await stage.stateOf(tenantId))?.head).toEqual({ seq: 1, hash });
});

test("fifty changes at once from two processes make a chain without a gap", async () => {
  const { tenantId } = await stage.createTenant("race");
  const place = {
    ownerUrl: stage.stack.ownerUrl,
    namespace: stage.namespace,
    temporalAddress: inject("temporalAddress"),
    bundleDirectory: inject("bundleDirectory"),
  };
  const script = fileURLToPath(new URL("changes-worker.ts", import.meta.url));
  const child = spawn(process.execPath, [script, JSON.stringify(place), tenantId], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");

  await Promise.all(Array.from({ length: 25 }, async () => await stage.make(tenantId, rotation(tenantId).command)));
  const [exitCode] = await exited;

  expect(exitCode).toBe(0);
  const entries = await entriesOf(tenantId);
  expect(entries.map(({ seq }) => seq)).toEqual(Array.from({ length: 50 }, (_, index) => index + 1));
  expect((await stage.stateOf(tenantId))?.head?.seq).toBe(50);
  const verification = await stage.verify();
  expect(verification.findings).toEqual([]);
});

test("the same operation twice is made once", async () => {
  const { tenantId } = await stage.createTenant();

  await Promise.all([
    stage.make(tenantId, { type: "tenant.suspend" }, { key: "k-1" }),
    stage.make(tenantId, { type: "tenant.suspend" }, { key: "k-1" }),
  ]);
  await stage.make(tenantId, { type: "tenant.suspend" }, { key: "k-1" });

  expect(await entriesOf(tenantId)).toHaveLength(1);
  await expect(stage.make(tenantId, { type: "tenant.resume" }, { key: "k-1", request: "another" })).rejects.toMatchObject({
    code: "idempotency_mismatch",
  });
  expect(await entriesOf(tenantId)).toHaveLength(1);
});

test("a repeated rotation is not made again, and where its answer was not kept no token is made up", async () => {
  const { tenantId } = await stage.createTenant();
  const first = rotation(tenantId);
  await stage.make(tenantId, first.command, { key: "k-2" });

  await expect(stage.make(tenantId, rotation(tenantId).command, { key: "k-2" })).rejects.toMatchObject({ code: "conflict" });

  expect(await entriesOf(tenantId)).toHaveLength(1);
  expect(await isLive(first.token)).toBe(true);
});

test("a change that is refused takes its place in the chain and changes nothing", async () => {
  const { tenantId } = await stage.createTenant();
  const before = (await entriesOf("system")).length;
  const again = { type: "tenant.create", tenantId, displayName: null, markup: null, tokenHash: "ab".repeat(32) } as const;

  await expect(stage.make(systemOwner, again)).rejects.toMatchObject({ code: "conflict", client: { param: "id" } });
  await expect(stage.make(systemOwner, { ...again, tenantId: "system" })).rejects.toMatchObject({ code: "conflict" });

  const entries = await entriesOf("system");
  expect(entries.slice(before).map(({ seq, outcome }) => [seq, outcome])).toEqual([
    [before + 1, "refused"],
    [before + 2, "refused"],
  ]);
  expect((await stage.verify()).findings).toEqual([]);
});

test("a change that failed for good stays unmade: an attempt that was given up comes too late, and the operation may be tried again", async () => {
  const tenantId = parseTenantId(`late-${randomBytes(4).toString("hex")}`);
  const command = { type: "tenant.create", tenantId, displayName: null, markup: null, tokenHash: "cd".repeat(32) } as const;
  const { database, home, ownerUrl } = stage.stack;
  const before = (await entriesOf("system")).length;
  const inTheWay = join(home, "tenants", tenantId);
  mkdirSync(join(home, "tenants"), { recursive: true });
  writeFileSync(inTheWay, "");
  const deps = { database, home };
  const exists = async (): Promise<boolean> =>
    (await runSql(ownerUrl, `select from control.tenant where id = '${tenantId}'`)).rowCount === 1;

  await expect(stage.make(systemOwner, command, { key: "k-late" })).rejects.toMatchObject({ code: "internal" });
  rmSync(inTheWay);
  const [failed] = (await entriesOf("system")).slice(before);
  const { rows } = await runSql(ownerUrl, `select op_id from control.audit_entry where chain = 'system' and seq = ${failed?.seq}`);
  const opId = String(rows[0]?.op_id).replace(/^failed:\d+:/, "");
  const { actor, request_id: requestId, seq = 0, prev = "", ts = "" } = failed ?? ({} as never as AuditEntry);
  const late = await writeChange(
    deps,
    systemOwner,
    { workflowId: "tenant:_system", runId: null },
    { opId, command, actor, requestId, seq, prev, ts },
  );

  expect(late).toMatchObject({ state: "written", outcome: { state: "refused", code: "internal" } });
  expect(await exists()).toBe(false);
  await stage.make(systemOwner, command, { key: "k-late" });
  expect(await exists()).toBe(true);
  expect((await entriesOf("system")).slice(before).map(({ action, outcome }) => [action, outcome])).toEqual([
    ["tenant.create", "refused"],
    ["tenant.create", "applied"],
  ]);
  expect((await stage.verify()).findings).toEqual([]);
});

test("an admin key is made, used and revoked; the last one for everything stays", async () => {
  const key = mintAdminKey("ops1");
  await stage.make(systemOwner, { type: "admin-key.create", keyId: "ops1", keyHash: key.hash.toString("hex"), scopes: ["all"] });
  const { hash } = mintAdminKey("ops2");
  await stage.make(systemOwner, { type: "admin-key.create", keyId: "ops2", keyHash: hash.toString("hex"), scopes: ["read", "billing"] });

  expect(await isLive(key.key)).toBe(true);
  await expect(stage.make(systemOwner, { type: "admin-key.revoke", keyId: "ops1" })).rejects.toMatchObject({ code: "conflict" });
  await stage.make(systemOwner, { type: "admin-key.revoke", keyId: "ops2" });
  await expect(stage.make(systemOwner, { type: "admin-key.revoke", keyId: "ops2" })).rejects.toMatchObject({ code: "not_found" });
});

test("no change is lost while the workflow moves to new runs", async () => {
  const moving = await startChanges({ ownerUrl: stage.stack.ownerUrl, namespace: stage.namespace, changesPerRun: 3 });
  const { tenantId } = await stage.createTenant("moving");

  await Promise.all(Array.from({ length: 20 }, async () => await moving.make(tenantId, rotation(tenantId).command)));

  expect((await entriesOf(tenantId)).map(({ seq }) => seq)).toEqual(Array.from({ length: 20 }, (_, index) => index + 1));
  expect((await moving.stateOf(tenantId))?.head?.seq).toBe(20);
  const { adoptedSeq } = (await moving.stateOf(tenantId)) ?? { adoptedSeq: -1 };
  expect(adoptedSeq).toBe(0); // each run was handed the chain's end by the one before it
  await moving.close();
});

test("what was recorded offline is taken over by the workflow's next change", async () => {
  const { tenantId, token } = await stage.createTenant();
  await stage.make(tenantId, { type: "tenant.resume" });
  await changeOffline({ database: stage.stack.database, home: stage.stack.home }, tenantId, {
    opId: "break-glass-1",
    command: { type: "token.revoke" },
    actor: { type: "system", id: "break-glass" },
    requestId: "break-glass",
  });
  expect(await isLive(token)).toBe(false);
  expect((await stage.verify()).findings).toEqual([]);

  const { token: next, command } = rotation(tenantId);
  await stage.make(tenantId, command);

  expect(await isLive(next)).toBe(true);
  expect((await entriesOf(tenantId)).map(({ action, workflow_id }) => [action, workflow_id])).toEqual([
    ["tenant.resume", `tenant:${tenantId}`],
    ["token.revoke", "offline"],
    ["token.rotate", `tenant:${tenantId}`],
  ]);
  expect((await stage.verify()).findings).toEqual([]);
});

test("a chain that was cut behind the workflow's back takes no more changes, and nothing is changed", async () => {
  const own = await startChanges();
  const { tenantId, token } = await own.createTenant("cut");
  await own.make(tenantId, { type: "tenant.resume" });
  await own.make(tenantId, { type: "tenant.resume" });
  await runSql(
    own.stack.ownerUrl,
    "alter table control.audit_entry disable trigger user",
    `delete from control.audit_entry where chain = '${tenantId}' and seq = 2`,
    `update control.chain_head set seq = 1, hash = (select hash from control.audit_entry where chain = '${tenantId}' and seq = 1) where chain = '${tenantId}'`,
    "alter table control.audit_entry enable trigger user",
  );

  await expect(own.make(tenantId, rotation(tenantId).command)).rejects.toMatchObject({ code: "chain_broken" });
  await expect(own.make(tenantId, rotation(tenantId).command)).rejects.toMatchObject({ code: "chain_broken" });

  const authentication = createAuthentication({ database: own.stack.database, log: quiet });
  expect(await authentication.authenticate(`Bearer ${token}`)).toMatchObject({ tenantId });
  await authentication.close();
  expect(await entriesOf(tenantId, own)).toHaveLength(1);
  expect((await own.verify()).findings).toEqual([expect.objectContaining({ chain: tenantId, seq: 2 })]);
  await own.close();
});

test("a tenant's workflow makes no change of the system's, and the system's none of a tenant's", async () => {
  const { tenantId } = await stage.createTenant();
  const create = { type: "tenant.create", tenantId: "evil", displayName: null, markup: null, tokenHash: "ab".repeat(32) } as const;

  await expect(stage.make(tenantId, create)).rejects.toMatchObject({ code: "internal" });
  await expect(stage.make(systemOwner, { type: "tenant.suspend" })).rejects.toMatchObject({ code: "internal" });

  expect(await entriesOf(tenantId)).toEqual([]);
});

test("entries cannot be changed, removed or emptied, not even by the owner by accident", async () => {
  const { tenantId } = await stage.createTenant();
  await stage.make(tenantId, { type: "tenant.resume" });
  const { ownerUrl } = stage.stack;

  await expect(runSql(ownerUrl, `update control.audit_entry set actor_id = 'x' where chain = '${tenantId}'`)).rejects.toThrow(
    "never changed",
  );
  await expect(runSql(ownerUrl, `delete from control.audit_entry where chain = '${tenantId}'`)).rejects.toThrow("never changed");
  await expect(runSql(ownerUrl, "truncate control.audit_entry")).rejects.toThrow("never changed");
  await expect(stage.stack.database.withControl((tx) => tx.execute("update control.audit_entry set actor_id = 'x'"))).rejects.toThrow(
    "permission denied",
  );
});

test("how long one change takes", async () => {
  const { tenantId } = await stage.createTenant();
  const took: number[] = [];
  for (let n = 0; n < 40; n++) {
    const startedAt = performance.now();
    await stage.make(tenantId, rotation(tenantId).command);
    took.push(performance.now() - startedAt);
  }
  took.sort((a, b) => a - b);
  console.log(`change: P50 ${took[20]?.toFixed(1)} ms, P95 ${took[38]?.toFixed(1)} ms`);

  expect(took[20]).toBeLessThan(1_000);
});
