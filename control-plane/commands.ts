import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { Command } from "../domain/audit.ts";
import { invoiceEventIdOf } from "../domain/invoice.ts";
import { parseMarkup } from "../domain/money.ts";
import { type QuotaChange, noQuota } from "../domain/tenant-quota.ts";
import { parseTenantId, systemOwner, type Owner, type TenantId } from "../domain/tenant.ts";
import { closeChain } from "../storage/audit-repository.ts";
import type { ControlTx, Database } from "../storage/database.ts";
import { noteAlarm } from "../storage/reconcile-repository.ts";
import { resolveEvent } from "../storage/invoice-repository.ts";
import { acceptOverlay } from "../storage/overlay-repository.ts";
import { requestRotation } from "../storage/key-rotation.ts";
import { homeIdOf } from "../storage/home-id.ts";
import { createTenantDirectory } from "../storage/tenant-paths.ts";
import { adminScopes } from "./authentication.ts";
import { putCardInForce } from "./rate-card-in-force.ts";
import { checkDisplayName, notFound, tenantExists } from "./tenants.ts";

/** The channel that tells every process that a tenant's token or state has changed; the payload is the tenant's id. */
export const tokenChannel = "openclaw_token";

export type CommandDeps = {
  readonly database: Pick<Database, "withControl">;
  readonly home: string;
};

/**
 * Makes a state change in a transaction that has locked the chain.
 * @throws {AppError} anything but `unavailable` and `internal` is a refusal
 */
export async function applyCommand(tx: ControlTx, owner: Owner, command: Command, { home }: CommandDeps): Promise<void> {
  switch (command.type) {
    case "tenant.create":
      return await createTenant(tx, command, home);
    case "tenant.delete":
      return await deleteTenant(tx, parseTenantId(command.tenantId));
    case "admin-key.create":
      return await createAdminKey(tx, command);
    case "admin-key.revoke":
      return await revokeAdminKey(tx, command.keyId);
    case "keys.rotate":
      return await requestRotation(tx, command.rotationId);
    case "rate-card.update":
      return await putCardInForce(tx, command);
    case "payloads.decode":
    case "temporal.operate":
    case "usage.alarm":
    case "sandbox.exec":
    case "sandbox.copy":
    case "sandbox.egress":
      return; // the entry is all there is to do
    case "audit-key.create":
      return await createAuditKey(tx, command);
    case "invoice.run":
      return; // what it starts is told by its events
    case "billing.alarm":
      return await noteAlarm(tx, command.findingId);
    case "invoice.resolve":
      return await resolveInvoiceEvent(tx, command);
    case "tenant.suspend":
    case "tenant.resume":
      return await changeTenant(tx, tenantOf(owner), { state: command.type === "tenant.suspend" ? "suspended" : "active" });
    case "tenant.update":
      return await updateTenant(tx, tenantOf(owner), command);
    case "quota.update":
      return await updateTenant(tx, tenantOf(owner), command);
    case "tenant.erase":
      return await endChain(tx, tenantOf(owner));
    case "token.revoke":
      return await replaceTokens(tx, tenantOf(owner), undefined);
    case "token.rotate":
      return await replaceTokens(tx, tenantOf(owner), hashBytes(command.tokenHash));
    case "overlay.write":
      return await writeOverlay(tx, tenantOf(owner), command.digest);
  }
}

function tenantOf(owner: Owner): TenantId {
  if (owner === systemOwner) throw new AppError("tenant_violation", { owner });
  return owner;
}

function hashBytes(hex: string): Buffer {
  if (!/^[0-9a-f]{64}$/.test(hex)) throw new AppError("invalid_request", { client: { message: "A credential's hash has 64 hex digits." } });
  return Buffer.from(hex, "hex");
}

/** Id of the tenant that would share its chain's name with the system's. */
const reservedId = "system";

function checkNewTenant({ tenantId, displayName, markup }: Extract<Command, { type: "tenant.create" }>): number | null {
  if (tenantId === reservedId) {
    throw new AppError("conflict", { client: { message: `The tenant id "${reservedId}" is kept for the product itself.`, param: "id" } });
  }
  checkDisplayName(displayName ?? undefined);
  return markup === null ? null : parseMarkup(markup, "markup");
}

