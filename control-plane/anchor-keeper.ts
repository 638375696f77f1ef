import { type ChainHead, genesis } from "../domain/audit.ts";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import {
  type RunningHead,
  readAnchorsOfKey,
  readNewestAnchors,
  readRunningHeads,
  storeAnchor,
} from "../storage/audit-anchor-repository.ts";
import { readChain } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";
import { linkFault } from "./anchor-check.ts";
import type { AnchorPlace } from "./anchor-place.ts";
import type { SigningKey } from "./audit-signing-key.ts";

export type AnchorKeeperOptions = {
  readonly database: Pick<Database, "withControl">;
  readonly key: SigningKey;
  readonly places: readonly AnchorPlace[];
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How often to look for chains that are due; default 5 s. */
  readonly intervalMs?: number;
  /** A chain that grew by so many is due; default 1,000. */
  readonly everyEntries?: number;
  /** A chain that grew at all is due so long after its last anchor; default a day. */
  readonly everyMs?: number;
  readonly now?: () => number;
};

export interface AnchorKeeper {
  readonly keyId: string;
  readonly places: readonly AnchorPlace[];
  /** Signs what is due and brings what is signed to every place. @throws when that cannot be done now */
  flush(): Promise<void>;
  stop(): Promise<void>;
}

const entriesAtOnce = 1_000;
const dayMs = 24 * 60 * 60 * 1_000;

/**
 * Signs where chains end: a chain's first entry at once, then every 1,000 entries, at the first entry of a new run of its workflow,
 * and daily. Nothing is signed that does not follow from what was signed before. Which chains are due is read from the database,
 * so a kill between an entry and its anchor, or between an anchor and its place, is made up for by the next start.
 */
export async function startAnchorKeeper({
  database,
  key,
  places,
  log,
  intervalMs = 5_000,
  everyEntries = 1_000,
  everyMs = dayMs,
  now = Date.now,
}: AnchorKeeperOptions): Promise<AnchorKeeper> {
  const newest = new Map(
    (await database.withControl(async (tx) => await readNewestAnchors(tx, key.id), { readOnly: true })).map((anchor) => [
      anchor.chain,
      anchor,
    ]),
  );
  const unplaced = new Map<AnchorPlace, SignedAnchor[]>();
  const refusedAt = new Map<string, number>();

  for (const place of places) {
    const { missing, ahead } = await compare(place);
    unplaced.set(place, missing);
    for (const anchor of ahead) {
      log("ALARM: the database has lost a signed anchor", { place: place.name, chain: anchor.chain, seq: anchor.seq, ts: anchor.ts });
      newest.set(anchor.chain, anchor);
    }
  }

  /** What a place lacks behind its newest anchor of each chain, and what it has that the database lost there. */
  async function compare(place: AnchorPlace): Promise<{ readonly missing: SignedAnchor[]; readonly ahead: readonly SignedAnchor[] }> {
    const placed = new Map<string, SignedAnchor>();
    for (const anchor of (await place.list()).anchors) {
      if (anchor.key === key.id && isNewer(anchor, placed.get(anchor.chain))) placed.set(anchor.chain, anchor);
    }
    const stored = await database.withControl(async (tx) => await readAnchorsOfKey(tx, key.id), { readOnly: true });
    return {
      missing: stored.filter((anchor) => isNewer(anchor, placed.get(anchor.chain))),
      ahead: [...placed.values()].filter((anchor) => isNewer(anchor, newest.get(anchor.chain))),
    };
  }

  const isDue = ({ chain, seq, run }: RunningHead): boolean => {
    const last = newest.get(chain);
    if (last === undefined) return true;
    if (seq <= last.seq) return false;
    return seq - last.seq >= everyEntries || (run !== null && run !== last.run) || now() - Date.parse(last.ts) >= everyMs;
  };

  const anchor = async (head: RunningHead): Promise<void> => {
    const { chain, seq, hash, run } = head;
    const last = newest.get(chain);
    const fault = await extensionFault(chain, last ?? genesis, head);
    if (fault !== undefined) {
      if (refusedAt.get(chain) !== seq)
        log("ALARM: the chain is not the one that was signed, and is not signed again", { chain, seq, fault });
      refusedAt.set(chain, seq);
      return;
    }
    const signed = key.sign({ chain, seq, hash, run, ts: new Date(now()).toISOString() });
    await database.withControl(async (tx) => await storeAnchor(tx, signed));
    newest.set(chain, signed);
    for (const waiting of unplaced.values()) waiting.push(signed);
    log("audit anchor", { anchor: signed });
  };

  /** What is wrong with the entries between what was signed and what is to be signed. */
  async function extensionFault(chain: string, from: ChainHead, to: ChainHead): Promise<string | undefined> {
    let head = from;
    while (head.seq < to.seq) {
      const { seq } = head;
      const entries = await database.withControl(async (tx) => await readChain(tx, chain, seq, entriesAtOnce), { readOnly: true });
      if (entries.length === 0) return `entry ${seq + 1} is missing`;
      for (const entry of entries.filter((one) => one.seq <= to.seq)) {
        const fault = linkFault(entry, head);
        if (fault !== undefined) return fault.what;
        head = entry;
      }
    }
    return head.hash === to.hash ? undefined : `entry ${to.seq} has another hash`;
  }

  const bringTo = async (where: AnchorPlace, waiting: SignedAnchor[]): Promise<void> => {
    for (let next = waiting[0]; next !== undefined; next = waiting[0]) {
      await where.put(next);
      waiting.shift();
    }
  };

  const work = async (): Promise<void> => {
    const heads = await database.withControl(async (tx) => await readRunningHeads(tx), { readOnly: true });
    for (const head of heads) if (isDue(head)) await anchor(head);
    const brought = await Promise.allSettled([...unplaced].map(async ([where, waiting]) => await bringTo(where, waiting)));
    for (const outcome of brought) if (outcome.status === "rejected") throw outcome.reason;
  };

  let running: Promise<void> = Promise.resolve();
  let isTroubled = false;
  const flush = (): Promise<void> => {
    running = running
      .catch(() => {})
      .then(work)
      .then(
        () => void (isTroubled = false),
        (error: unknown) => {
          if (!isTroubled) log("anchors of the audit could not be written", { error: String(error) });
          isTroubled = true;
          throw error;
        },
      );
    return running;
  };

  const timer = setInterval(() => void flush().catch(() => {}), intervalMs);
  void flush().catch(() => {});
  return {
    keyId: key.id,
    places,
    flush,
    async stop() {
      clearInterval(timer);
      await running.catch(() => {});
    },
  };
}

const isNewer = (anchor: SignedAnchor, than: SignedAnchor | undefined): boolean =>
  than === undefined || anchor.seq > than.seq || (anchor.seq === than.seq && anchor.ts > than.ts);
