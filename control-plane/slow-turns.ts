import type { TenantContext } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import { type TurnStep, readTurnSteps } from "../storage/turn-steps-repository.ts";

export type SlowTurnsOptions = {
  readonly database: Pick<Database, "withTenant">;
  /** `telemetry.slow_turn_seconds`. */
  readonly seconds: number;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** Looks at a minute: a model that hangs for everybody must not fill the log. */
const linesPerMinute = 60;

/** Writes a line for each turn that took longer than it should: its steps and which of them was slow; nothing that anybody said. */
export function createSlowTurns({ database, seconds: limit, log }: SlowTurnsOptions) {
  let minute = 0;
  let lines = 0;
  return {
    async ended(context: TenantContext, turnId: TurnId, seconds: number): Promise<void> {
      if (seconds <= limit) return;
      const now = Math.floor(Date.now() / 60_000);
      lines = now === minute ? lines + 1 : 1;
      minute = now;
      if (lines > linesPerMinute) return;
      try {
        const steps = await database.withTenant(context, async (tx) => await readTurnSteps(tx, turnId), { readOnly: true });
        const endMs = seconds * 1_000;
        const slowest = steps.toSorted((one, other) => durationOf(other, endMs) - durationOf(one, endMs)).at(0);
        log("a turn was slow", {
          tenantId: context.tenantId,
          turnId,
          seconds: Number(seconds.toFixed(3)),
          slowest: slowest?.name,
          steps: steps.map((step) => ({ ...step, ms: durationOf(step, endMs) })),
        });
      } catch (error) {
        log("the steps of a slow turn could not be read", { turnId, error: String(error) });
      }
    },
  };
}

const durationOf = ({ fromMs, toMs }: TurnStep, endMs: number): number => Math.round((toMs ?? Math.max(fromMs, endMs)) - fromMs);