/** A tenant is made as a whole, or not at all: everything in the database in this transaction, and an empty directory. */
async function createTenant(tx: ControlTx, command: Extract<Command, { type: "tenant.create" }>, home: string): Promise<void> {
  const id = parseTenantId(command.tenantId);
  const markupPpm = checkNewTenant(command);
  // All creations are on one chain, whose end is locked: the index is unique, and the second of two sees the first.
  if (await tenantExists(tx, id)) {
    throw new AppError("conflict", {
      client: { message: `The tenant id "${id}" is taken. Ids of deleted tenants are not given again.`, param: "id" },
    });
  }
  const quota = quotaValues({ ...noQuota, ...command.quota });
  // Rows of deleted tenants stay, so an index is never given again and files of the dead have no new owner.
  const [row] = await tx.query<{ os_uid_index: number }>(
    `with made as (
       insert into control.tenant (id, display_name, markup_ppm, ${Object.keys(quota).join(", ")}, home_id, os_uid_index)
       select $1, $2, $3, $4, $5, $6, $7, coalesce(max(os_uid_index) + 1, 0) from control.tenant returning os_uid_index
     ), schema as (select control.make_tenant_schema($1))
     select os_uid_index from made, schema`,
    [id, command.displayName, markupPpm, ...Object.values(quota), homeIdOf(home)],
  );
  if (row === undefined) throw new AppError("internal", { reason: "an insert returned nothing" });
  await tx.execute("insert into control.tenant_token (hash, tenant_id) values ($1, $2)", [hashBytes(command.tokenHash), id]);
  createTenantDirectory(home, { tenantId: id, osUidIndex: row.os_uid_index });
}

const quotaValues = ({ tokensPerDay, costPerDayNanoUsd, requestsPerMinute }: QuotaChange) => ({
  ...(tokensPerDay === undefined ? {} : { tokens_per_day: tokensPerDay }),
  ...(costPerDayNanoUsd === undefined ? {} : { cost_per_day_nano_usd: costPerDayNanoUsd }),
  ...(requestsPerMinute === undefined ? {} : { requests_per_minute: requestsPerMinute }),
});

/** From the commit on the tenant is refused everywhere; the workflow `erase:` does the rest. A repeat before its end changes nothing. */
async function deleteTenant(tx: ControlTx, id: TenantId): Promise<void> {
  const deleted = await tx.execute(
    `update control.tenant set state = 'deleted', deleted_at = coalesce(deleted_at, now()), token_epoch = token_epoch + 1
     where id = $1 and erased_at is null`,
    [id],
  );
  if (deleted === 0) throw notFound(id);
  await tx.execute("update control.tenant_token set revoked_at = now() where tenant_id = $1 and revoked_at is null", [id]);
  await tx.query("select pg_notify($1, $2)", [tokenChannel, id]);
}

async function endChain(tx: ControlTx, id: TenantId): Promise<void> {
  const rows = await tx.query("select from control.tenant where id = $1 and state = 'deleted'", [id]);
  if (rows.length === 0) throw new AppError("conflict", { client: { message: `The tenant "${id}" is not deleted.` } });
  await closeChain(tx, id);
}

async function updateTenant(
  tx: ControlTx,
  id: TenantId,
  { displayName, markup, quota = {} }: Omit<Extract<Command, { type: "tenant.update" }>, "type">,
): Promise<void> {
  checkDisplayName(displayName ?? undefined);
  const values = {
    ...(displayName === undefined ? {} : { display_name: displayName }),
    ...(markup === undefined ? {} : { markup_ppm: markup === null ? null : parseMarkup(markup, "markup") }),
    ...quotaValues(quota),
  };
  if (Object.keys(values).length === 0) throw new AppError("invalid_request", { client: { message: "Nothing was given to change." } });
  await changeTenant(tx, id, values);
}

/** Columns of a live tenant; the keys are ours, the values anybody's. */
async function changeTenant(tx: ControlTx, id: TenantId, values: Readonly<Record<string, unknown>>): Promise<void> {
  const assignments = Object.keys(values).map((column, index) => `${column} = $${index + 2}`);
  await changeTenantRow(tx, id, assignments, Object.values(values));
}

