/** What was started, to be stopped in the opposite order. */
export class Resources {
  readonly #closers: (() => unknown)[] = [];

  /** @returns the resource itself, so that it can be added where it is made */
  add<T>(resource: T, close: (resource: T) => unknown): T {
    this.#closers.push(() => close(resource));
    return resource;
  }

  /** Stops everything, also when something does not stop well. @throws {AggregateError} with what went wrong */
  async close(): Promise<void> {
    const errors: unknown[] = [];
    for (const close of this.#closers.splice(0).reverse()) {
      try {
        await close();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, errors.map(String).join("; "));
  }
}
