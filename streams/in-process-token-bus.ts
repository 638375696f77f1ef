import type { TurnId } from "../domain/turn-id.ts";
import type { TokenBus, TurnEvent } from "./token-bus.ts";

/** The bus of a process that is gateway and worker at once: a function call per event. */
export function createInProcessTokenBus(): TokenBus {
  const listeners = new Map<TurnId, Set<(event: TurnEvent) => void>>();
  return {
    publish(turnId, event) {
      for (const listener of listeners.get(turnId) ?? []) listener(event);
    },
    subscribe(turnId, listener) {
      const ofTurn = listeners.get(turnId) ?? new Set();
      listeners.set(turnId, ofTurn.add(listener));
      return () => {
        ofTurn.delete(listener);
        if (ofTurn.size === 0) listeners.delete(turnId);
      };
    },
  };
}
