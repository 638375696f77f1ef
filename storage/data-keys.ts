import { hkdfSync, randomBytes } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { Owner, TenantId } from "../domain/tenant.ts";
import { keyBytes } from "./authenticated-cipher.ts";
import type { ControlTx, Database } from "./database.ts";
import { type KeyRing, keyOfRing } from "./key-encryption.ts";

/** The channel that tells every process to forget what it holds: of the owner in the payload, or of all (`*`). */
export const keyChannel = "openclaw_keys";
const everyOwner = "*";

/** What a data key is used for: each purpose has a key of its own, derived from it. */
export type KeyPurpose = "field" | "payload";

export type DataKey = {
  readonly version: number;
  /** Belongs to the cache, which overwrites it: use it before the next `await`. */
  bytes(purpose: KeyPurpose): Uint8Array;
};

/**
 * The random keys of the tenants and of the system, wrapped in the database and unwrapped in memory for a while. An erasure or a
 * rotation is told to every process, which forgets its keys at once.
 */
export interface DataKeys {
  /** Makes the owner's first key, if it has none and never had one. @throws {AppError} `data_key_erased` */
  ensure(owner: Owner): Promise<void>;
  /** Destroys every key of the tenant, for ever: what was sealed with them opens nowhere. Safe to repeat. */
  erase(tenantId: TenantId): Promise<void>;
  /**
   * Calls `use` with the key that seals now.
   * @throws {AppError} `data_key_erased`; `unavailable` while the database or the key-encryption key is away
   */
  withCurrent<T>(owner: Owner, use: (key: DataKey) => T): Promise<T>;
  /** Calls `use` with the key of a version. @throws {AppError} as `withCurrent`; `internal` when there is no such version */
  withVersion<T>(owner: Owner, version: number, use: (key: DataKey) => T): Promise<T>;
}

export type DataKeysDeps = {
  readonly database: Pick<Database, "withControl">;
  readonly ring: KeyRing;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How long an unwrapped key is kept without another look; default 5 minutes. */
  readonly keptMs?: number;
};

export type DataKeysCache = DataKeys & {
  /** Forgets the keys of an owner, or of all: what a payload of `keyChannel` says. */
  forget(payload: string): void;
};

type KeyRow = { version: number; wrapped: Buffer | null; kek_id: string; state: "current" | "readable" | "erased" };

const rememberedOwners = 5_000;

/** Keys of one owner, unwrapped; emptied when they are forgotten. */
class HeldKeys {
  readonly #keys = new Map<number, Readonly<Record<KeyPurpose, Buffer>>>();
  readonly current: number;
  readonly untilMs: number;
  isForgotten = false;

  constructor(current: number, untilMs: number) {
    this.current = current;
    this.untilMs = untilMs;
  }

  add(version: number, dataKey: Uint8Array): void {
    const derive = (purpose: KeyPurpose): Buffer => Buffer.from(hkdfSync("sha256", dataKey, "", `openclaw ${purpose} key`, keyBytes));
    this.#keys.set(version, { field: derive("field"), payload: derive("payload") });
    dataKey.fill(0);
  }

  key(version: number): DataKey | undefined {
    const purposes = this.#keys.get(version);
    return purposes === undefined ? undefined : { version, bytes: (purpose) => purposes[purpose] };
  }

  forget(): void {
    this.isForgotten = true;
    for (const { field, payload } of this.#keys.values()) {
      field.fill(0);
      payload.fill(0);
    }
    this.#keys.clear();
  }
}

export function createDataKeys({ database, ring, log, keptMs = 300_000 }: DataKeysDeps): DataKeysCache {
  const held = new Map<Owner, Promise<HeldKeys>>();

  const forgetOwner = (owner: Owner): void => {
    const keys = held.get(owner);
    held.delete(owner);
    keys?.then(
      (loaded) => loaded.forget(),
      () => {},
    );
  };

  const load = async (owner: Owner): Promise<HeldKeys> => {
    const read = async (tx: ControlTx): Promise<KeyRow[]> => await readKeys(tx, owner);
    let rows = await database.withControl(read, { readOnly: true });
    if (rows.length === 0) rows = await database.withControl(async (tx) => await makeFirst(tx, owner, ring));
    const current = rows.find(({ state }) => state === "current");
    if (current === undefined) throw new AppError("data_key_erased", { owner });
    const keys = new HeldKeys(current.version, performance.now() + keptMs);
    for (const { version, wrapped, kek_id } of rows) {
      if (wrapped !== null) keys.add(version, await keyOfRing(ring, kek_id).unwrap({ owner, version }, wrapped));
    }
    return keys;
  };

  const keysOf = async (owner: Owner): Promise<HeldKeys> => {
    const known = held.get(owner);
    if (known !== undefined) {
      const keys = await known;
      if (keys.untilMs > performance.now()) return keys;
      if (held.get(owner) === known) forgetOwner(owner);
    }
    const present = held.get(owner);
    if (present !== undefined) return await present;
    const loading = load(owner).catch((error: unknown) => {
      if (held.get(owner) === loading) held.delete(owner);
      if (!(error instanceof AppError) || error.code !== "invalid_configuration") throw error;
      log("ALARM: a data key cannot be unwrapped", { owner, error: error.message });
      throw new AppError("unavailable", { owner, reason: "a data key cannot be unwrapped" }, { cause: error });
    });
    held.set(owner, loading);
    const oldest = held.size > rememberedOwners ? held.keys().next().value : undefined;
    if (oldest !== undefined) forgetOwner(oldest);
    return await loading;
  };

  const withKey = async <T>(owner: Owner, version: number | undefined, use: (key: DataKey) => T): Promise<T> => {
    for (let misses = 0; ;) {
      const keys = await keysOf(owner);
      if (keys.isForgotten) continue; // between its loading and this line: what it holds is overwritten
      const key = keys.key(version ?? keys.current);
      if (key !== undefined) return use(key);
      if (++misses > 1) throw new AppError("internal", { owner, reason: `there is no data key version ${version}` });
      forgetOwner(owner); // another process may have made that version a moment ago
    }
  };

  return {
    async ensure(owner) {
      await keysOf(owner);
    },
    async erase(tenantId) {
      await database.withControl(async (tx) => await eraseDataKeys(tx, tenantId));
      forgetOwner(tenantId);
    },
    withCurrent: async (owner, use) => await withKey(owner, undefined, use),
    withVersion: withKey,
    forget(payload) {
      for (const owner of payload === everyOwner ? [...held.keys()] : [payload as Owner]) forgetOwner(owner);
    },
  };
}

