import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { parseTenantId, type TenantId } from "../domain/tenant.ts";

/** Tenant tokens and admin keys as text and as what is stored of them (contract §1). */

export type ParsedToken = { readonly kind: "tenant"; readonly tenantId: TenantId; readonly hash: Buffer };
export type ParsedAdminKey = { readonly kind: "admin"; readonly keyId: string; readonly hash: Buffer };
export type ParsedCredential = ParsedToken | ParsedAdminKey;

export type MintedToken = { readonly token: string; readonly hash: Buffer };
export type MintedAdminKey = { readonly key: string; readonly keyId: string; readonly hash: Buffer };

/** Where a home keeps its first admin key. */
export const adminKeyPath = (home: string): string => join(home, "admin-key");

const secretBytes = 16;
const longestCredential = "tk_".length + 32 + 1 + 2 * secretBytes;
// Slugs hold no underscore, so from the right there is one way to read a token. No part can match the same text in two ways:
// the time is linear in a length that is capped before.
const tokenPattern = /^tk_([a-z0-9](?:-?[a-z0-9])*)_[0-9a-f]{32}$/;
const adminKeyPattern = /^ak_([a-z0-9]{1,16})_[0-9a-f]{32}$/;

/** SHA-256 of the whole credential: 128 random bits need no slow hash. */
const hashOf = (credential: string): Buffer => createHash("sha256").update(credential, "ascii").digest();

const matchOf = (pattern: RegExp, raw: string): string | undefined => (raw.length > longestCredential ? undefined : pattern.exec(raw)?.[1]);

/** @returns undefined for anything that is not a tenant token. Never throws. */
export function parseTenantToken(raw: string): ParsedToken | undefined {
  const slug = matchOf(tokenPattern, raw);
  return slug === undefined || slug.length > 32 ? undefined : { kind: "tenant", tenantId: parseTenantId(slug), hash: hashOf(raw) };
}

/** @returns undefined for anything that is not an admin key. Never throws. */
export function parseAdminKey(raw: string): ParsedAdminKey | undefined {
  const keyId = matchOf(adminKeyPattern, raw);
  return keyId === undefined ? undefined : { kind: "admin", keyId, hash: hashOf(raw) };
}

/** @returns undefined for anything that is neither. Never throws. */
export const parseCredential = (raw: string): ParsedCredential | undefined => parseTenantToken(raw) ?? parseAdminKey(raw);

/** The credential of an `Authorization` header. Never throws. */
export function bearerOf(header: string | undefined): string | undefined {
  if (header === undefined || header.length > 2 * longestCredential) return undefined;
  return /^bearer ([!-~]+)$/i.exec(header)?.[1];
}

export function mintTenantToken(tenantId: TenantId): MintedToken {
  const token = `tk_${tenantId}_${randomBytes(secretBytes).toString("hex")}`;
  return { token, hash: hashOf(token) };
}

/** @param keyId 1 to 16 lower-case letters and digits */
export function mintAdminKey(keyId: string): MintedAdminKey {
  const key = `ak_${keyId}_${randomBytes(secretBytes).toString("hex")}`;
  const parsed = parseAdminKey(key);
  if (parsed === undefined) throw new TypeError("an admin key id has 1 to 16 lower-case letters and digits");
  return { key, keyId, hash: parsed.hash };
}

/** The first 8 hex of a hash: what logs and the audit may say about a credential. */
export const hashPrefixOf = (hash: Uint8Array): string => Buffer.from(hash).toString("hex").slice(0, 8);

/** The only form in which a tenant token may be logged: `tk_acme_…` and 8 hex of its hash. */
export const loggedToken = (tenantId: TenantId, hash: Uint8Array): string => `tk_${tenantId}_…${hashPrefixOf(hash)}`;
