import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { Database } from "../storage/database.ts";
import { type AdminPrincipal, adminScopes } from "./authentication.ts";
import { parseAdminKey } from "./credentials.ts";

export const adminSessionSeconds = 12 * 60 * 60;

export type AdminSession = { readonly principal: AdminPrincipal; readonly expiresAtMs: number };

/** Logins of administrators' browsers. Every request reads the session's row with its key's, so the end of either ends it at once, in every process. */
export interface AdminSessions {
  /** @param key an admin key that was found valid @returns the session's id: shown once, only its hash is kept */
  open(key: string): Promise<{ readonly id: string; readonly expiresAtMs: number }>;
  /** @throws {AppError} `invalid_api_key` for one that is not, is over, or whose key was revoked */
  find(id: string | undefined): Promise<AdminSession>;
  end(id: string): Promise<void>;
}

export type AdminSessionDeps = {
  readonly database: Pick<Database, "withControl">;
  /** `OPENCLAW_ADMIN_KEY`: no row of the database's. */
  readonly rootAdminKey?: string | undefined;
};

type SessionRow = { key_id: string; key_hash: Buffer; expires_at: Date; live_hash: Buffer | null; scopes: string[] | null };

const hashOf = (id: string): Buffer => createHash("sha256").update(id).digest();

export function createAdminSessions({ database, rootAdminKey }: AdminSessionDeps): AdminSessions {
  const root = rootAdminKey === undefined ? undefined : parseAdminKey(rootAdminKey);
  return {
    async open(key) {
      const parsed = parseAdminKey(key);
      if (parsed === undefined) throw new AppError("invalid_api_key");
      const id = randomBytes(32).toString("base64url");
      const expiresAtMs = await database.withControl(async (tx) => {
        await tx.execute("delete from control.admin_session where expires_at < now()");
        const [row] = await tx.query<{ expires_at: Date }>(
          `insert into control.admin_session (id_hash, key_id, key_hash, expires_at)
           values ($1, $2, $3, now() + $4::int * interval '1 second') returning expires_at`,
          [hashOf(id), parsed.keyId, parsed.hash, adminSessionSeconds],
        );
        return row?.expires_at.getTime() ?? 0;
      });
      return { id, expiresAtMs };
    },

    async find(id) {
      if (id === undefined || !/^[A-Za-z0-9_-]{43}$/.test(id)) throw new AppError("invalid_api_key");
      const [row] = await database.withControl(
        (tx) =>
          tx.query<SessionRow>(
            `select session.key_id, session.key_hash, session.expires_at, key.hash as live_hash, key.scopes
             from control.admin_session session
             left join control.admin_key key on key.id = session.key_id and key.revoked_at is null
             where session.id_hash = $1 and session.revoked_at is null and session.expires_at > now()`,
            [hashOf(id)],
          ),
        { readOnly: true },
      );
      if (row === undefined) throw new AppError("invalid_api_key");
      const { key_id: keyId, key_hash: keyHash, expires_at } = row;
      const isRoot = root?.keyId === keyId && timingSafeEqual(keyHash, root.hash);
      const isStored = row.live_hash !== null && timingSafeEqual(keyHash, row.live_hash);
      if (!isRoot && !isStored) throw new AppError("invalid_api_key");
      const scopes = isRoot ? (["all"] as const) : adminScopes.filter((scope) => row.scopes?.includes(scope));
      return { principal: { kind: "admin", keyId, scopes }, expiresAtMs: expires_at.getTime() };
    },

    async end(id) {
      await database.withControl((tx) =>
        tx.execute("update control.admin_session set revoked_at = now() where id_hash = $1 and revoked_at is null", [hashOf(id)]),
      );
    },
  };
}
