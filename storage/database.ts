import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { AppError } from "../domain/app-error.ts";
import { tenantSchemaOf, type TenantContext, type TenantId } from "../domain/tenant.ts";
import { openSharedSchema, prepareControlSchema } from "./control-schema.ts";
import { asStorageError, isConnectionError, sqlStateOf } from "./database-error.ts";
import { gatewayUrlOf } from "./gateway-login.ts";
import { NotificationListener, type NotificationHandler } from "./notification-listener.ts";
import { closeTenantSchema, createTenantSchema, dropTenantSchema, forgetWriteAheadLog, migrateTenantSchemas } from "./tenant-schemas.ts";
import { type BeginAgain, type BeginningConnection, ControlTx, TenantTx, type TransactionParts } from "./transaction.ts";

export type { ControlTx, TenantTx } from "./transaction.ts";

export type DatabaseOptions = {
  /** Of the user that owns the database and may make roles; its password is needed. */
  readonly ownerUrl: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Connections of this process at most; default 20. */
  readonly poolSize?: number;
};

export type TransactionOptions = {
  readonly readOnly?: boolean;
  /** Per statement; default 4,000: below half of a local activity's startToClose of 10 s (protocols §4). */
  readonly statementTimeoutMs?: number;
  /** Default 3,000. */
  readonly lockTimeoutMs?: number;
  /** For pages by key: the rows as their index has them. What is planned for a whole table sorts them, in several processes. */
  readonly byKey?: boolean;
};

/** How long a call waits for a connection, and through a restart of the server. */
const connectionWaitMs = 3_000;
/** A transaction whose function does nothing for so long loses its connection, and with it its locks. */
const idleInTransactionMs = 15_000;
/** Catalogue caches of a backend grow with every tenant it has served (78 MB after 2,000), so connections are renewed. */
const maxUses = 10_000;
const maxLifetimeSeconds = 1_800;
const largestPayloadBytes = 7_999;

/** Of a role, schema, table or right that is not there: invalid_parameter_value (SET ROLE), undefined_object, undefined_table, … */
const lostPlaceStates: ReadonlySet<string> = new Set(["22023", "42704", "42P01", "3F000", "42501"]);

const reset = "reset session authorization; reset role; reset all";

/** int8 is bigint (money and counters), date stays text: the driver would make it midnight in local time. */
const types: pg.CustomTypesConfig = {
  getTypeParser: (oid: number, format?: "text" | "binary") => {
    if (oid === pg.types.builtins.INT8) return BigInt;
    if (oid === pg.types.builtins.DATE) return (text: string) => text;
    return pg.types.getTypeParser(oid, format as "text");
  },
} as pg.CustomTypesConfig;

/**
 * Opens the database: brings the control schema and the gateway's role up to date (under a lock; many processes may do it at
 * once), then connects as that role. Tenant schemas are brought up to date by `migrateTenants`.
 * @throws {AppError} `unavailable` when the server cannot be reached; {Error} in plain words when it does not suit.
 */
export async function openDatabase({ ownerUrl, log, poolSize = 20 }: DatabaseOptions): Promise<Database> {
  const owner = new pg.Pool({
    connectionString: ownerUrl,
    max: 1,
    idleTimeoutMillis: 5_000,
    connectionTimeoutMillis: 10_000,
    application_name: "openclaw-owner",
  });
  owner.on("connect", (client) => client.on("error", () => undefined)); // a failure is seen by the query that meets it
  owner.on("error", (error) => log("an idle owner connection failed", { error: error.message }));
  try {
    const sharedSchema = await withOwner(owner, async (client) => {
      const control = await prepareControlSchema(client, ownerUrl);
      await openSharedSchema(client, control);
      return control.sharedSchema;
    });
    return new Database({ owner, url: gatewayUrlOf(ownerUrl), sharedSchema, log, poolSize });
  } catch (error) {
    await owner.end();
    throw asStorageError(error);
  }
}

async function withOwner<T>(owner: pg.Pool, work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await owner.connect();
  let failed = true;
  try {
    const result = await work(client);
    failed = false;
    return result;
  } finally {
    client.release(failed);
  }
}

type DatabaseParts = {
  readonly owner: pg.Pool;
  readonly url: string;
  readonly sharedSchema: string;
  readonly log: DatabaseOptions["log"];
  readonly poolSize: number;
};

/** The only way to the data. Made by `openDatabase`. */
export class Database {
  readonly #parts: DatabaseParts;
  readonly #pool: pg.Pool;
  readonly #listener: NotificationListener;