const readKeys = async (tx: ControlTx, owner: Owner): Promise<KeyRow[]> =>
  await tx.query<KeyRow>("select version, wrapped, kek_id, state from control.data_key where owner = $1 order by version", [owner]);

/** One at a time of those that make, renew or erase keys of an owner. */
const lockOwner = async (tx: ControlTx, owner: Owner): Promise<unknown> =>
  await tx.query("select pg_advisory_xact_lock(hashtext('openclaw data key'), hashtext($1))", [owner]);

/** @returns the id of the key-encryption key that wraps now; a rotation does not change it before this transaction has ended */
async function wrappingKeyId(tx: ControlTx): Promise<string> {
  const [row] = await tx.query<{ kek_id: string }>("select kek_id from control.key_encryption for share");
  if (row === undefined) throw new AppError("internal", { reason: "the database knows no key-encryption key" });
  return row.kek_id;
}

async function insertKey(tx: ControlTx, ring: KeyRing, owner: Owner, version: number, rotationId: string | null): Promise<void> {
  const kekId = await wrappingKeyId(tx);
  const dataKey = randomBytes(keyBytes);
  const wrapped = await keyOfRing(ring, kekId).wrap({ owner, version }, dataKey);
  dataKey.fill(0);
  await tx.execute(
    "insert into control.data_key (owner, version, wrapped, kek_id, state, rotation_id) values ($1, $2, $3, $4, 'current', $5)",
    [owner, version, wrapped, kekId, rotationId],
  );
}

async function makeFirst(tx: ControlTx, owner: Owner, ring: KeyRing): Promise<KeyRow[]> {
  await lockOwner(tx, owner);
  const present = await readKeys(tx, owner);
  if (present.length > 0) return present;
  const deleted = await tx.query("select from control.tenant where id = $1 and state = 'deleted'", [owner]);
  if (deleted.length > 0) return [];
  await insertKey(tx, ring, owner, 1, null);
  return await readKeys(tx, owner);
}

/** As `DataKeys.erase`, inside a transaction of the caller's. */
async function eraseDataKeys(tx: ControlTx, tenantId: TenantId): Promise<void> {
  await lockOwner(tx, tenantId);
  const erased = await tx.execute("update control.data_key set wrapped = null, state = 'erased' where owner = $1", [tenantId]);
  // A tenant that never had a key must not get one either.
  if (erased === 0)
    await tx.execute("insert into control.data_key (owner, version, kek_id, state) values ($1, 1, '', 'erased')", [tenantId]);
  await tellForget(tx, tenantId);
}

/** Makes every process forget what it holds, with the commit. */
export const tellForget = async (tx: ControlTx, owner: Owner | typeof everyOwner = everyOwner): Promise<unknown> =>
  await tx.query("select pg_notify($1, $2)", [keyChannel, owner]);

/** Gives an owner a new key version for what is sealed from now on, once for each rotation. @returns whether it did */
export async function renewDataKey(tx: ControlTx, ring: KeyRing, owner: Owner, rotationId: string): Promise<boolean> {
  await lockOwner(tx, owner);
  const [current] = await tx.query<{ version: number; rotation_id: string | null }>(
    "select version, rotation_id from control.data_key where owner = $1 and state = 'current'",
    [owner],
  );
  if (current === undefined || current.rotation_id === rotationId) return false;
  await tx.execute("update control.data_key set state = 'readable' where owner = $1 and state = 'current'", [owner]);
  await insertKey(tx, ring, owner, current.version + 1, rotationId);
  await tellForget(tx, owner);
  return true;
}
