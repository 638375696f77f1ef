import { type Stats, readFileSync, statSync } from "node:fs";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { AppError } from "../domain/app-error.ts";
import { systemOwner } from "../domain/tenant.ts";
import type { RateCard, RateCardText } from "../domain/rate-card.ts";
import type { MarkupPpm } from "../domain/money.ts";
import type { Database } from "../storage/database.ts";
import { type AdminConfig, adminConfigMaxBytes, adminConfigPath, parseAdminConfig } from "./admin-config.ts";
import type { ChangeOptions, Changes } from "./changes.ts";
import { replaceOperatorFile } from "./private-file.ts";
import {
  type PriceTerms,
  beginInForce,
  endIntendedWrite,
  haveSameTerms,
  intendWrite,
  rateCardChannel,
  intendedSeconds,
  readInForce,
  readInForceBeside,
  readIntendedWrite,
} from "./rate-card-in-force.ts";
import { withRateCard } from "./rate-card-text.ts";
import { createRateCard, loadRateCard, storeRateCard } from "./rate-cards.ts";

/**
 * `config.yaml` while the product runs: its rate card and its markup hold from the moment that an edit of them is seen and audited;
 * everything else holds from the next start (docs/adr/013).
 */
export interface LiveConfiguration {
  /** What is in force in this process; a new object after every change. */
  current(): AdminConfig;
  /** Why the file is not what is in force: key path and line of its first error, or what keeps an edit from being recorded. */
  fault(): string | undefined;
  /** From here on edits are taken over. @param isWriter whether this process writes the file for `writeRateCard` */
  follow(options: { readonly changes: Changes; readonly isWriter: boolean }): Promise<RateCardWriter>;
}

export interface RateCardWriter {
  /**
   * Makes a card the one in force and writes it into the file.
   * @throws {AppError} `invalid_rate`; `conflict` when the file cannot be written or holds an error; else as `Changes.make`
   */
  write(text: RateCardText, options: ChangeOptions): Promise<RateCard>;
  stop(): Promise<void>;
}

export type LiveConfigurationDeps = {
  readonly database: Pick<Database, "withControl" | "listen" | "notify">;
  readonly home: string;
  /** As this process read it. */
  readonly config: AdminConfig;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How often the file is looked at; default 1 s. */
  readonly intervalMs?: number;
};

/** A file counts as written to its end when it has not changed for so long: an editor may empty it first. */
const settledMs = 300;
/** A PUT waits so often for an editor to finish. */
const settleLooks = 10;
/** How long a start waits for the first look at the file. */
const startPatienceMs = 1_500;

type ReadFile = { readonly signature: string } & ({ readonly text: string; readonly config: AdminConfig } | { readonly reason: string });
type GoodFile = Extract<ReadFile, { readonly text: string }>;

const termsOf = ({ rateCard, billing }: AdminConfig): PriceTerms => ({ hash: rateCard.hash, markupPpm: billing.markupPpm });

