import { defineSearchAttributeKey } from "@temporalio/common";
import {
  CancellationScope,
  allHandlersFinished,
  condition,
  continueAsNew,
  isCancellation,
  setCurrentDetails,
  setHandler,
  sleep,
  upsertSearchAttributes,
  workflowInfo,
} from "@temporalio/workflow";
import { searchAttributeListLength } from "../domain/search-attributes.ts";
import { parseTurnId, type TurnId } from "../domain/turn-id.ts";
import type { TurnTicket, TurnVerdict } from "../domain/turn.ts";
import { type LaneInput, abortTurn, laneState, submitTurn, turnArrived } from "./turn-messages.ts";
import { runTurn } from "./turn-steps.ts";

type LaneTurn = {
  readonly ticket: TurnTicket;
  readonly scope: CancellationScope;
  begun: boolean;
  aborted: boolean;
  verdict: TurnVerdict | undefined;
};

/** Verdicts kept for repeats of a turn id inside this run; an older repeat meets the turn's row. */
const rememberedTurns = 500;
const upsertIntervalMs = 1_000;

const sessionIdKey = defineSearchAttributeKey("SessionId", "KEYWORD_LIST");
const turnIdKey = defineSearchAttributeKey("TurnId", "KEYWORD_LIST");

/**
 * The lane of a session: runs the session's turns one after the other, or `concurrency` at a time for a lane of the stateless pool.
 * The run stays open for `windowMs` after the last message, and moves to a new run when its history has grown.
 *
 * Why it is built this way (each simpler lane lost or doubled turns in a race, docs/adr/003): it closes or moves only in a workflow
 * task of its own, so that no message meets a task that ran a local activity; no handler outlives a run; a turn that fails ends as a
 * verdict, never as a failure of the lane; and Temporal's update ids only deduplicate within this run, the turn's row does across runs.
 */
