import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import type { Database } from "../storage/database.ts";
import { isKnownDead, ownIdentity } from "../storage/linux-process.ts";
import {
  type LiveProcess,
  type ProcessFacts,
  type ProcessRole,
  expireProcesses,
  removeProcess,
  renewProcess,
} from "../storage/process-repository.ts";

export type MembershipOptions = {
  readonly database: Pick<Database, "withControl" | "listen" | "notify">;
  readonly role: ProcessRole;
  readonly homeId: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  readonly times?: MembershipTimes;
};

export type MembershipTimes = {
  /** How often the process says that it lives while there are others; half as often when it is alone. */
  readonly renewMs: number;
  /** Others believe in a process so long without hearing of it. */
  readonly leaseMs: number;
  /** The process itself stops believing earlier, counted from before it said that it lives: time to stop what it runs. */
  readonly ownLeaseMs: number;
};

/** What becomes of this process's lease of life, on which everything hangs that it holds. */
export type MembershipListener = {
  /** Other processes came, went or began to drain. */
  readonly onChange?: () => void;
  /** The lease ran out by this process's own clock: what it holds may be another's from now on. */
  readonly onLapse?: () => void;
  /** The lease is back after a lapse: what is still held has to be looked up. */
  readonly onReturn?: () => void;
  /** It was renewed and ends in so many ms. */
  readonly onRenewal?: (leftMs: number) => void;
};

/** The live processes of the database, this one among them. */
export interface Membership {
  readonly self: ProcessFacts;
  /** As last read, at most `renewMs` ago while the lease stands; with this process. */
  live(): readonly LiveProcess[];
  /** Whether the lease stands, by the monotonic clock. */
  isHeld(): boolean;
  listen(listener: MembershipListener): () => void;
  /** Says that this process takes nothing new and gives away what it has. */
  drain(): Promise<void>;
  /** Leaves the list, so that nobody waits for this process's time to run out. */
  close(): Promise<void>;
}

const usualTimes: MembershipTimes = { renewMs: 1_000, leaseMs: 6_000, ownLeaseMs: 5_000 };
const channel = "openclaw_processes";
const quick = { statementTimeoutMs: 2_000, lockTimeoutMs: 1_000 };

/** Joins the list of live processes and stays in it until closed. @throws {AppError} `unavailable` when the database is away */
export async function openMembership({ database, role, homeId, log, times = usualTimes }: MembershipOptions): Promise<Membership> {
  const { renewMs, leaseMs, ownLeaseMs } = times;
  const self: ProcessFacts = { ...ownIdentity(), id: `prc_${randomBytes(10).toString("hex")}`, role, host: hostname(), homeId };
  const listeners = new Set<MembershipListener>();
  let processes: readonly LiveProcess[] = [];
  let heldUntilMs = -Infinity;
  let hasLapsed = true;
  let isDraining = false;
  let isClosed = false;
  let lapse: NodeJS.Timeout | undefined;
  let next: NodeJS.Timeout | undefined;
  let renewing: Promise<void> | undefined;
  let isAskedAgain = false;

  const tell = (what: (listener: MembershipListener) => void): void => {
    for (const listener of listeners) what(listener);
  };

  const onLapse = (): void => {
    if (hasLapsed) return;
    hasLapsed = true;
    log("this process could not renew its lease of life", { process: self.id });
    tell((listener) => listener.onLapse?.());
  };

  const renew = async (): Promise<void> => {
    const sentAtMs = performance.now();
    const saidDraining = isDraining;
    const { others, hadLapsed } = await database.withControl(
      async (tx) => await renewProcess(tx, self, { forMs: leaseMs, isDraining: saidDraining }),
      quick,
    );
    const dead = others.filter((process) => isKnownDead(process, self.machine));
    const before = viewOf(processes);
    processes = [{ ...self, isDraining: saidDraining }, ...others.filter((process) => !dead.includes(process))];
    // A lapse that the timer has not told of yet: the process was paused.
    if (performance.now() >= heldUntilMs) onLapse();
    heldUntilMs = sentAtMs + ownLeaseMs;
    clearTimeout(lapse);
    lapse = setTimeout(onLapse, heldUntilMs - performance.now());
    lapse.unref();
    const isBack = hasLapsed || hadLapsed;
    hasLapsed = false;
    tell((listener) => listener.onRenewal?.(heldUntilMs - performance.now()));
    if (isBack) tell((listener) => listener.onReturn?.());
    if (viewOf(processes) !== before) tell((listener) => listener.onChange?.());
    if (dead.length > 0) await bury(dead);
  };

  /** A process that was killed on this machine is not waited for. */
  const bury = async (dead: readonly LiveProcess[]): Promise<void> => {
    log("processes of this machine have died", { processes: dead.map(({ id, pid }) => `${id} (pid ${pid})`) });
    await database.withControl(
      async (tx) =>
        await expireProcesses(
          tx,
          dead.map(({ id }) => id),
        ),
      quick,
    );
    await announce();
  };

  const announce = async (): Promise<void> => {
    await database.notify(channel, self.id).catch((error: unknown) => log("the other processes were not told", { error: String(error) }));
  };

  /** One at a time; who asks meanwhile gets one that begins later. */
  const renewInTurn = async (): Promise<void> => {
    if (renewing !== undefined) {
      isAskedAgain = true;
      return await renewing;
    }
    clearTimeout(next);
    renewing = (async () => {
      do {
        isAskedAgain = false;
        await renew().catch((error: unknown) => log("this process could not say that it lives", { error: String(error) }));
      } while (isAskedAgain && !isClosed);
    })();
    await renewing;
    renewing = undefined;
    if (isClosed) return;
    // Alone, nobody looks; who comes says so.
    next = setTimeout(() => void renewInTurn(), processes.length > 1 ? renewMs : 2 * renewMs);
    next.unref();
  };

  await renew();
  const stopListening = await database.listen(channel, (id) => void (id === self.id || isClosed ? undefined : renewInTurn()), {
    onReconnect: () => void (isClosed ? undefined : renewInTurn()),
  });
  await announce();
  void renewInTurn();

  return {
    self,
    live: () => processes,
    isHeld: () => performance.now() < heldUntilMs && !hasLapsed,
    listen(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    async drain() {
      isDraining = true;
      await renewInTurn();
      await announce();
    },
    async close() {
      isClosed = true;
      clearTimeout(next);
      clearTimeout(lapse);
      await stopListening();
      await renewing;
      listeners.clear();
      try {
        await database.withControl(async (tx) => {
          await expireProcesses(tx, [self.id]);
          await removeProcess(tx, self.id);
        }, quick);
        await announce();
      } catch (error) {
        log("this process could not take its leave", { error: String(error) });
      }
    },
  };
}

const viewOf = (processes: readonly LiveProcess[]): string => processes.map(({ id, isDraining }) => `${id} ${isDraining}`).join();
