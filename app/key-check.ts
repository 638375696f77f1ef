import { keyIdOf, publicKeyOf, signingKeyOf } from "../control-plane/audit-signing-key.ts";
import { type Finding, oneLine } from "../control-plane/doctor-finding.ts";
import type { Environment } from "../control-plane/environment.ts";
import { AppError } from "../domain/app-error.ts";
import type { DatabaseReport } from "../storage/database-report.ts";
import { type KeyRing, environmentKeyRing } from "../storage/key-encryption.ts";
import { openKeyFile } from "../storage/key-file.ts";

type Known = Pick<DatabaseReport, "keyIds" | "auditKeyIds">;

/** Whether a start here would hold the key that this database's data keys are wrapped by. `known` undefined: it was not asked. */
export function checkKeyEncryption({ home, keyEncryptionKey }: Environment, known: Known | undefined): Finding {
  const check = "encryption";
  let file: KeyRing | undefined;
  try {
    file = openKeyFile(home, { mayCreate: false });
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    if (keyEncryptionKey === undefined)
      return { check, state: "failed", says: oneLine(error.message), mend: "mend that file; a gateway does not start with it" };
  }
  const used = keyEncryptionKey === undefined ? file : environmentKeyRing(keyEncryptionKey);
  const needed = known?.keyIds ?? [];
  if (used === undefined) {
    if (needed.length === 0)
      return { check, state: "ok", says: known === undefined ? "no kek in the home" : "no key yet: the first start makes one" };
    return {
      check,
      state: "failed",
      says: `the database's data keys are wrapped by the key ${needed.join(", ")}, and the home has no kek`,
      mend: `put that key back as ${home}/kek (mode 0400), or set OPENCLAW_KEK`,
    };
  }
  const missing = needed.find((id) => !holds(used, id));
  if (missing !== undefined) {
    return {
      check,
      state: "failed",
      says: `the database's data keys are wrapped by the key ${missing}, which ${used.place} does not hold`,
      mend:
        keyEncryptionKey !== undefined && file !== undefined && holds(file, missing)
          ? `unset OPENCLAW_KEK: ${file.place} holds it`
          : "put that key back: the kek of the home that this database was first started with, or OPENCLAW_KEK",
    };
  }
  if (keyEncryptionKey !== undefined && file !== undefined && !file.keys().some(({ keyId }) => holds(used, keyId)))
    return { check, state: "warning", says: `OPENCLAW_KEK is used, and ${file.place} holds another key`, mend: "move that file away" };
  return {
    check,
    state: "ok",
    says: needed.length === 0 ? `${used.place} holds a key; the database was not asked` : `${used.place} holds the key of the database`,
  };
}

const holds = (ring: KeyRing, id: string): boolean => ring.keys().some(({ keyId }) => keyId === id);

/** Whether `OPENCLAW_AUDIT_KEY` is one that this database's anchors were signed with before. */
export function checkAuditKey({ auditKey }: Environment, known: Known | undefined): Finding {
  const id = auditKey === undefined ? undefined : keyIdOf(publicKeyOf(signingKeyOf(auditKey).publicKey));
  const check = "audit key";
  if (id === undefined) return { check, state: "ok", says: "audit-signing-key of the home" };
  const earlier = known?.auditKeyIds ?? [];
  if (earlier.length === 0 || earlier.includes(id)) return { check, state: "ok", says: `OPENCLAW_AUDIT_KEY, key ${id.slice(0, 16)}` };
  return {
    check,
    state: "warning",
    says: `OPENCLAW_AUDIT_KEY is the key ${id.slice(0, 16)}, which this database does not know: a start records it as a new one`,
    mend: `if that is not meant, set the one of ${earlier.map((known) => known.slice(0, 16)).join(", ")}`,
  };
}
