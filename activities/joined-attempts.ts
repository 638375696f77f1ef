/** Why a running effect is asked to stop: an abort of its turn, or the end of this worker, after which another attempt follows. */
export type StopReason = "abort" | "shutdown";

/**
 * A heartbeat that came too late makes Temporal start a second attempt while the first still runs in this process: it joins the
 * first instead of doing the effect again. Whatever stops one of the attempts stops the effect that they share.
 */
export function createJoinedAttempts<T>() {
  const running = new Map<string, { readonly outcome: Promise<T>; readonly stop: AbortController }>();
  return async (key: string, signal: AbortSignal, begin: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    let effect = running.get(key);
    if (effect === undefined) {
      const stop = new AbortController();
      effect = { stop, outcome: begin(stop.signal).finally(() => running.delete(key)) };
      running.set(key, effect);
    }
    const { stop, outcome } = effect;
    const onAbort = (): void => stop.abort(signal.reason);
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await outcome;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  };
}
