import type { KeyRing } from "./key-ring.ts";
import { ModelCallError, type ModelDelta, type ModelProvider, type ModelResult } from "./model-provider.ts";
import { providerFailure } from "./provider-failure.ts";

/**
 * A provider with several keys, or with one that may be told to wait: a call that fails by its key is made with the next one, before
 * the first token only, and as the same call (`callId`), which is billed once.
 * @param members the provider with each of its keys, in the ring's order
 */
export function createKeyedProvider(members: readonly [ModelProvider, ...ModelProvider[]], ring: KeyRing): ModelProvider {
  const [{ name, services }] = members;

  async function* call(...[request, signal]: Parameters<ModelProvider["call"]>): AsyncGenerator<ModelDelta, ModelResult, undefined> {
    const keys = openKeys(ring, request.model);
    for (;;) {
      const key = keys.next();
      let isSilent = true;
      try {
        await using deltas = memberOf(key).call(request, signal);
        for (;;) {
          const { done, value } = await deltas.next();
          if (done === true) {
            ring.worked(key, request.model);
            return value;
          }
          isSilent = false;
          yield value;
        }
      } catch (error) {
        keys.failed(key, error, isSilent);
      }
    }
  }

  const memberOf = (key: number): ModelProvider => members[key] ?? members[0];
  return {
    name,
    call,
    ...(services === undefined
      ? {}
      : {
          services: {
            async serve(request, signal) {
              const keys = openKeys(ring, request.model);
              for (;;) {
                const key = keys.next();
                try {
                  const result = await (memberOf(key).services ?? services).serve(request, signal);
                  ring.worked(key, request.model);
                  return result;
                } catch (error) {
                  keys.failed(key, error, true);
                }
              }
            },
          },
        }),
  };
}

/** The keys that one call goes through. */
function openKeys(ring: KeyRing, model: string) {
  const tried = new Set<number>();
  let failure: ModelCallError | undefined;
  return {
    /** @throws {ModelCallError} `busy`, or what the calls with the other keys ended with, when none is left */
    next(): number {
      const key = ring.take(model, tried);
      if (key === undefined) throw failure ?? providerFailure({ kind: "busy", status: 429, retryAfterMs: ring.restMs(model) }, []);
      tried.add(key);
      return key;
    },
    /** @throws what the call ended with, unless another key may do better */
    failed(key: number, error: unknown, isSilent: boolean): void {
      if (!(error instanceof ModelCallError) || !ring.failed(key, model, error)) throw error;
      if (!isSilent || error.usage !== undefined) throw error;
      // A key that is told to wait may answer soon; one that is not accepted will not.
      if (failure?.kind !== "busy") failure = error;
    },
  };
}
