import type { ModelCallError } from "./model-provider.ts";

/** One of a provider's keys; `name` is the environment variable that holds it, which may be printed. */
export type ProviderKey = { readonly name: string; readonly secret: string };

/** A key is not used for a while: for logs and metrics. */
export type KeyRest = {
  readonly provider: string;
  readonly key: string;
  /** Undefined: for all models. */
  readonly model: string | undefined;
  readonly why: "rate_limited" | "rejected";
  readonly status: number;
  readonly ms: number;
};

export type KeyRingOptions = {
  readonly provider: string;
  /** The keys' names. */
  readonly keys: readonly string[];
  readonly onRest: (rest: KeyRest) => void;
  readonly now: () => number;
};

export interface KeyRing {
  /** The key to call `model` with: of those that do not rest, and were not tried for this call, the one unused for longest. */
  take(model: string, tried: ReadonlySet<number>): number | undefined;
  /** When a key that the provider told to wait may be used again, in milliseconds from now. */
  restMs(model: string): number;
  worked(key: number, model: string): void;
  /** @returns whether the failure is the key's, so that another one may do better */
  failed(key: number, model: string, error: ModelCallError): boolean;
}

type Rest = { readonly untilMs: number; readonly isAsked: boolean; readonly times: number };

/** The longest rest, whatever a provider asks for: its limits may be raised meanwhile. */
const longestRestMs = 600_000;
/** First rests where the provider names none; each doubles while the key keeps failing. */
const firstRestMs = { rate_limited: 1_000, rejected: 60_000 } as const;

/**
 * Which of a provider's keys are used. Only what a provider says about the key lets one rest: 429 for the model that it was said of,
 * as limits are per model; 401 and 402 for all models; 403 for the model, which the key's project may lack. What a tenant asked wrongly
 * (400, 404, 413, 422) and a provider's own trouble (5xx) say nothing about a key. A rest that the provider asked for by Retry-After is
 * kept; any other is a preference. A key that is the only one is always tried: what one call was too large for, another may not be, and
 * there is nothing to do better with.
 */
export function createKeyRing({ provider, keys, onRest, now }: KeyRingOptions): KeyRing {
  const rests = new Map<string, Rest>();
  /** Keys, the one unused for longest first. */
  const order = keys.map((_, key) => key);
  const restsOf = (key: number, model: string): readonly Rest[] =>
    [rests.get(placeOf(key)), rests.get(placeOf(key, model))].filter((rest) => rest !== undefined && rest.untilMs > now()) as Rest[];
  const freeAtMs = (key: number, model: string): number => Math.max(0, ...restsOf(key, model).map(({ untilMs }) => untilMs));
  const mustWait = (key: number, model: string): boolean => keys.length > 1 && restsOf(key, model).some(({ isAsked }) => isAsked);

  return {
    take(model, tried) {
      const open = order.filter((key) => !tried.has(key) && !mustWait(key, model));
      // Sorting is stable: keys that are free keep their order.
      const [key] = open.toSorted((one, other) => freeAtMs(one, model) - freeAtMs(other, model));
      if (key !== undefined) order.push(...order.splice(order.indexOf(key), 1));
      return key;
    },
    restMs: (model) => Math.max(0, Math.min(...keys.map((_, key) => freeAtMs(key, model))) - now()),
    worked(key, model) {
      rests.delete(placeOf(key));
      rests.delete(placeOf(key, model));
    },
    failed(key, model, { status, retryAfterMs }) {
      if (status !== 429 && status !== 401 && status !== 402 && status !== 403) return false;
      const why = status === 429 ? "rate_limited" : "rejected";
      const isOfModel = status === 429 || status === 403;
      const place = isOfModel ? placeOf(key, model) : placeOf(key);
      const times = (rests.get(place)?.times ?? 0) + 1;
      const ms = Math.min(longestRestMs, retryAfterMs ?? firstRestMs[why] * 2 ** (times - 1));
      rests.set(place, { untilMs: now() + ms, isAsked: retryAfterMs !== undefined, times });
      onRest({ provider, key: keys[key] ?? "", model: isOfModel ? model : undefined, why, status, ms });
      return true;
    },
  };
}

const placeOf = (key: number, model?: string): string => (model === undefined ? String(key) : `${key} ${model}`);
