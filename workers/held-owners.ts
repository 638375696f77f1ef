import { AppError } from "../domain/app-error.ts";
import type { Owner } from "../domain/tenant.ts";
import type { Placement } from "../storage/placement-repository.ts";

/** What uses a tenant's directory, from before it looks at the placement until it has ended. */
export type PlaceEntry = {
  readonly placement: Placement;
  /** Fires when the tenant is no longer this process's: what runs must end. */
  readonly signal: AbortSignal;
  leave(): void;
};

type Holding = {
  readonly epoch: bigint;
  /** Of what runs inside; a new one after every lapse. */
  ending: AbortController;
  readonly inside: Set<Promise<void>>;
  isLeaving: boolean;
  /** Somebody asked for the owner while it was being given up. */
  isWanted: boolean;
};

/** How long what was told to end may take to be gone. */
const endMs = 10_000;

/** The owners that this process serves, and what runs in their directories. */
export class HeldOwners {
  readonly #holder: string;
  readonly #holdings = new Map<Owner, Holding>();

  constructor(holder: string) {
    this.#holder = holder;
  }

  add(owner: Owner, epoch: bigint): void {
    this.#holdings.set(owner, { epoch, ending: new AbortController(), inside: new Set(), isLeaving: false, isWanted: false });
  }

  remove(owner: Owner): void {
    this.#holdings.get(owner)?.ending.abort();
    this.#holdings.delete(owner);
  }

  owners(): readonly Owner[] {
    return [...this.#holdings.keys()];
  }

  get size(): number {
    return this.#holdings.size;
  }

  epochOf(owner: Owner): bigint | undefined {
    return this.#holdings.get(owner)?.epoch;
  }

  /** Held, and not being given up. */
  isServed(owner: Owner): boolean {
    return this.#holdings.get(owner)?.isLeaving === false;
  }

  /** @throws {AppError} `unavailable` when the owner is not served here */
  enter(owner: Owner): PlaceEntry {
    const holding = this.#holdings.get(owner);
    if (holding === undefined || holding.isLeaving) throw new AppError("unavailable", { owner, why: "another worker serves the tenant" });
    const { promise: left, resolve } = Promise.withResolvers<void>();
    holding.inside.add(left);
    return {
      placement: { holder: this.#holder, epoch: holding.epoch },
      signal: holding.ending.signal,
      leave() {
        holding.inside.delete(left);
        resolve();
      },
    };
  }

  /** Ends what runs in all directories; the owners stay held. */
  endAll(): void {
    for (const holding of this.#holdings.values()) {
      holding.ending.abort();
      holding.ending = new AbortController();
    }
  }

  /** Lets nothing new in, and waits `graceMs` for what is inside before it is told to end. */
  async empty(owner: Owner, graceMs: number): Promise<void> {
    const holding = this.#holdings.get(owner);
    if (holding === undefined) return;
    holding.isLeaving = true;
    await within(graceMs, holding.inside);
    holding.ending.abort();
    await within(endMs, holding.inside);
  }

  /** It could not be given up. */
  stay(owner: Owner): void {
    const holding = this.#holdings.get(owner);
    if (holding === undefined) return;
    holding.ending = new AbortController();
    holding.isLeaving = holding.isWanted = false;
  }

  /** Remembers that somebody asked for an owner that is being given up. @returns false when it is not */
  want(owner: Owner): boolean {
    const holding = this.#holdings.get(owner);
    if (holding?.isLeaving !== true) return false;
    return (holding.isWanted = true);
  }

  isWanted(owner: Owner): boolean {
    return this.#holdings.get(owner)?.isWanted === true;
  }
}

async function within(ms: number, ends: ReadonlySet<Promise<void>>): Promise<void> {
  if (ends.size === 0) return;
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([late, Promise.all(ends)]);
  clearTimeout(timer);
}
