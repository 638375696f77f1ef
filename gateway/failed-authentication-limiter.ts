import { AppError } from "../domain/app-error.ts";

/** Contract §3: the limiter acts after 20 failed authentications of one address in a minute, on unauthenticated requests only. */
const failuresPerMinute = 20;
const windowMs = 60_000;
/** Addresses remembered at once; beyond it the oldest is forgotten, so a flood from many addresses costs no memory. */
const rememberedAddresses = 10_000;

export interface FailedAuthenticationLimiter {
  /** Counts a failure. @returns what the caller is told in place of its own error once it has failed too often */
  refuse(address: string, error: AppError): AppError;
}

type FailedAuthenticationLimiterDeps = { readonly now?: () => number; readonly onFailure?: (() => void) | undefined };

export function createFailedAuthenticationLimiter({
  now = () => performance.now(),
  onFailure,
}: FailedAuthenticationLimiterDeps = {}): FailedAuthenticationLimiter {
  const windows = new Map<string, { readonly startedAtMs: number; failures: number }>();
  return {
    refuse(address, error) {
      onFailure?.();
      const nowMs = now();
      const known = windows.get(address);
      const window = known === undefined || nowMs - known.startedAtMs >= windowMs ? { startedAtMs: nowMs, failures: 0 } : known;
      window.failures++;
      windows.delete(address);
      windows.set(address, window);
      for (const oldest of windows.keys()) {
        if (windows.size <= rememberedAddresses) break;
        windows.delete(oldest);
      }
      if (window.failures <= failuresPerMinute) return error;
      return new AppError("rate_limited", {
        client: { retryAfterSeconds: Math.max(1, Math.ceil((window.startedAtMs + windowMs - nowMs) / 1_000)) },
      });
    },
  };
}
