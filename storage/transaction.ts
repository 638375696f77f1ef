import { escapeLiteral, type PoolClient, type QueryResult, type QueryResultRow } from "pg";
import type { TenantId } from "../domain/tenant.ts";
import { CopyOut } from "./copy-out.ts";
import { asStorageError, isConnectionError } from "./database-error.ts";

/**
 * A connection and the answer to what begins a transaction on it. That and the caller's first statements go out in one write, so a
 * failure to begin is met by the first of them: its error is the reason, theirs only say that there is no transaction.
 */
export type BeginningConnection = { readonly client: PoolClient; readonly begun: Promise<unknown> };

/** Begins anew on another connection. @throws the error given when it is too late, or no connection can be had */
export type BeginAgain = (lost: PoolClient, error: unknown) => Promise<BeginningConnection>;

export type TransactionParts = {
  readonly connection: BeginningConnection;
  readonly queryTimeoutMs: number;
  readonly beginAgain: BeginAgain;
};

/**
 * One open transaction. A statement goes through the extended protocol, which takes exactly one statement and keeps values
 * apart from it. Rows: `bigint` columns are bigint, `date` is "YYYY-MM-DD", `timestamptz` is Date, `jsonb` is parsed.
 * Errors: `AppError` "unavailable" for a passing failure; other database errors as they are (`sqlStateOf` reads them), and
 * after any of them the transaction can only fail.
 */
class Transaction {
  #connection: BeginningConnection | undefined;
  readonly #queryTimeoutMs: number;
  readonly #beginAgain: BeginAgain;
  /** What takes the place of a connection that was lost before the server answered anything; shared by the statements sent on it. */
  #replacement: { readonly lost: BeginningConnection; readonly next: Promise<BeginningConnection> } | undefined;
  #failed = false;

  constructor({ connection, queryTimeoutMs, beginAgain }: TransactionParts) {
    this.#connection = connection;
    this.#queryTimeoutMs = queryTimeoutMs;
    this.#beginAgain = beginAgain;
  }

  /** @returns the rows. */
  async query<Row extends QueryResultRow>(text: string, values: readonly unknown[] = []): Promise<Row[]> {
    return (await this.#send<Row>(text, values)).rows;
  }

  /** @returns how many rows were written. */
  async execute(text: string, values: readonly unknown[] = []): Promise<number> {
    return (await this.#send(text, values)).rowCount ?? 0;
  }

  /**
   * What `COPY (select) TO STDOUT` writes, in its text format: a line a row, NULL as nothing, and a backslash wherever a cell holds a line
   * end, a tab, a backslash or `delimiter`. It takes no values, so those for `$1` … `$9` are written into the text, as literals.
   */
  async copyOut(select: string, values: readonly (string | number)[], { delimiter }: { readonly delimiter: string }): Promise<Buffer> {
    const { client, begun } = this.#open();
    const filled = select.replaceAll(/\$([1-9])/g, (_, place: string) => escapeLiteral(String(values[Number(place) - 1])));
    const text = `copy (${filled}) to stdout (delimiter ${escapeLiteral(delimiter)}, null '')`;
    try {
      await begun;
      return await new Promise((resolve, reject) => {
        const copy = new CopyOut(text, this.#queryTimeoutMs, (error) => (error ? reject(error) : resolve(copy.bytes())));
        client.query(copy);
      });
    } catch (error) {
      this.#failed = true;
      throw asStorageError(error);
    }
  }

  #open(): BeginningConnection {
    if (this.#connection === undefined)
      throw new Error("this transaction has ended: await every query inside the function that was given it");
    return this.#connection;
  }

  async #send<Row extends QueryResultRow>(text: string, values: readonly unknown[]): Promise<QueryResult<Row>> {
    // The server's statement_timeout comes first; this one is for a server that has stopped answering at all.
    const config = { text, values: [...values], queryMode: "extended", query_timeout: this.#queryTimeoutMs };
    for (let connection = this.#open(); ;) {
      try {
        return await connection.client.query<Row>(config);
      } catch (error) {
        const notBegun = await connection.begun.then(
          () => undefined,
          (reason: unknown) => ({ reason }),
        );
        if (notBegun === undefined || !isConnectionError(notBegun.reason)) throw this.#fail(notBegun?.reason ?? error);
        connection = await this.#replace(connection, notBegun.reason);
      }
    }
  }

  /** Nothing was answered on a connection that could not even begin, so what was sent on it may be sent again. */
  async #replace(lost: BeginningConnection, reason: unknown): Promise<BeginningConnection> {
    if (this.#replacement?.lost !== lost) {
      this.#connection = undefined;
      this.#replacement = { lost, next: this.#beginAgain(lost.client, reason).then((connection) => (this.#connection = connection)) };
    }
    return await this.#replacement.next.catch((error: unknown) => {
      throw this.#fail(error);
    });
  }

  #fail(error: unknown): unknown {
    this.#failed = true;
    return asStorageError(error);
  }

  /** Takes the connection away again. @returns it, unless it was taken before, and whether a statement failed. */
  end(): { readonly connection: BeginningConnection | undefined; readonly failed: boolean } {
    const connection = this.#connection;
    this.#connection = undefined;
    return { connection, failed: this.#failed };
  }
}

/** A transaction under one tenant's role and schema. Only `Database.withTenant` makes one. */
export class TenantTx extends Transaction {
  readonly #tenantId: TenantId;

  constructor(parts: TransactionParts, tenantId: TenantId) {
    super(parts);
    this.#tenantId = tenantId;
  }

  /** For rows of the control schema, which name their tenant; the server checks that it is this one. */
  get tenantId(): TenantId {
    return this.#tenantId;
  }
}

/** A transaction of the gateway itself on the control schema. Only `Database.withControl` makes one. */
export class ControlTx extends Transaction {
  /** Keeps a tenant's transaction from being taken for this one. */
  readonly #scope = "control";

  get scope(): "control" {
    return this.#scope;
  }
}