async function changeTenantRow(tx: ControlTx, id: TenantId, assignments: readonly string[], values: readonly unknown[]): Promise<void> {
  const changed = await tx.execute(`update control.tenant set ${assignments.join(", ")} where id = $1 and state <> 'deleted'`, [
    id,
    ...values,
  ]);
  if (changed === 0) throw notFound(id);
  await tx.query("select pg_notify($1, $2)", [tokenChannel, id]);
}

/** Ends every token of the tenant; readers see it with the commit. `hash` is the new one's. */
async function replaceTokens(tx: ControlTx, id: TenantId, hash: Buffer | undefined): Promise<void> {
  await changeTenantRow(tx, id, ["token_epoch = token_epoch + 1"], []);
  await tx.execute("update control.tenant_token set revoked_at = now() where tenant_id = $1 and revoked_at is null", [id]);
  if (hash !== undefined) await tx.execute("insert into control.tenant_token (hash, tenant_id) values ($1, $2)", [hash, id]);
}

async function writeOverlay(tx: ControlTx, id: TenantId, digest: string): Promise<void> {
  switch (await acceptOverlay(tx, id, digest)) {
    case "no tenant":
      throw new AppError("not_found", { client: { message: `There is no tenant "${id}".` } });
    case "no text":
      throw new AppError("conflict", { client: { message: "The overlay's text is kept no longer: write it again." } });
    case undefined:
  }
}

async function createAdminKey(tx: ControlTx, { keyId, keyHash, scopes }: Extract<Command, { type: "admin-key.create" }>): Promise<void> {
  const known: readonly string[] = adminScopes;
  if (!/^[a-z0-9]{1,16}$/.test(keyId)) {
    throw new AppError("invalid_request", { client: { message: "A key id has 1 to 16 lower-case letters and digits.", param: "id" } });
  }
  if (scopes.length === 0 || !scopes.every((scope) => known.includes(scope))) {
    throw new AppError("invalid_request", { client: { message: `scopes are some of ${known.join(", ")}.`, param: "scopes" } });
  }
  // The audit names people by key id, so an id stands for one key for ever.
  const made = await tx.execute("insert into control.admin_key (id, hash, scopes) values ($1, $2, $3) on conflict (id) do nothing", [
    keyId,
    hashBytes(keyHash),
    [...new Set(scopes)],
  ]);
  if (made === 0) {
    throw new AppError("conflict", {
      client: { message: `The key id "${keyId}" is taken; ids of revoked keys are not given again.`, param: "id" },
    });
  }
}

async function revokeAdminKey(tx: ControlTx, keyId: string): Promise<void> {
  const keys = await tx.query<{ id: string; all: boolean }>(
    `select id, 'all' = any (scopes) as "all" from control.admin_key where revoked_at is null for update`,
  );
  const key = keys.find(({ id }) => id === keyId);
  if (key === undefined) throw new AppError("not_found", { client: { message: `There is no live admin key "${keyId}".` } });
  if (key.all && keys.filter(({ all }) => all).length === 1) {
    throw new AppError("conflict", { client: { message: `"${keyId}" is the last key with the scope all: create another one first.` } });
  }
  await tx.execute("update control.admin_key set revoked_at = now() where id = $1", [keyId]);
}

async function resolveInvoiceEvent(tx: ControlTx, command: Extract<Command, { type: "invoice.resolve" }>): Promise<void> {
  if (await resolveEvent(tx, command, command.as)) return;
  throw new AppError("conflict", {
    client: { message: `There is no event ${invoiceEventIdOf(command)} of "${command.tenantId}" that is held or refused.`, param: "event" },
  });
}

async function createAuditKey(tx: ControlTx, { keyId, publicKey }: Extract<Command, { type: "audit-key.create" }>): Promise<void> {
  const bytes = Buffer.from(publicKey, "base64");
  if (createHash("sha256").update(bytes).digest("hex") !== keyId) {
    throw new AppError("invalid_request", { client: { message: "The id of an audit key is the SHA-256 of its public key." } });
  }
  const made = await tx.execute("insert into control.audit_key (id, public_key) values ($1, $2) on conflict (id) do nothing", [
    keyId,
    bytes,
  ]);
  if (made === 0) throw new AppError("conflict", { client: { message: `The audit key ${keyId} is known.` } });
}
