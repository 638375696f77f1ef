import pg from "pg";

const FIRST_BYTES = 256 * 1024;

/** A `COPY … TO STDOUT` and what came of it. Postgres sends a message a row, in a buffer that the driver uses again. */
export class CopyOut extends pg.Query {
  #bytes = Buffer.allocUnsafe(FIRST_BYTES);
  #length = 0;

  constructor(text: string, timeoutMs: number, done: (error: Error | undefined) => void) {
    super({ text, queryMode: "extended" } as pg.QueryConfig, done);
    // Where the driver looks for it.
    Object.assign(this, { query_timeout: timeoutMs });
  }

  /** Called by the driver. */
  handleCopyData({ chunk }: { readonly chunk: Buffer }): void {
    const length = this.#length + chunk.length;
    if (length > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(length, 2 * this.#bytes.length));
      this.#bytes.copy(larger, 0, 0, this.#length);
      this.#bytes = larger;
    }
    chunk.copy(this.#bytes, this.#length);
    this.#length = length;
  }

  bytes(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }
}
