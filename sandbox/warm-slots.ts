import { availableParallelism } from "node:os";

/** What is kept ready, and for how long. */
export type WarmLimits = {
  readonly ttlMs: number;
  readonly perKey: number;
  /** Of all keys together; the key that was not used for longest gives way. */
  readonly total: number;
};

export const warmDefaults: WarmLimits = { ttlMs: 60_000, perKey: 2, total: 2 * availableParallelism() };

/** What a slot needs to be able to do: a sandbox that waits for its program. */
type Keepable = { readonly ended: Promise<unknown>; kill(): void; end(): Promise<unknown> };

type Slot<S> = { readonly key: string; readonly workDirectory: string; readonly sandbox: Promise<S>; ttl: NodeJS.Timeout };

/** Sandboxes that were started ahead. Each leaves the shelf once, for one run. */
export class WarmSlots<S extends Keepable> {
  readonly #limits: WarmLimits;
  /** Oldest first; those of a key that is used move to the end. */
  #slots: Slot<S>[] = [];
  readonly #leaving = new Set<Promise<void>>();
  #isClosed = false;

  constructor(limits: WarmLimits) {
    this.#limits = limits;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Slots on the shelf, those that are still being made included. */
  get size(): number {
    return this.#slots.length;
  }

  /** The oldest slot of a key; undefined where there is none, or where it ended before it was taken. */
  async take(key: string): Promise<S | undefined> {
    const slot = this.#slots.find((candidate) => candidate.key === key);
    if (slot === undefined) return undefined;
    this.#unshelve(slot);
    return await slot.sandbox.catch(() => undefined);
  }

  /** Starts one more for a key that was just used, unless it has enough. A start that fails leaves nothing: the next run starts its own. */
  refill({ key, workDirectory }: Pick<Slot<S>, "key" | "workDirectory">, start: () => Promise<S>): void {
    if (this.#isClosed || this.#limits.total < 1) return;
    const ofKey = this.#slots.filter((slot) => slot.key === key);
    this.#slots = [...this.#slots.filter((slot) => slot.key !== key), ...ofKey];
    if (ofKey.length >= this.#limits.perKey) return;
    for (const slot of this.#slots.slice(0, Math.max(0, this.#slots.length + 1 - this.#limits.total))) void this.#discard(slot);
    const sandbox = start();
    const ttl = setTimeout(() => void this.#discard(slot), this.#limits.ttlMs);
    ttl.unref();
    const slot: Slot<S> = { key, workDirectory, sandbox, ttl };
    this.#slots.push(slot);
    sandbox.then(
      ({ ended }) => void ended.then(() => this.#discard(slot)),
      () => this.#unshelve(slot),
    );
  }

  /** Ends what waits for a run in this directory; without one, in any. */
  async drop(workDirectory?: string): Promise<void> {
    const dropped = this.#slots.filter((slot) => workDirectory === undefined || slot.workDirectory === workDirectory);
    await Promise.all(dropped.map((slot) => this.#discard(slot)));
  }

  /** Ends all of them; no other is started. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const slot of this.#slots) void this.#discard(slot);
    await Promise.all(this.#leaving);
  }

  #unshelve(slot: Slot<S>): boolean {
    clearTimeout(slot.ttl);
    const before = this.#slots.length;
    this.#slots = this.#slots.filter((other) => other !== slot);
    return this.#slots.length < before;
  }

  async #discard(slot: Slot<S>): Promise<void> {
    // Somebody else took it, or ends it already.
    if (!this.#unshelve(slot)) return;
    const gone = slot.sandbox
      .then((sandbox) => sandbox.end())
      .then(
        () => undefined,
        // It was never made, or the next process sweeps up what does not end.
        () => undefined,
      );
    this.#leaving.add(gone);
    await gone;
    this.#leaving.delete(gone);
  }
}
