import { Counter, Histogram, type Registry } from "prom-client";
import type { TurnService } from "../gateway/turn-service.ts";
import { ModelCallError, type ModelProvider } from "../providers/model-provider.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";

export type TurnMetrics = {
  readonly observeTurns: (turns: TurnService) => TurnService;
  readonly observeProvider: (provider: ModelProvider) => ModelProvider;
};

/** Told how long a caller waited for a turn, from its row on. */
export type OnTurnEnded = (context: TenantContext, turnId: TurnId, seconds: number) => void;

const turnSeconds = [0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600];

/** How long turns and model calls take. No label holds a tenant or a session: there are as many of those as callers like. */
export function createTurnMetrics(registers: Registry[], onTurnEnded: OnTurnEnded): TurnMetrics {
  const turns = new Counter({
    name: "openclaw_turns_total",
    help: "Turns that callers of this process waited for, by how they ended.",
    labelNames: ["state"],
    registers,
  });
  const durations = new Histogram({
    name: "openclaw_turn_seconds",
    help: "Time from a turn's row to its end, of turns that callers of this process waited for.",
    labelNames: ["kind", "state"],
    buckets: turnSeconds,
    registers,
  });
  const firstTexts = new Histogram({
    name: "openclaw_turn_first_text_seconds",
    help: "Time from a turn's row to the first text of its answer, where a caller listens for it.",
    buckets: turnSeconds,
    registers,
  });
  const calls = new Histogram({
    name: "openclaw_model_call_seconds",
    help: "Time that a provider took for one try of a chat call, its other keys included; by how it ended.",
    labelNames: ["provider", "model", "outcome"],
    buckets: turnSeconds,
    registers,
  });
  const firstTokens = new Histogram({
    name: "openclaw_model_first_token_seconds",
    help: "Time to the first piece of a provider's answer.",
    labelNames: ["provider", "model"],
    buckets: turnSeconds,
    registers,
  });

  return {
    observeTurns: (service) => ({
      ...service,
      async submit(context, submission, ...more) {
        const turn = await service.submit(context, submission, ...more);
        const seconds = stopwatch();
        const end = (state: string): void => {
          turns.inc({ state });
          durations.observe({ kind: submission.kind, state }, seconds());
          onTurnEnded(context, turn.turnId, seconds());
        };
        turn.finished.then(
          ({ state }) => end(state),
          () => end("taken_back"),
        );
        let isSilent = true;
        return {
          ...turn,
          onEvent(listener) {
            turn.onEvent((event) => {
              if (isSilent && event.type === "text") {
                isSilent = false;
                firstTexts.observe(seconds());
              }
              listener(event);
            });
          },
        };
      },
    }),
    observeProvider: (provider) => ({
      ...provider,
      async *call(request, signal) {
        const seconds = stopwatch();
        const labels = { provider: provider.name, model: request.model };
        let isSilent = true;
        let outcome = "left";
        try {
          await using deltas = provider.call(request, signal);
          for (;;) {
            const { done, value } = await deltas.next();
            if (done === true) {
              outcome = "done";
              return value;
            }
            if (isSilent) firstTokens.observe(labels, seconds());
            isSilent = false;
            yield value;
          }
        } catch (error) {
          outcome = error instanceof ModelCallError ? error.kind : "fault";
          throw error;
        } finally {
          calls.observe({ ...labels, outcome }, seconds());
        }
      },
    }),
  };
}

function stopwatch(): () => number {
  const startedAtMs = performance.now();
  return () => (performance.now() - startedAtMs) / 1_000;
}
