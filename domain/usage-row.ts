import type { MarkupPpm, NanoUsd } from "./money.ts";
import type { RateCardHash } from "./rate-card.ts";
import type { SessionId } from "./session-id.ts";
import type { CallId } from "./turn-id.ts";
import type { TurnKind } from "./turn.ts";
import type { CountedUsage } from "./usage.ts";

/** One billing row: one model call (contract §6). */
export type UsageRow = {
  readonly id: CallId;
  readonly providerRequestId: string | undefined;
  /** Of admission. */
  readonly atMs: number;
  readonly sessionId: SessionId;
  readonly model: string;
  readonly usage: CountedUsage;
  /** Tool calls that the model asked for in this call. */
  readonly toolCalls: number;
  readonly costNanoUsd: NanoUsd;
  readonly providerCostNanoUsd: NanoUsd;
  readonly markupPpm: MarkupPpm;
  readonly rateCardHash: RateCardHash;
  readonly reason: TurnKind;
};
