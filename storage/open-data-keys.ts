import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { AppError } from "../domain/app-error.ts";
import { systemOwner } from "../domain/tenant.ts";
import { type DataKeys, createDataKeys, keyChannel } from "./data-keys.ts";
import type { Database } from "./database.ts";
import { type KeyRing, environmentKeyRing, missingKey } from "./key-encryption.ts";
import { openKeyFile } from "./key-file.ts";

export type OpenDataKeysOptions = {
  readonly database: Database;
  readonly home: string;
  /** The text of `OPENCLAW_KEK`; undefined: the file `kek` of the home. */
  readonly keyEncryptionKey?: string | undefined;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

export type OpenedDataKeys = { readonly dataKeys: DataKeys; readonly ring: KeyRing; close(): Promise<void> };

const seenEveryMs = 3_000;

/**
 * The data keys of a database with this process's key-encryption keys. The first start makes `<home>/kek`; from then on a process
 * that does not hold the key of the database does not start.
 * @throws {AppError} `invalid_configuration` for another key than the database's, and for a key file that others may read
 */
export async function openDataKeys({ database, home, keyEncryptionKey, log }: OpenDataKeysOptions): Promise<OpenedDataKeys> {
  const ring = await openRing(database, home, keyEncryptionKey);
  const dataKeys = createDataKeys({ database, ring, log });
  const holder = `${hostname()}:${process.pid}:${randomBytes(6).toString("hex")}`;
  const place = `process ${process.pid} on ${hostname()} with ${ring.place}`;
  const saySeen = async (): Promise<void> =>
    void (await database.withControl(
      async (tx) =>
        await tx.execute(
          `insert into control.key_holder (id, place, kek_ids) values ($1, $2, $3)
           on conflict (id) do update set kek_ids = excluded.kek_ids, seen_at = now()`,
          [holder, place, ring.keys().map(({ keyId }) => keyId)],
        ),
    ));
  let saying: Promise<void> = saySeen();
  const say = (): void => {
    saying = saying
      .then(saySeen)
      .catch((error: unknown) => log("this process could not say which keys it holds", { error: String(error) }));
  };
  const onForget = (payload: string): void => {
    dataKeys.forget(payload);
    if (payload !== "*") return;
    try {
      ring.reload();
    } catch (error) {
      log("ALARM: the key-encryption key cannot be read again", { error: String(error) });
    }
    say();
  };
  await saying;
  const stopListening = await database.listen(keyChannel, onForget, { onReconnect: () => onForget("*") });
  const timer = setInterval(say, seenEveryMs);
  timer.unref();
  const close = async (): Promise<void> => {
    clearInterval(timer);
    await stopListening();
    await saying;
    dataKeys.forget("*");
    await database
      .withControl(
        async (tx) => await tx.execute("delete from control.key_holder where id = $1 or seen_at < now() - interval '1 day'", [holder]),
      )
      .catch(() => {});
  };
  try {
    await dataKeys.ensure(systemOwner); // opens a key, or makes the first one: a ring with a wrong key of the right name ends here
  } catch (error) {
    await close();
    throw error;
  }
  return { dataKeys, ring, close };
}

/** One process at a time looks whether the database knows a key; only the first one of all may make one. */
async function openRing(database: Database, home: string, keyEncryptionKey: string | undefined): Promise<KeyRing> {
  return await database.withControl(async (tx) => {
    await tx.query("select pg_advisory_xact_lock(hashtext('openclaw'), hashtext('key encryption'))");
    const known = (await tx.query<{ id: string }>(knownKeyIds)).map(({ id }) => id);
    const ring =
      keyEncryptionKey === undefined ? openKeyFile(home, { mayCreate: known.length === 0 }) : environmentKeyRing(keyEncryptionKey);
    if (ring === undefined) {
      throw new AppError("invalid_configuration", {
        client: {
          message: `the data keys of this database are wrapped by the key-encryption key ${known.join(", ")}, and ${home} has no file kek: put the key there (mode 0400), or give it as OPENCLAW_KEK`,
          param: "OPENCLAW_KEK",
        },
      });
    }
    const held = ring.keys().map(({ keyId }) => keyId);
    const missing = known.find((keyId) => !held.includes(keyId));
    if (missing !== undefined) throw missingKey(ring, missing);
    if (known.length === 0) await tx.execute("insert into control.key_encryption (kek_id) values ($1)", [held[0]]);
    return ring;
  });
}

/** A query for the ids of the keys without which something of this database could not be read. */
export const knownKeyIds =
  "select kek_id as id from control.key_encryption union select kek_id from control.data_key where wrapped is not null";
