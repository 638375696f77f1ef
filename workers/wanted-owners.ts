import type { Owner } from "../domain/tenant.ts";

/** Why an owner that was asked for is not served here: it is another's to serve, or could not be taken. */
export type Refusal = { readonly isAnothers: true } | { readonly isAnothers: false; readonly why: string };

/** Two processes may see the live ones differently for a moment, so an owner that was asked for is looked at again for so long. */
const wantedMs = 15_000;

/** Owners that were asked for and are not served here. */
export class WantedOwners {
  readonly #wanted = new Map<Owner, { readonly untilMs: number; readonly refusal: Refusal }>();

  /** @returns whether it is news why the owner could not be taken */
  add(owner: Owner, refusal: Refusal): boolean {
    const before = this.#wanted.get(owner)?.refusal;
    this.#wanted.set(owner, { untilMs: performance.now() + wantedMs, refusal });
    return !refusal.isAnothers && (before === undefined || before.isAnothers || before.why !== refusal.why);
  }

  delete(owner: Owner): void {
    this.#wanted.delete(owner);
  }

  /** Does `work` without giving the owner more time, should it be refused again. */
  async onOldTime(owner: Owner, work: () => Promise<unknown>): Promise<void> {
    const before = this.#wanted.get(owner);
    await work();
    const after = this.#wanted.get(owner);
    if (before !== undefined && after !== undefined) this.#wanted.set(owner, { ...after, untilMs: before.untilMs });
  }

  /** Those to look at again: all when the live processes have changed, else those that could not be taken. */
  due({ hasChanged }: { readonly hasChanged: boolean }): readonly Owner[] {
    for (const [owner, { untilMs }] of this.#wanted) if (untilMs < performance.now()) this.#wanted.delete(owner);
    return [...this.#wanted].filter(([, { refusal }]) => hasChanged || !refusal.isAnothers).map(([owner]) => owner);
  }
}
