import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx } from "./database.ts";
import { toJsonb } from "./jsonb.ts";

/** The channel that tells every process that a tenant's overlay or its fault has changed; the payload is the tenant's id. */
export const overlayChannel = "openclaw_overlay";

/** Why a file stops its tenant's turns. */
export type OverlayFault = {
  /** The home's name of its files. */
  readonly file: string;
  /** Of what the file held. */
  readonly digest: string;
  readonly message: string;
  readonly param: string | null;
};

export type OverlayRow = { readonly version: number; readonly digest: string; readonly fault: OverlayFault | null };

/** A tenant's overlay beside what one home's file of it last held. */
export type OverlayFileRow = {
  readonly tenantId: TenantId;
  readonly osUidIndex: number;
  /** Undefined: the tenant never had an overlay. */
  readonly overlay: OverlayRow | undefined;
  /** Digest of what the file held when it was last dealt with. */
  readonly known: string | undefined;
};

/** A replaced text is kept so long: for the turns that began with it. */
const keptAfterUse = "7 days";

export async function readOverlay(tx: ControlTx, tenantId: TenantId): Promise<OverlayRow | undefined> {
  const [row] = await tx.query<{ version: bigint; digest: string; fault: OverlayFault | null }>(
    "select version, digest, fault from control.overlay where tenant_id = $1",
    [tenantId],
  );
  return row === undefined ? undefined : { ...row, version: Number(row.version) };
}

/** @returns the sealed text */
export async function readOverlayText(tx: ControlTx, tenantId: TenantId, digest: string): Promise<Uint8Array | undefined> {
  const [row] = await tx.query<{ sealed: Buffer }>("select sealed from control.overlay_text where tenant_id = $1 and digest = $2", [
    tenantId,
    digest,
  ]);
  return row?.sealed;
}

/** Keeps a text for a change to come. */
export async function storeOverlayText(
  tx: ControlTx,
  { tenantId, digest, sealed }: { readonly tenantId: TenantId; readonly digest: string; readonly sealed: Uint8Array },
): Promise<void> {
  await tx.execute(
    `insert into control.overlay_text (tenant_id, digest, sealed) values ($1, $2, $3)
     on conflict (tenant_id, digest) do update set sealed = excluded.sealed, used_at = now()`,
    [tenantId, digest, Buffer.from(sealed)],
  );
}

/**
 * Makes a stored text the one in force and takes a fault away.
 * @returns why not, or undefined
 */
export async function acceptOverlay(tx: ControlTx, tenantId: TenantId, digest: string): Promise<"no tenant" | "no text" | undefined> {
  const stored = await tx.execute(
    "update control.overlay_text set used_at = now(), accepted_at = now() where tenant_id = $1 and digest = $2",
    [tenantId, digest],
  );
  if (stored === 0) return "no text";
  const [former] = await tx.query<{ digest: string }>("select digest from control.overlay where tenant_id = $1 for update", [tenantId]);
  const accepted = await tx.execute(
    `insert into control.overlay as standing (tenant_id, version, digest) select id, 1, $2 from control.tenant where id = $1 and state <> 'deleted'
     on conflict (tenant_id) do update set version = standing.version + 1, digest = excluded.digest, fault = null, changed_at = now()`,
    [tenantId, digest],
  );
  if (accepted === 0) return "no tenant";
  await tx.execute("update control.overlay_text set used_at = now() where tenant_id = $1 and digest = $2", [tenantId, former?.digest]);
  await tx.execute(
    `delete from control.overlay_text where tenant_id = $1 and digest <> $2 and used_at < now() - interval '${keptAfterUse}'`,
    [tenantId, digest],
  );
  await notifyOverlay(tx, tenantId);
  return undefined;
}

/** Stops the tenant's turns for a bad file, unless another text has been accepted since `version` (0: none ever was). */
export async function storeOverlayFault(
  tx: ControlTx,
  {
    tenantId,
    version,
    digest,
    fault,
  }: { readonly tenantId: TenantId; readonly version: number; readonly digest: string; readonly fault: OverlayFault },
): Promise<void> {
  await tx.execute(
    `insert into control.overlay as standing (tenant_id, version, digest, fault)
     select id, $2, $3, $4 from control.tenant where id = $1 and state <> 'deleted'
     on conflict (tenant_id) do update set fault = excluded.fault where standing.version = $2`,
    [tenantId, version, digest, toJsonb(fault)],
  );
  await notifyOverlay(tx, tenantId);
}

/** Takes away the fault of one home's file. */
export async function clearOverlayFault(tx: ControlTx, tenantId: TenantId, file: string): Promise<void> {
  const cleared = await tx.execute("update control.overlay set fault = null where tenant_id = $1 and fault->>'file' = $2", [
    tenantId,
    file,
  ]);
  if (cleared > 0) await notifyOverlay(tx, tenantId);
}

async function notifyOverlay(tx: ControlTx, tenantId: TenantId): Promise<void> {
  await tx.query("select pg_notify($1, $2)", [overlayChannel, tenantId]);
}

/** Every tenant with its overlay and what the home's file of it last held; or one tenant. */
export async function readOverlayFiles(tx: ControlTx, file: string, tenantId?: TenantId): Promise<readonly OverlayFileRow[]> {
  const rows = await tx.query<{
    id: TenantId;
    os_uid_index: number;
    version: bigint | null;
    digest: string | null;
    fault: OverlayFault | null;
    known: string | null;
  }>(
    `select tenant.id, tenant.os_uid_index, overlay.version, overlay.digest, overlay.fault, held.digest as known
     from control.tenant
     left join control.overlay on overlay.tenant_id = tenant.id
     left join control.overlay_file held on held.tenant_id = tenant.id and held.file = $1
     where tenant.state in ('active', 'suspended') and ($2::text is null or tenant.id = $2)`,
    [file, tenantId ?? null],
  );
  return rows.map(({ id, os_uid_index, version, digest, fault, known }) => ({
    tenantId: id,
    osUidIndex: os_uid_index,
    overlay: version === null || digest === null ? undefined : { version: Number(version), digest, fault },
    known: known ?? undefined,
  }));
}

/** Whether a text was in force before, as far as it is kept. */
export async function wasOverlayAccepted(tx: ControlTx, tenantId: TenantId, digest: string): Promise<boolean> {
  const rows = await tx.query("select from control.overlay_text where tenant_id = $1 and digest = $2 and accepted_at is not null", [
    tenantId,
    digest,
  ]);
  return rows.length > 0;
}

/** Remembers that what a file holds was dealt with. */
export async function rememberOverlayFile(tx: ControlTx, file: string, tenantId: TenantId, digest: string): Promise<void> {
  await tx.execute(
    `insert into control.overlay_file (file, tenant_id, digest) values ($1, $2, $3)
     on conflict (file, tenant_id) do update set digest = excluded.digest`,
    [file, tenantId, digest],
  );
}
