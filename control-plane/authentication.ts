import { timingSafeEqual } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { bearerOf, hashPrefixOf, parseAdminKey, parseCredential, type ParsedAdminKey, type ParsedToken } from "./credentials.ts";

export const adminScopes = ["read", "tenants", "billing", "all"] as const;
export type AdminScope = (typeof adminScopes)[number];

export type TenantPrincipal = {
  readonly kind: "tenant";
  readonly tenantId: TenantId;
  readonly displayName: string | undefined;
  /** First 8 hex of the token's hash: the audit's actor id and the log's name of the token. */
  readonly tokenHashPrefix: string;
  /** Rises with every rotation: a connection that was opened under an older one must close. */
  readonly tokenEpoch: number;
};

export type AdminPrincipal = {
  readonly kind: "admin";
  /** The audit's actor id. */
  readonly keyId: string;
  readonly scopes: readonly AdminScope[];
};

export type Principal = TenantPrincipal | AdminPrincipal;

export type AuthenticationDeps = {
  readonly database: Pick<Database, "withControl">;
  /** `OPENCLAW_ADMIN_KEY`: this process's root key. */
  readonly rootAdminKey?: string | undefined;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  readonly now?: () => number;
};

export type Authentication = {
  /**
   * Who a request's `Authorization` header stands for. A refusal writes nothing.
   * @throws {AppError} `invalid_api_key` with one body for every reason; `tenant_suspended` for a valid token of a suspended
   * tenant; `unavailable` when the database does not answer.
   */
  authenticate(authorization: string | undefined): Promise<Principal>;
  /** The same for a credential that did not come in a header: a WebSocket's first frame, the login page. */
  authenticateCredential(credential: string | undefined): Promise<Principal>;
  /** Waits for the last "last used" marks. */
  close(): Promise<void>;
};

type TokenRow = { hash: Buffer; state: "active" | "suspended" | "deleted"; display_name: string | null; token_epoch: number };
type AdminKeyRow = { hash: Buffer; scopes: string[] };

const touchIntervalMs = 60_000;
const rememberedTouches = 10_000;
const absent = Buffer.alloc(32);

const refused = (): AppError => new AppError("invalid_api_key");

/** Compares with what is stored, or with nothing: the same work whether there is such a credential or not. */
function matches(given: Buffer, stored: Buffer | undefined): boolean {
  const equal = timingSafeEqual(given, stored ?? absent);
  return equal && stored !== undefined;
}

export function createAuthentication({ database, rootAdminKey, log, now = Date.now }: AuthenticationDeps): Authentication {
  const root = rootAdminKey === undefined ? undefined : parseAdminKey(rootAdminKey);
  if (rootAdminKey !== undefined && root === undefined) {
    throw new AppError("invalid_configuration", {
      client: { message: "OPENCLAW_ADMIN_KEY must have the form ak_<key id>_<32 lower-case hex>", param: "OPENCLAW_ADMIN_KEY" },
    });
  }
  const touchedAtMs = new Map<string, number>();
  const pending = new Set<Promise<void>>();

  /** Marks a credential as used, off the caller's path and at most once a minute. */
  const touch = (table: "tenant_token" | "admin_key", hash: Buffer): void => {
    const name = hash.toString("base64");
    const nowMs = now();
    if (nowMs - (touchedAtMs.get(name) ?? -Infinity) < touchIntervalMs) return;
    if (touchedAtMs.size >= rememberedTouches) touchedAtMs.clear();
    touchedAtMs.set(name, nowMs);
    const statement =
      table === "tenant_token"
        ? "update control.tenant_token set last_used_at = now() where hash = $1 and (last_used_at is null or last_used_at < now() - interval '1 minute')"
        : "update control.admin_key set last_used_at = now() where hash = $1 and (last_used_at is null or last_used_at < now() - interval '1 minute')";
    const write = database
      .withControl((tx) => tx.execute(statement, [hash]))
      .catch((error: unknown) =>
        log("the last use of a credential could not be noted", { error: error instanceof Error ? error.message : String(error) }),
      )
      .then(() => void pending.delete(write));
    pending.add(write);
  };

  const authenticateTenant = async ({ tenantId, hash }: ParsedToken): Promise<TenantPrincipal> => {
    const [row] = await database.withControl(
      (tx) =>
        tx.query<TokenRow>(
          `select token.hash, tenant.state, tenant.display_name, tenant.token_epoch
           from control.tenant_token token join control.tenant tenant on tenant.id = token.tenant_id
           where token.tenant_id = $1 and token.hash = $2 and token.revoked_at is null`,
          [tenantId, hash],
        ),
      { readOnly: true },
    );
    if (!matches(hash, row?.hash) || row === undefined || row.state === "deleted") throw refused();
    if (row.state === "suspended") throw new AppError("tenant_suspended", { tenantId });
    touch("tenant_token", hash);
    return {
      kind: "tenant",
      tenantId,
      displayName: row.display_name ?? undefined,
      tokenHashPrefix: hashPrefixOf(hash),
      tokenEpoch: row.token_epoch,
    };
  };

  const authenticateAdmin = async ({ keyId, hash }: ParsedAdminKey): Promise<AdminPrincipal> => {
    const isRoot = matches(hash, root?.hash);
    const [row] = await database.withControl(
      (tx) => tx.query<AdminKeyRow>("select hash, scopes from control.admin_key where id = $1 and revoked_at is null", [keyId]),
      { readOnly: true },
    );
    const isStored = matches(hash, row?.hash);
    if (isRoot) return { kind: "admin", keyId, scopes: ["all"] };
    if (!isStored || row === undefined) throw refused();
    touch("admin_key", hash);
    return { kind: "admin", keyId, scopes: adminScopes.filter((scope) => row.scopes.includes(scope)) };
  };

  const authenticateCredential = async (credential: string | undefined): Promise<Principal> => {
    const parsed = credential === undefined ? undefined : parseCredential(credential);
    if (parsed === undefined) throw refused(); // nothing that could be a secret reaches a query
    return parsed.kind === "tenant" ? authenticateTenant(parsed) : authenticateAdmin(parsed);
  };

  return {
    authenticate: async (authorization) => authenticateCredential(bearerOf(authorization)),
    authenticateCredential,
    async close() {
      await Promise.all(pending);
    },
  };
}

/** For tenant-side routes. @throws {AppError} `invalid_api_key`: an admin key is no key there (contract §3). */
export function requireTenant(principal: Principal): TenantPrincipal {
  if (principal.kind !== "tenant") throw refused();
  return principal;
}

/** For admin routes. @throws {AppError} `forbidden` for a tenant token, and for a key without `scope`; without one any admin key will do. */
export function requireAdmin(principal: Principal, scope: AdminScope | undefined): AdminPrincipal {
  if (principal.kind !== "admin") throw new AppError("forbidden");
  if (scope !== undefined && !principal.scopes.includes("all") && !principal.scopes.includes(scope)) {
    throw new AppError("forbidden", { client: { message: `This admin key lacks the scope ${scope}.` }, keyId: principal.keyId });
  }
  return principal;
}
