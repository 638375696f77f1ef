import { type KeyObject, createHash, createPrivateKey, createPublicKey, randomBytes, sign, verify } from "node:crypto";
import { chmodSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import { type AnchorStatement, type SignedAnchor, anchorText } from "../domain/audit-anchor.ts";
import { systemOwner } from "../domain/tenant.ts";
import { readAuditKeys } from "../storage/audit-anchor-repository.ts";
import { changeOffline } from "./audit-chain.ts";
import type { CommandDeps } from "./commands.ts";
import { createPrivateFile } from "./private-file.ts";

/** `<home>/audit-signing-key`: the seed of an Ed25519 key, 32 bytes in base64, mode 0400. */
export const auditSigningKeyPath = (home: string): string => join(home, "audit-signing-key");

export type SigningKey = {
  /** SHA-256 of the public key, 64 hex. */
  readonly id: string;
  /** PEM, to be given out. */
  readonly publicKey: string;
  sign(statement: AnchorStatement): SignedAnchor;
};

export type SigningKeyDeps = CommandDeps & {
  /** `OPENCLAW_AUDIT_KEY`: the seed in base64; then no file is read or made. */
  readonly seed?: string | undefined;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/**
 * The key that this process signs anchors with. It is made at the first start, and every key is recorded by an entry of the chain
 * `system` before it signs anything, so that one that was put in another's place shows.
 * @throws {AppError} `invalid_configuration` when the file holds something else, or others may read it
 */
export async function openSigningKey(deps: SigningKeyDeps): Promise<SigningKey> {
  const key = signingKeyOf(deps.seed ?? readOrMakeSeed(deps.home));
  const known = await deps.database.withControl(async (tx) => await readAuditKeys(tx), { readOnly: true });
  if (known.some(({ id }) => id === key.id)) return key;
  deps.log("a new key signs the audit's anchors", { key: key.id, earlier: known.map(({ id }) => id) });
  try {
    await changeOffline(deps, systemOwner, {
      opId: `audit-key:${key.id}`,
      command: { type: "audit-key.create", keyId: key.id, publicKey: spkiOf(key.publicKey).toString("base64") },
      actor: { type: "system", id: "start" },
      requestId: "start",
    });
  } catch (error) {
    if (!(error instanceof AppError) || error.code !== "conflict") throw error; // another start was first
  }
  return key;
}

function readOrMakeSeed(home: string): string {
  const path = auditSigningKeyPath(home);
  if (createPrivateFileOnce(path)) chmodSync(path, 0o400);
  const { mode } = statSync(path);
  if ((mode & 0o077) !== 0) throw invalid(`${path} may be read by others (mode ${(mode & 0o777).toString(8)}): chmod 0400 it.`);
  return readFileSync(path, "utf8").trim();
}

function createPrivateFileOnce(path: string): boolean {
  if (statSync(path, { throwIfNoEntry: false }) !== undefined) return false;
  return createPrivateFile(path, `${randomBytes(32).toString("base64")}\n`);
}

/** What stands before the seed in an Ed25519 key's PKCS #8 form (RFC 8410). */
const pkcs8Head = Buffer.from("302e020100300506032b657004220420", "hex");

/** @param seed 32 bytes in base64 */
export function signingKeyOf(seed: string): SigningKey {
  if (!/^[A-Za-z0-9+/]{43}=$/.test(seed)) throw invalid("An audit signing key is 32 bytes in base64: put it back, or remove its file.");
  const der = Buffer.concat([pkcs8Head, Buffer.from(seed, "base64")]);
  const privateKey = createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  const publicKey = createPublicKey(privateKey);
  const id = keyIdOf(publicKey);
  return {
    id,
    publicKey: publicKey.export({ format: "pem", type: "spki" }) as string,
    sign: (statement) => ({
      ...statement,
      key: id,
      signature: sign(null, Buffer.from(anchorText(statement)), privateKey).toString("base64"),
    }),
  };
}

/** @param pem of an Ed25519 public key @throws {AppError} `invalid_configuration` */
export function publicKeyOf(pem: string): KeyObject {
  try {
    const key = createPublicKey(pem);
    if (key.asymmetricKeyType === "ed25519") return key;
  } catch {
    // told below
  }
  throw invalid("The public key of the audit is an Ed25519 key in PEM.");
}

/** @returns undefined where the bytes are no Ed25519 key */
export function publicKeyOfSpki(spki: Buffer): KeyObject | undefined {
  try {
    const key = createPublicKey({ key: spki, format: "der", type: "spki" });
    return key.asymmetricKeyType === "ed25519" ? key : undefined;
  } catch {
    return undefined;
  }
}

const spkiOf = (pem: string): Buffer => publicKeyOf(pem).export({ format: "der", type: "spki" });

export const keyIdOf = (key: KeyObject): string =>
  createHash("sha256")
    .update(key.export({ format: "der", type: "spki" }))
    .digest("hex");

export const isSignedBy = (key: KeyObject, anchor: SignedAnchor): boolean =>
  verify(null, Buffer.from(anchorText(anchor)), key, Buffer.from(anchor.signature, "base64"));

const invalid = (message: string): AppError => new AppError("invalid_configuration", { client: { message } });
