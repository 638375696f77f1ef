import { escapeLiteral, type PoolClient, type QueryResult, type QueryResultRow } from "pg";
import type { TenantId } from "../domain/tenant.ts";
import { CopyOut } from "./copy-out.ts";
import { asStorageError } from "./database-error.ts";

/**
 * One open transaction. A statement goes through the extended protocol, which takes exactly one statement and keeps values
 * apart from it. Rows: `bigint` columns are bigint, `date` is "YYYY-MM-DD", `timestamptz` is Date, `jsonb` is parsed.
 * Errors: `AppError` "unavailable" for a passing failure; other database errors as they are (`sqlStateOf` reads them), and
 * after any of them the transaction can only fail.
 */
class Transaction {
  #client: PoolClient | undefined;
  readonly #queryTimeoutMs: number;
  #failed = false;

  constructor(client: PoolClient, queryTimeoutMs: number) {
    this.#client = client;
    this.#queryTimeoutMs = queryTimeoutMs;
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
    const client = this.#open();
    const filled = select.replaceAll(/\$([1-9])/g, (_, place: string) => escapeLiteral(String(values[Number(place) - 1])));
    const text = `copy (${filled}) to stdout (delimiter ${escapeLiteral(delimiter)}, null '')`;
    try {
      return await new Promise((resolve, reject) => {
        const copy = new CopyOut(text, this.#queryTimeoutMs, (error) => (error ? reject(error) : resolve(copy.bytes())));
        client.query(copy);
      });
    } catch (error) {
      this.#failed = true;
      throw asStorageError(error);
    }
  }

  #open(): PoolClient {
    if (this.#client === undefined) throw new Error("this transaction has ended: await every query inside the function that was given it");
    return this.#client;
  }

  async #send<Row extends QueryResultRow>(text: string, values: readonly unknown[]): Promise<QueryResult<Row>> {
    const client = this.#open();
    // The server's statement_timeout comes first; this one is for a server that has stopped answering at all.
    const config = { text, values: [...values], queryMode: "extended", query_timeout: this.#queryTimeoutMs };
    try {
      return await client.query<Row>(config);
    } catch (error) {
      this.#failed = true;
      throw asStorageError(error);
    }
  }

  /** Takes the connection away again. @returns whether a statement failed. */
  end(): { readonly failed: boolean } {
    this.#client = undefined;
    return { failed: this.#failed };
  }
}

/** A transaction under one tenant's role and schema. Only `Database.withTenant` makes one. */
export class TenantTx extends Transaction {
  readonly #tenantId: TenantId;

  constructor(client: PoolClient, queryTimeoutMs: number, tenantId: TenantId) {
    super(client, queryTimeoutMs);
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