  constructor(parts: DatabaseParts) {
    const { url, log, poolSize } = parts;
    this.#parts = parts;
    this.#listener = new NotificationListener({ url, log });
    this.#pool = new pg.Pool({
      connectionString: url,
      max: poolSize,
      maxUses,
      maxLifetimeSeconds,
      idleTimeoutMillis: 60_000,
      connectionTimeoutMillis: connectionWaitMs,
      application_name: "openclaw",
      keepAlive: true,
      pipeline: true, // a statement goes out while the one before it is still on its way
      types,
    });
    this.#pool.on("connect", (client) => client.on("error", () => undefined)); // while in use: seen by the query that meets it
    this.#pool.on("error", (error) => log("an idle database connection failed", { error: error.message }));
  }

  /**
   * Runs `work` in one transaction under the tenant's role and schema, and commits it when `work` returns. The transaction
   * cannot be used after that. Do not call `withTenant` or `withControl` inside `work`: each holds a connection, and a full
   * pool of such callers would wait for itself until the connection wait (3 s) ends them.
   * @throws {AppError} `unavailable` for a passing failure. If the connection was lost during the commit (`details.outcome` is
   * "unknown"), the work may have been committed: read it back by its own key. `tenant_deleted` when the tenant went away meanwhile.
   */
  async withTenant<T>({ tenantId }: TenantContext, work: (tx: TenantTx) => Promise<T>, options: TransactionOptions = {}): Promise<T> {
    const name = tenantSchemaOf(tenantId);
    if (!/^tenant_[a-z0-9_]+$/.test(name)) throw new AppError("invalid_tenant_id", { raw: name.slice(0, 64) });
    const place = `set local role ${name}; set local search_path = ${name}, ${this.#parts.sharedSchema}`;
    const scope = { place, options, open: (parts: TransactionParts) => new TenantTx(parts, tenantId) };
    return await this.#transact(scope, work).catch(async (error: unknown) => {
      throw (await this.#wasDeleted(tenantId, error)) ? new AppError("tenant_deleted", { tenantId }, { cause: error }) : error;
    });
  }

  /** Whether a transaction failed because the tenant's role, its schema or its rights went away with the tenant. */
  async #wasDeleted(tenantId: TenantId, error: unknown): Promise<boolean> {
    if (!lostPlaceStates.has(sqlStateOf(error) ?? "")) return false;
    const rows = await this.withControl(
      async (tx) => await tx.query("select from control.tenant where id = $1 and state = 'deleted'", [tenantId]),
      { readOnly: true },
    ).catch(() => []);
    return rows.length > 0;
  }

  /** Runs `work` in one transaction of the gateway itself on the control schema, where it sees every tenant's rows. Otherwise as `withTenant`. */
  async withControl<T>(work: (tx: ControlTx) => Promise<T>, options: TransactionOptions = {}): Promise<T> {
    return this.#transact({ place: "set local search_path = control", options, open: (parts) => new ControlTx(parts) }, work);
  }

  async #transact<Tx extends TenantTx | ControlTx, T>({ place, options, open }: Scope<Tx>, work: (tx: Tx) => Promise<T>): Promise<T> {
    const { readOnly = false, statementTimeoutMs = 4_000, lockTimeoutMs = 3_000, byKey = false } = options;
    const begin = [
      `begin; ${reset}; commit`, // whatever the last user left behind, in a transaction of its own so that no rollback brings it back
      readOnly ? "begin read only" : "begin",
      place,
      `set local statement_timeout = ${Math.trunc(statementTimeoutMs)}`,
      `set local lock_timeout = ${Math.trunc(lockTimeoutMs)}`,
      `set local idle_in_transaction_session_timeout = ${idleInTransactionMs}`,
      ...(byKey ? ["set local enable_bitmapscan = off", "set local max_parallel_workers_per_gather = 0"] : []),
    ].join("; ");
    const patienceMs = Date.now() + connectionWaitMs;
    const connection = await this.#beginOn(begin, patienceMs);
    const beginAgain: BeginAgain = async (lost, error) => {
      lost.release(true);
      if (Date.now() > patienceMs - 100) throw error;
      await sleep(50);
      return await this.#beginOn(begin, patienceMs);
    };
    const tx = open({ connection, queryTimeoutMs: statementTimeoutMs + 2_000, beginAgain });
    let result: T;
    try {
      result = await work(tx);
    } catch (error) {
      const { connection: left, failed } = tx.end();
      if (left !== undefined) await this.#giveBackFailed(left, failed);
      throw error;
    }
    const { connection: left } = tx.end();
    if (left === undefined) throw rolledBack();
    await this.#commit(left);
    return result;
  }

  /** A connection that has been told to begin; tries again while none can be made, because the server restarts. */
  async #beginOn(begin: string, patienceMs: number): Promise<BeginningConnection> {
    for (;;) {
      let client: pg.PoolClient | undefined;
      try {
        client = await this.#pool.connect();
        if (client.getTransactionStatus() === "T" || client.getTransactionStatus() === "E")
          throw new Error("Connection terminated: it was given back inside a transaction");
        inOneWrite(client);
        const begun = client.query(begin);
        begun.catch(() => undefined); // met by the statement that follows
        return { client, begun };
      } catch (error) {
        client?.release(true);
        if (!isConnectionError(error) || Date.now() > patienceMs - 100) throw asStorageError(error);
        await sleep(50);
      }
    }
  }

  /** Gives the connection back, whatever comes of it. */
  async #commit({ client, begun }: BeginningConnection): Promise<void> {
    try {
      await begun.catch((error: unknown) => {
        throw asStorageError(error);
      });
      if (client.getTransactionStatus() === "I") throw new AppError("internal", { reason: "a statement inside the transaction ended it" });
      const results = await client.query(`commit; ${reset}`).catch((error: unknown) => {
        throw asStorageError(error, isConnectionError(error) ? { outcome: "unknown" } : {});
      });
      // The server answers a COMMIT of a failed transaction with the tag ROLLBACK and no error.
      if ((results as unknown as pg.QueryResult[])[0]?.command !== "COMMIT") throw rolledBack();
    } catch (error) {
      client.release(true);
      throw error;
    }
    client.release();
  }

  /** After an error of the database the connection is thrown away; after an error of the caller's own it is rolled back and kept. */
  async #giveBackFailed({ client, begun }: BeginningConnection, databaseFailed: boolean): Promise<void> {
    await begun.catch(() => undefined);
    if (databaseFailed || client.getTransactionStatus() !== "T") return client.release(true);
    await client.query(`rollback; ${reset}`).then(
      () => client.release(),
      () => client.release(true),
    );
  }

  /**
   * Brings a tenant's role and schema up to date, or makes them; safe to repeat, in a transaction of its own. A new tenant's are
   * made by `control.make_tenant_schema`, inside the transaction that makes the tenant.
   */
  async createTenantSchema(tenantId: TenantId): Promise<void> {
    await this.#asOwner((client) => createTenantSchema(client, tenantId, this.#parts.sharedSchema));
  }

  /** Lets no new turn of a deleted tenant in, and waits for those on their way; safe to repeat. */
  async closeTenantSchema(tenantId: TenantId): Promise<void> {
    await this.#asOwner((client) => closeTenantSchema(client, tenantId));
  }

  /** Removes a deleted tenant's schema and role; safe to repeat. @throws {Error} when the tenant is not deleted. */
  async dropTenantSchema(tenantId: TenantId): Promise<void> {
    await this.#asOwner(async (client) => {
      await dropTenantSchema(client, tenantId);
      await forgetWriteAheadLog(client);
    });
  }

  /** Brings all tenant schemas up to date, one query when there is nothing to do. @returns how many were changed. */
  async migrateTenants(): Promise<number> {
    return this.#asOwner((client) => migrateTenantSchemas(client, this.#parts.sharedSchema));
  }

  async #asOwner<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    try {
      return await withOwner(this.#parts.owner, work);
    } catch (error) {
      throw asStorageError(error);
    }
  }

  /**
   * Calls `handler` for each notification on `channel` (at most 63 bytes) until the returned function is called. What is sent
   * while the connection is down is lost: `onReconnect` is called after it, and a reader must also poll.
   */
  async listen(
    channel: string,
    handler: NotificationHandler,
    { onReconnect }: { readonly onReconnect?: () => void } = {},
  ): Promise<() => Promise<void>> {
    return this.#listener.listen(channel, { handler, onReconnect });
  }

  /**
   * Sends at once. To send with a transaction's commit, `select pg_notify(channel, payload)` inside it.
   * @throws {AppError} `unavailable` for a passing failure; {RangeError} for a payload above 7,999 bytes.
   */
  async notify(channel: string, payload: string): Promise<void> {
    if (Buffer.byteLength(payload) > largestPayloadBytes) throw new RangeError(`a notification holds at most ${largestPayloadBytes} bytes`);
    try {
      await this.#pool.query("select pg_notify($1, $2)", [channel, payload]);
    } catch (error) {
      throw asStorageError(error);
    }
  }

  /** Waits for the transactions that are open. */
  async close(): Promise<void> {
    await Promise.all([this.#listener.close(), this.#pool.end(), this.#parts.owner.end()]);
  }
}

type Scope<Tx> = {
  /** The statements that lead to the role and schema. */
  readonly place: string;
  readonly options: TransactionOptions;
  readonly open: (parts: TransactionParts) => Tx;
};

const rolledBack = (): AppError => new AppError("internal", { reason: "the transaction was rolled back: a statement in it had failed" });

/** What is sent in this tick goes out in one write: a system call less for each statement, here and at the server. */
function inOneWrite({ connection: { stream } }: pg.PoolClient): void {
  stream.cork();
  process.nextTick(() => stream.uncork());
}
