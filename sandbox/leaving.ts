/** What is over for its caller and still being cleared away. */
export class Leaving {
  readonly #ends = new Set<Promise<unknown>>();

  /** @param end never rejects */
  add(end: Promise<unknown>): void {
    this.#ends.add(end);
    void end.then(() => this.#ends.delete(end));
  }

  async empty(): Promise<void> {
    while (this.#ends.size > 0) await Promise.all(this.#ends);
  }
}