export async function openLiveConfiguration({
  database,
  home,
  config,
  log,
  intervalMs = 1_000,
}: LiveConfigurationDeps): Promise<LiveConfiguration> {
  const path = adminConfigPath(home);
  const place = `${hostname()}:${path}`;
  let current = config;
  let fault: string | undefined;
  let read: ReadFile | undefined;
  let unsettled: { readonly signature: string; readonly seenAtMs: number } | undefined;
  /** Of the file that is in force, or that was found bad. */
  let handled: string | undefined;
  let mayHoldWrite = true;
  let lastInLine: Promise<unknown> = Promise.resolve();

  const inLine = async <T>(work: () => Promise<T>): Promise<T> => {
    const mine = lastInLine.then(work);
    lastInLine = mine.catch(() => {});
    return await mine;
  };

  const adopt = (rateCard: RateCard, markupPpm: number): void => {
    current = { ...current, rateCard, billing: { ...current.billing, markupPpm: markupPpm as MarkupPpm } };
    log("a rate card is in force", { hash: rateCard.hash, markupPpm });
  };

  // What was edited while nothing ran is an edit like any other: until it is recorded, what was recorded last holds.
  const recorded = await database.withControl(async (tx) => {
    await beginInForce(tx, config.rateCard, config.billing.markupPpm);
    const terms = await readInForce(tx);
    return haveSameTerms(terms, termsOf(config)) ? undefined : { card: await loadRateCard(tx, terms.hash), markupPpm: terms.markupPpm };
  });
  if (recorded !== undefined) adopt(recorded.card, recorded.markupPpm);

  const setFault = (reason: string | undefined): void => {
    if (reason === fault) return;
    fault = reason;
    if (reason === undefined) log("config.yaml is as it should be again");
    else log("config.yaml is not taken over: the rate card and the markup stay as they are", { reason });
  };

  /** @returns undefined while somebody may be writing the file */
  const readSettled = (): ReadFile | undefined => {
    let stats: Stats;
    try {
      stats = statSync(path);
    } catch (error) {
      return { signature: "none", reason: `config.yaml cannot be read (${codeOf(error)})` };
    }
    const signature = signatureOf(stats);
    if (read?.signature === signature) return read;
    if (!isSettled(stats, signature)) return undefined;
    read = readNow(path, stats, signature);
    return read;
  };

  const isSettled = ({ mtimeMs, ctimeMs }: Stats, signature: string): boolean => {
    const now = performance.now();
    const isOld = Date.now() - Math.max(mtimeMs, ctimeMs) > settledMs;
    if (isOld || (unsettled?.signature === signature && now - unsettled.seenAtMs >= settledMs)) return true;
    if (unsettled?.signature !== signature) unsettled = { signature, seenAtMs: now };
    return false;
  };

  const endWrite = async (): Promise<void> => {
    await database.withControl(async (tx) => await endIntendedWrite(tx, place));
    mayHoldWrite = false;
  };

  /** Writes what a PUT has put in force, if the file still holds what it held then. @returns whether the file was written */
  const finishWrite = async ({ signature, text, config: { rateCard } }: GoodFile): Promise<boolean> => {
    const found = await database.withControl(
      async (tx) => {
        const intended = await readIntendedWrite(tx, place);
        return intended === undefined ? undefined : { intended, terms: await readInForce(tx), card: await loadRateCard(tx, intended.hash) };
      },
      { readOnly: true },
    );
    mayHoldWrite = found !== undefined;
    if (found === undefined) return false;
    const { intended, terms, card } = found;
    const isStanding = rateCard.hash === intended.fromHash && rateCard.hash !== intended.hash;
    if (isStanding && terms.hash !== intended.hash && intended.ageMs < intendedSeconds * 1_000) return false;
    if (isStanding && terms.hash === intended.hash) {
      const isUnchanged = (): boolean => signatureOf(statSync(path)) === signature;
      if (!replaceOperatorFile(path, withRateCard(text, card.text), isUnchanged)) return true;
      const stats = statSync(path);
      read = readNow(path, stats, signatureOf(stats));
      await database.notify(rateCardChannel, "");
    }
    await endWrite();
    return true;
  };

  const createWriter = ({ changes, isWriter }: { readonly changes: Changes; readonly isWriter: boolean }) => {
    /** Brings what is in force in line with the file. @returns the good file that is in force now */
    const look = async (): Promise<GoodFile | undefined> => {
      for (;;) {
        const file = readSettled();
        if (file === undefined) return undefined;
        if ("reason" in file) {
          setFault(file.reason);
          handled = file.signature;
          return undefined;
        }
        if (handled === file.signature && !(isWriter && mayHoldWrite)) return file;
        if (isWriter && mayHoldWrite && (await finishWrite(file))) continue;
        if (!(await takeOver(file))) return undefined;
        setFault(undefined);
        handled = file.signature;
        return file;
      }
    };

    /** @returns false while a gateway is writing the file: what it holds is no edit then */
    const takeOver = async ({ signature, config: { rateCard, billing } }: GoodFile): Promise<boolean> => {
      const { markupPpm } = billing;
      const terms = { hash: rateCard.hash, markupPpm };
      if (haveSameTerms(terms, termsOf(current))) return true;
      const inForce = await database.withControl(async (tx) => {
        await storeRateCard(tx, rateCard);
        return await readInForceBeside(tx, terms.hash);
      });
      if (!haveSameTerms(terms, inForce)) {
        if (inForce.isBeingWritten || signatureOf(statSync(path)) !== signature) return false;
        // The same edit of the same version is one change, however often and by how many processes it is met.
        const requestId = `rate-card-file:${inForce.version}:${terms.hash.slice(0, 16)}:${markupPpm}`;
        await changes.make(systemOwner, { type: "rate-card.update", ...terms }, { actor: { type: "system", id: "config" }, requestId });
      }
      adopt(rateCard, markupPpm);
      return true;
    };

    let looksInLine = 0;
    const tick = async (): Promise<void> => {
      if (looksInLine > 1) return; // one that has begun may have missed the news, one behind it will not
      looksInLine++;
      try {
        await inLine(look);
      } catch (error) {
        setFault(`config.yaml cannot be taken over yet: ${messageOf(error)}`);
      } finally {
        looksInLine--;
      }
    };

    const settled = async (): Promise<GoodFile> => {
      for (let looks = 0; looks < settleLooks; looks++) {
        const file = await look();
        if (file !== undefined) return file;
        if (fault !== undefined) break;
        await sleep(settledMs);
      }
      throw conflict(
        fault === undefined ? "config.yaml is being written by somebody else. Try again." : `Mend config.yaml first: ${fault}`,
      );
    };

    const write: RateCardWriter["write"] = async (text, options) => {
      const card = createRateCard(text);
      if (card.rates.size === 0)
        throw new AppError("invalid_request", {
          client: { message: "A rate card holds a model at least: without one every call is refused." },
        });
      return await inLine(async () => {
        const file = await settled();
        requireWritable(path, withRateCard(file.text, card.text));
        await database.withControl(async (tx) => {
          await storeRateCard(tx, card);
          await intendWrite(tx, place, { hash: card.hash, fromHash: file.config.rateCard.hash });
        });
        mayHoldWrite = true;
        try {
          await changes.make(systemOwner, { type: "rate-card.update", hash: card.hash }, options);
        } catch (error) {
          const isUndecided = !(error instanceof AppError) || error.code === "unavailable";
          if (!isUndecided) await endWrite();
          throw error;
        }
        await settled().catch((error: unknown) => {
          const message = `The change is recorded, but config.yaml could not be written yet: ${messageOf(error)}`;
          throw new AppError("unavailable", { client: { message } }, { cause: error });
        });
        if (mayHoldWrite) await endWrite(); // a repeat of a change that was followed by another one
        return card;
      });
    };

    return { tick, write };
  };

  return {
    current: () => current,
    fault: () => fault,
    async follow(options) {
      const { tick, write } = createWriter(options);
      const stopListening = await database.listen(rateCardChannel, () => void tick(), { onReconnect: () => void tick() });
      const timer = setInterval(() => void tick(), intervalMs);
      await Promise.race([tick(), sleep(startPatienceMs, undefined, { ref: false })]);
      return {
        write,
        async stop() {
          clearInterval(timer);
          await stopListening();
          await lastInLine;
        },
      };
    },
  };
}

const signatureOf = ({ mtimeMs, ctimeMs, size, ino, mode }: Stats): string => [mtimeMs, ctimeMs, size, ino, mode].join("/");

function readNow(path: string, stats: Stats, signature: string): ReadFile {
  if (!stats.isFile()) return { signature, reason: "config.yaml is not a plain file" };
  if (stats.size > adminConfigMaxBytes) return { signature, reason: `config.yaml is larger than ${adminConfigMaxBytes} bytes` };
  try {
    const text = readFileSync(path, "utf8");
    return { signature, text, config: parseAdminConfig(text) };
  } catch (error) {
    return { signature, reason: error instanceof AppError ? error.message : `config.yaml cannot be read (${codeOf(error)})` };
  }
}

/** @throws {AppError} `conflict` before anything is recorded */
function requireWritable(path: string, text: string): void {
  try {
    replaceOperatorFile(path, text, () => false);
  } catch (error) {
    throw conflict(`config.yaml cannot be written by this gateway (${codeOf(error)}): change the rate card in the file itself.`);
  }
}

const conflict = (message: string): AppError => new AppError("conflict", { client: { message } });
const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? "unknown";
const messageOf = (error: unknown): string => (error instanceof AppError ? error.message : codeOf(error));