export async function turn(input: LaneInput): Promise<{ served: number }> {
  const waiting: LaneTurn[] = [];
  const running = new Set<LaneTurn>();
  const known = new Map<TurnId, LaneTurn>();
  /** Aborts that came before their turn did. */
  const earlyAborts = new Set<TurnId>();
  let served = 0;
  let moving = false;
  let windowIsOver = false;
  let lastBusyMs = Date.now();

  const accept = (ticket: TurnTicket, aborted = false): LaneTurn => {
    const repeat = known.get(ticket.turnId);
    if (repeat !== undefined) return repeat;
    const isAborted = earlyAborts.delete(ticket.turnId) || aborted;
    const laneTurn: LaneTurn = { ticket, scope: new CancellationScope(), begun: false, aborted: isAborted, verdict: undefined };
    known.set(ticket.turnId, laneTurn);
    waiting.push(laneTurn);
    lastBusyMs = Date.now();
    return laneTurn;
  };

  const begin = (laneTurn: LaneTurn): void => {
    laneTurn.begun = true;
    running.add(laneTurn);
    announce(laneTurn.ticket);
    const end = (verdict: TurnVerdict): void => {
      laneTurn.verdict = verdict;
      running.delete(laneTurn);
      served++;
      lastBusyMs = Date.now();
      forgetOldest();
    };
    runTurn(laneTurn.ticket, { modelCall: input.modelCall, scope: laneTurn.scope, isAborted: () => laneTurn.aborted }).then(end, () =>
      end({ state: "failed", code: "internal" }),
    );
  };

  const forgetOldest = (): void => {
    for (const [turnId, { verdict }] of known) {
      if (known.size <= rememberedTurns) return;
      if (verdict !== undefined) known.delete(turnId);
    }
  };

  // The start carried the first turn's ids; later ones are added at most once a second, since each upsert costs a visibility write.
  const newestTurnIds: string[] = [];
  const newestSessionIds: string[] = [];
  let isUnannounced = false;
  let lastUpsertMs = input.carried === undefined ? Date.now() : 0;
  const announce = ({ turnId, sessionId }: TurnTicket): void => {
    remember(newestTurnIds, turnId);
    remember(newestSessionIds, sessionId);
    isUnannounced = true;
    if (Date.now() - lastUpsertMs >= upsertIntervalMs) flushAnnouncements();
  };
  const flushAnnouncements = (): void => {
    if (!isUnannounced) return;
    isUnannounced = false;
    lastUpsertMs = Date.now();
    upsertSearchAttributes([
      { key: turnIdKey, value: [...newestTurnIds] },
      { key: sessionIdKey, value: [...newestSessionIds] },
    ]);
  };

  const describe = (): void => {
    const names = [...running].map(({ ticket }) => ticket.turnId).join(", ");
    setCurrentDetails(`${served} turns served, ${waiting.length} waiting, running: ${names === "" ? "none" : names}`);
  };

  setHandler(turnArrived, (ticket) => void accept(ticket));
  setHandler(
    submitTurn,
    async (ticket) => {
      const laneTurn = accept(ticket);
      await condition(() => laneTurn.verdict !== undefined || (moving && !laneTurn.begun));
      return laneTurn.verdict ?? { state: "queued" };
    },
    { validator: (ticket) => void parseTurnId(ticket.turnId) },
  );
  setHandler(abortTurn, (turnId) => {
    const laneTurn = known.get(turnId);
    if (laneTurn === undefined && earlyAborts.size < rememberedTurns) earlyAborts.add(turnId);
    if (laneTurn === undefined || laneTurn.verdict !== undefined) return;
    laneTurn.aborted = true;
    laneTurn.scope.cancel();
  });
  setHandler(laneState, () => ({
    waiting: waiting.map(({ ticket }) => ticket.turnId),
    running: [...running].map(({ ticket }) => ticket.turnId),
    served,
  }));

  for (const { aborted, ...ticket } of input.carried ?? []) accept(ticket, aborted);

  // One timer per window instead of one per turn: it wakes, looks how long the lane has been idle, and sleeps for the rest.
  const watchWindow = async (): Promise<void> => {
    for (let restMs = input.windowMs; restMs > 0;) {
      await sleep(restMs, { summary: "closes when idle" });
      flushAnnouncements();
      const isBusy = running.size > 0 || waiting.length > 0;
      restMs = isBusy ? input.windowMs : input.windowMs - (Date.now() - lastBusyMs);
    }
    windowIsOver = true;
  };
  const startWindow = (): void => {
    windowIsOver = false;
    watchWindow().catch(() => {}); // cancelled with the run, which the loop below meets too
  };
  startWindow();

  const serve = async (): Promise<{ served: number }> => {
    for (;;) {
      while (!moving && running.size < input.concurrency) {
        const next = waiting.shift();
        if (next === undefined) break;
        begin(next);
      }
      describe();
      if (moving && running.size === 0) {
        await sleep(1, { summary: "moves to a new run" }); // a task of its own: the markers of the last turn are safe now
        await condition(allHandlersFinished);
        flushAnnouncements();
        await continueAsNew<typeof turn>({
          ...input,
          carried: waiting.map(({ ticket, aborted }) => ({ ...ticket, aborted })),
        });
      }
      if (windowIsOver) {
        if (waiting.length === 0 && running.size === 0 && allHandlersFinished()) return { served };
        startWindow();
      }
      const servedBefore = served;
      await condition(() => windowIsOver || served !== servedBefore || (!moving && waiting.length > 0 && running.size < input.concurrency));
      moving ||= served >= (input.turnsPerRun ?? Number.POSITIVE_INFINITY) || workflowInfo().continueAsNewSuggested;
    }
  };

  try {
    return await serve();
  } catch (error) {
    // An operator cancelled the run: its turns end as aborted first; those that wait stand in their rows, and the relay sends them again.
    if (isCancellation(error)) {
      await CancellationScope.nonCancellable(async () => {
        moving = true;
        await condition(() => running.size === 0 && allHandlersFinished());
      });
    }
    throw error;
  }
}

function remember(newest: string[], id: string): void {
  if (newest.includes(id)) return;
  newest.push(id);
  if (newest.length > searchAttributeListLength) newest.shift();
}
