import type { FinishedTurn } from "../domain/turn.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TokenBus, TurnEvent } from "../streams/token-bus.ts";

/** How a process listens to its turns. */

export type EventTap = {
  readonly finished: Promise<FinishedTurn | undefined>;
  onEvent(listener: (event: TurnEvent) => void): void;
  close(): void;
};

/**
 * Listens from before the turn is stored, so that no event comes too early; events without a listener yet are kept for it.
 * @param textSoFar what the turn has said before, for whoever begins in the middle
 */
export function tapEvents(bus: TokenBus, turnId: TurnId, textSoFar = ""): EventTap {
  const early: TurnEvent[] = textSoFar === "" ? [] : [{ type: "text", offset: 0, text: textSoFar }];
  let listener: ((event: TurnEvent) => void) | undefined;
  const { promise: finished, resolve } = Promise.withResolvers<FinishedTurn | undefined>();
  const close = bus.subscribe(turnId, (event) => {
    if (listener === undefined) early.push(event);
    else listener(event);
    if (event.type === "finished") resolve(event.finished);
  });
  return {
    finished,
    close,
    onEvent(next) {
      listener = next;
      for (const event of early.splice(0)) next(event);
    },
  };
}

/** Keeps what turns say while they run. */
export function createTextKeeper(bus: TokenBus) {
  const texts = new Map<TurnId, string>();
  return {
    keep(turnId: TurnId, finished: Promise<FinishedTurn>): void {
      if (texts.has(turnId)) return; // a call that was repeated
      texts.set(turnId, "");
      const stop = bus.subscribe(turnId, (event) => {
        const text = texts.get(turnId) ?? "";
        if (event.type === "text" && event.offset === text.length) texts.set(turnId, text + event.text);
      });
      const forget = (): void => {
        stop();
        texts.delete(turnId);
      };
      finished.then(forget, forget);
    },
    of: (turnId: TurnId): string | undefined => texts.get(turnId),
  };
}
