/** How long a provider may take. Milliseconds. */
export type CallTimeouts = {
  /** From sending the request to the answer's headers. */
  readonly headersMs: number;
  /** Between two pieces of the answer; time in which our own reader is busy does not count. Node's fetch gives up at 300 s. */
  readonly idleMs: number;
  /** For the whole call. */
  readonly totalMs: number;
};

export const defaultTimeouts: CallTimeouts = { headersMs: 120_000, idleMs: 120_000, totalMs: 600_000 };

/** Who ended a call early: the caller, or one of the time limits. */
export type StoppedBy = "caller" | keyof CallTimeouts;

/** One signal out of the caller's and the time limits, that remembers which of them fired first. */
export type CallDeadline = {
  readonly signal: AbortSignal;
  stoppedBy(): StoppedBy | undefined;
  /** Runs `wait` under a limit of its own. */
  within<T>(limit: "headersMs" | "idleMs", wait: () => Promise<T>): Promise<T>;
  /** Clears every timer and listener; the signal is never fired after it. */
  end(): void;
};

export function startDeadline(caller: AbortSignal, timeouts: CallTimeouts): CallDeadline {
  const controller = new AbortController();
  let stopped: StoppedBy | undefined;
  const stop = (by: StoppedBy): void => {
    if (stopped !== undefined) return;
    stopped = by;
    controller.abort();
  };
  const onCallerAbort = (): void => stop("caller");
  const total = setTimeout(stop, timeouts.totalMs, "totalMs");
  if (caller.aborted) onCallerAbort();
  else caller.addEventListener("abort", onCallerAbort, { once: true });
  return {
    signal: controller.signal,
    stoppedBy: () => stopped,
    async within(limit, wait) {
      const timer = setTimeout(stop, timeouts[limit], limit);
      try {
        return await wait();
      } finally {
        clearTimeout(timer);
      }
    },
    end() {
      clearTimeout(total);
      caller.removeEventListener("abort", onCallerAbort);
    },
  };
}
