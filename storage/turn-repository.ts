import { AppError, type StoredError, toStoredError } from "../domain/app-error.ts";
import type { ChatMessage, ModelReply } from "../domain/conversation.ts";
import type { MarkupPpm } from "../domain/money.ts";
import type { UtcDay } from "../domain/quota-ledger.ts";
import type { RateCardHash } from "../domain/rate-card.ts";
import type { SessionId } from "../domain/session-id.ts";
import { type CallId, type TurnId, callIdOf } from "../domain/turn-id.ts";
import type {
  FinishedTurn,
  ServiceSubmission,
  TurnKind,
  TurnMode,
  TurnReply,
  TurnRequest,
  TurnState,
  TurnSubmission,
} from "../domain/turn.ts";
import type { CountedUsage } from "../domain/usage.ts";
import type { UsageRow } from "../domain/usage-row.ts";
import type { TenantTx } from "./database.ts";
import { toJsonb, toStorableText } from "./jsonb.ts";

/** The turns of one tenant: their rows, the journal of their model calls and tool runs, and the transcript that they leave. */

export type TurnRow = {
  readonly turnId: TurnId;
  readonly sessionId: SessionId;
  readonly kind: TurnKind;
  readonly mode: TurnMode;
  readonly stateless: boolean;
  readonly state: TurnState;
  readonly request: TurnRequest;
  readonly createdAtMs: number;
};

/** A model call that is over: its reply, or the error that the turn ended with. */
export type JournaledCall = { readonly step: number; readonly model: string; readonly reply: ModelReply; readonly usage: CountedUsage };

export type ToolRun = {
  readonly step: number;
  readonly n: number;
  readonly toolCallId: string;
  readonly name: string;
  readonly content: string;
};

export type IdempotencyClaim = { readonly keyHash: Uint8Array; readonly fingerprint: Uint8Array; readonly expiresAtMs: number };

/** The quota lease that let a turn in. */
export type TurnAdmission = { readonly holder: string; readonly batch: number };

/**
 * Stores a turn before anything runs it, together with its line in the outbox of open turns. A repeat of a turn id stores nothing.
 * @returns whether the turn is new
 */
export async function insertTurn(
  tx: TenantTx,
  submission: TurnSubmission | ServiceSubmission,
  lane: string,
  admission?: TurnAdmission,
): Promise<boolean> {
  const { turnId, sessionId, kind, mode, stateless, request, trace } = submission;
  const inserted = await tx.execute(
    `WITH new_turn AS (
       INSERT INTO turn (id, session_id, kind, state, mode, stateless, request, holder, batch, trace)
       VALUES ($1, $2, $3, 'queued', $4, $5, $6, $10, $11, $12)
       ON CONFLICT (id) DO NOTHING RETURNING id, session_id
     ), new_session AS (
       INSERT INTO session (id, channel) SELECT session_id, $8 FROM new_turn WHERE NOT $5
       ON CONFLICT (id) DO NOTHING
     )
     INSERT INTO control.open_turn (tenant_id, turn_id, lane, kind) SELECT $9, id, $7, $3 FROM new_turn`,
    [
      turnId,
      sessionId,
      kind,
      mode,
      stateless,
      toJsonb(request),
      lane,
      sessionId.slice(0, sessionId.indexOf(":")),
      tx.tenantId,
      admission?.holder ?? null,
      admission?.batch ?? null,
      trace ?? null,
    ],
  );
  return inserted === 1;
}

/**
 * The turn (or whatever else was made) that an Idempotency-Key stands for: this one where the key is new or has expired, else the earlier one.
 * @returns the turn id and whether the earlier request had the same fingerprint
 */
export async function claimIdempotencyKey<Id extends string>(
  tx: TenantTx,
  turnId: Id,
  claim: IdempotencyClaim,
): Promise<{ turnId: Id; matches: boolean }> {
  const [row] = await tx.query<{ turn_id: Id; matches: boolean }>(
    `WITH expired AS (DELETE FROM idempotency_key WHERE expires_at < now() AND key_hash <> $1)
     INSERT INTO idempotency_key AS existing (key_hash, fingerprint, turn_id, expires_at) VALUES ($1, $2, $3, to_timestamp($4::float8 / 1000))
     ON CONFLICT (key_hash) DO UPDATE SET
       fingerprint = CASE WHEN existing.expires_at < now() THEN excluded.fingerprint ELSE existing.fingerprint END,
       turn_id = CASE WHEN existing.expires_at < now() THEN excluded.turn_id ELSE existing.turn_id END,
       expires_at = CASE WHEN existing.expires_at < now() THEN excluded.expires_at ELSE existing.expires_at END
     RETURNING turn_id, fingerprint = $2 AS matches`,
    [claim.keyHash, claim.fingerprint, turnId, claim.expiresAtMs],
  );
  if (row === undefined) throw new Error("an upsert answered no row");
  return { turnId: row.turn_id, matches: row.matches };
}

/** The turn that a key stands for already; undefined for a new or expired one. */
export async function readIdempotencyKey(
  tx: TenantTx,
  { keyHash, fingerprint }: IdempotencyClaim,
): Promise<{ turnId: TurnId; matches: boolean } | undefined> {
  const [row] = await tx.query<{ turnId: TurnId; matches: boolean }>(
    `SELECT turn_id AS "turnId", fingerprint = $2 AS matches FROM idempotency_key WHERE key_hash = $1 AND expires_at >= now()`,
    [keyHash, fingerprint],
  );
  return row;
}

export async function sessionExists(tx: TenantTx, sessionId: SessionId): Promise<boolean> {
  return (await tx.query("SELECT 1 FROM session WHERE id = $1", [sessionId])).length === 1;
}

/** How a turn ended; undefined while it has not, or when there is no such turn. */
export async function readFinishedTurn(tx: TenantTx, turnId: TurnId): Promise<FinishedTurn | undefined> {
  const [row] = await tx.query<{ state: TurnState; reply: TurnReply | null; error: StoredError | null }>(
    "SELECT state, reply, error FROM turn WHERE id = $1",
    [turnId],
  );
  if (row?.state === "done" && row.error !== null) return { state: "failed", error: row.error }; // its session was deleted, and its reply
  if (row?.state === "done" && row.reply !== null) return { state: "done", reply: row.reply };
  if (row?.state === "void") return { state: "failed", error: toStoredError(new AppError("unavailable")) };
  if ((row?.state === "failed" || row?.state === "aborted") && row.error !== null) return { state: row.state, error: row.error };
  return undefined;
}

/** Takes back a turn that has not begun, so that it never runs. @returns false when it has begun or ended */
export async function voidTurn(tx: TenantTx, turnId: TurnId): Promise<boolean> {
  const voided = await tx.query(
    `WITH voided AS (UPDATE turn SET state = 'void', finished_at = now() WHERE id = $1 AND state = 'queued' RETURNING id),
       closed AS (DELETE FROM control.open_turn USING voided WHERE tenant_id = $2 AND turn_id = voided.id),
       forgotten AS (DELETE FROM idempotency_key USING voided WHERE turn_id = voided.id)
     SELECT id FROM voided`,
    [turnId, tx.tenantId],
  );
  return voided.length === 1;
}

/** The turn's row, marked as running unless it has ended: the claim that precedes any effect. */
export async function claimTurn(tx: TenantTx, turnId: TurnId): Promise<TurnRow | undefined> {
  const [row] = await tx.query<Record<string, unknown>>(
    `UPDATE turn SET state = CASE WHEN state = 'queued' THEN 'running' ELSE state END, started_at = coalesce(started_at, now())
     WHERE id = $1
     RETURNING id AS "turnId", session_id AS "sessionId", kind, mode, stateless, state, request,
       (extract(epoch FROM created_at) * 1000)::float8 AS "createdAtMs"`,
    [turnId],
  );
  return row as TurnRow | undefined;
}

/** What a call is billed by: as it was at its first attempt. */
export type CallTerms = { readonly rateCardHash: RateCardHash; readonly markupPpm: MarkupPpm };

/** An opened call; the last five are null until its quota is reserved, and where there is none. */
export type OpenCall = CallTerms & {
  readonly attempt: number;
  readonly startedAtMs: number;
  readonly holder: string | null;
  readonly batch: number | null;
  readonly day: UtcDay | null;
  readonly reservedTokens: bigint | null;
  readonly reservedNanoUsd: bigint | null;
};

/**
 * Journals a model call before the provider is called.
 * @returns the number of this attempt, or the call itself where an earlier attempt brought it to its end
 */
export async function openCall(
  tx: TenantTx,
  { turnId, step, model, terms }: { turnId: TurnId; step: number; model: string; terms: CallTerms },
): Promise<OpenCall | { finished: JournaledCall } | { voided: true }> {
  const [opened] = await tx.query<OpenCall>(
    `INSERT INTO model_call AS existing (id, turn_id, step, state, attempt, model, rate_card_hash, markup_ppm)
     VALUES ($1, $2, $3, 'started', 1, $4, $5, $6)
     ON CONFLICT (id) DO UPDATE SET attempt = existing.attempt + 1,
       rate_card_hash = coalesce(existing.rate_card_hash, excluded.rate_card_hash),
       markup_ppm = coalesce(existing.markup_ppm, excluded.markup_ppm)
     WHERE existing.state = 'started'
     RETURNING attempt, (extract(epoch FROM started_at) * 1000)::float8 AS "startedAtMs", holder, batch, day,
       reserved_tokens AS "reservedTokens", reserved_nano_usd AS "reservedNanoUsd",
       rate_card_hash AS "rateCardHash", markup_ppm::float8 AS "markupPpm"`,
    [callIdOf(turnId, step), turnId, step, model, terms.rateCardHash, terms.markupPpm],
  );
  if (opened !== undefined) return opened;
  const finished = (await readCalls(tx, turnId)).find((call) => call.step === step);
  return finished === undefined ? { voided: true } : { finished };
}

/** Digest of the overlay that the turn was admitted under. */
export async function readTurnOverlay(tx: TenantTx, turnId: TurnId): Promise<string | undefined> {
  const [row] = await tx.query<{ overlay: string | null }>("SELECT request->>'overlay' AS overlay FROM turn WHERE id = $1", [turnId]);
  return row?.overlay ?? undefined;
}

/** The turn's finished model calls, by step. */
export async function readCalls(tx: TenantTx, turnId: TurnId): Promise<readonly JournaledCall[]> {
  return await tx.query<JournaledCall>(
    "SELECT step, model, reply, usage FROM model_call WHERE turn_id = $1 AND state = 'done' AND reply IS NOT NULL ORDER BY step",
    [turnId],
  );
}

/** The turn's finished tool runs, by step and place. */
export async function readToolRuns(tx: TenantTx, turnId: TurnId): Promise<readonly ToolRun[]> {
  return await tx.query<ToolRun>(
    `SELECT step, n, tool_call_id AS "toolCallId", name, result->>'content' AS content FROM tool_run
     WHERE turn_id = $1 AND state IN ('done', 'failed') ORDER BY step, n`,
    [turnId],
  );
}

/** The newest `limit` messages of a session, oldest first. */
export async function readTranscript(tx: TenantTx, sessionId: SessionId, limit: number): Promise<readonly ChatMessage[]> {
  const rows = await tx.query<{ content: ChatMessage }>("SELECT content FROM message WHERE session_id = $1 ORDER BY seq DESC LIMIT $2", [
    sessionId,
    limit,
  ]);
  return rows.map(({ content }) => content).reverse();
}

/** How a model call ended: with a reply, or without one because it failed after the provider had counted tokens. */
export type CallEnd = {
  readonly callId: CallId;
  readonly attempt: number;
  /** The one that answered. */
  readonly model: string;
  readonly reply: ModelReply | undefined;
  readonly usage: CountedUsage;
  readonly providerRequestId: string | undefined;
};

/**
 * Ends the journal row of a call. `recordUsage` belongs into the same transaction, last.
 * @returns false when another attempt has ended the call or has begun since: then nothing may be written
 */
export async function closeCall(tx: TenantTx, { callId, attempt, model, reply, usage, providerRequestId }: CallEnd): Promise<boolean> {
  const closed = await tx.execute(
    `UPDATE model_call SET state = 'done', finished_at = now(), reply = $3, usage = $4, provider_request_id = $5, model = $6
     WHERE id = $1 AND state = 'started' AND attempt = $2`,
    [callId, attempt, reply === undefined ? null : toJsonb(reply), toJsonb(usage), toStorableText(providerRequestId), model],
  );
  return closed === 1;
}

/** Writes the billing row. It locks the tenant's daily sum until the transaction ends, so it comes last. */
export async function recordUsage(tx: TenantTx, row: UsageRow): Promise<void> {
  const { usage } = row;
  await tx.execute(
    `INSERT INTO control.usage_ledger (id, provider_request_id, "timestamp", tenant_id, session_id, model, input_tokens, cache_read_tokens,
       cache_write_tokens, output_tokens, reasoning_tokens, tool_calls, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash,
       estimated, reason, doubt)
     VALUES ($1, $2, to_timestamp($3::float8 / 1000), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
    [
      row.id,
      toStorableText(row.providerRequestId),
      Math.trunc(row.atMs),
      tx.tenantId,
      row.sessionId,
      row.model,
      usage.inputTokens,
      usage.cacheReadTokens,
      usage.cacheWriteTokens,
      usage.outputTokens,
      usage.reasoningTokens,
      row.toolCalls,
      row.costNanoUsd.toString(),
      row.providerCostNanoUsd.toString(),
      row.markupPpm,
      row.rateCardHash,
      usage.estimated,
      row.reason,
      usage.doubt ?? null,
    ],
  );
}

/** Ends a journal row for which the provider counted nothing. @returns false when another attempt has begun or ended the call */
export async function voidCall(tx: TenantTx, callId: CallId, attempt: number): Promise<boolean> {
  const voided = await tx.execute(
    "UPDATE model_call SET state = 'void', finished_at = now() WHERE id = $1 AND state = 'started' AND attempt = $2",
    [callId, attempt],
  );
  return voided === 1;
}

/** Ends a turn, once: its row, its line in the outbox and, in a session, the messages it adds to the transcript. */
export async function finishTurn(
  tx: TenantTx,
  turn: Pick<TurnRow, "turnId" | "sessionId">,
  finished: FinishedTurn,
  transcript: readonly ChatMessage[],
): Promise<boolean> {
  const [ended] = await tx.query<{ detached: boolean }>(
    `WITH ended AS (
       UPDATE turn SET state = $2, reply = $3, error = $4, finished_at = now() WHERE id = $1 AND state IN ('queued', 'running')
       RETURNING id, detached
     ), closed AS (DELETE FROM control.open_turn USING ended WHERE tenant_id = $5 AND turn_id = ended.id)
     SELECT detached FROM ended`,
    [
      turn.turnId,
      finished.state,
      finished.state === "done" ? toJsonb(finished.reply) : null,
      finished.state === "done" ? null : toJsonb(finished.error),
      tx.tenantId,
    ],
  );
  if (ended === undefined) return false;
  if (transcript.length > 0 && !ended.detached) await appendMessages(tx, turn, transcript);
  return true;
}

async function appendMessages(tx: TenantTx, turn: Pick<TurnRow, "turnId" | "sessionId">, messages: readonly ChatMessage[]): Promise<void> {
  await tx.execute(
    `WITH room AS (
       UPDATE session SET next_seq = next_seq + $3, updated_at = now() WHERE id = $1 RETURNING next_seq - $3 AS first_seq
     )
     INSERT INTO message (session_id, seq, role, content, turn_id)
     SELECT $1, first_seq + place - 1, content->>'role', content, $2
     FROM room, jsonb_array_elements($4::jsonb) WITH ORDINALITY AS added (content, place)`,
    [turn.sessionId, turn.turnId, messages.length, toJsonb(messages)],
  );
}

/** Marks journal rows that no attempt will bring to an end any more. */
export async function voidOpenCalls(tx: TenantTx, turnId: TurnId): Promise<void> {
  await tx.execute("UPDATE model_call SET state = 'void', finished_at = now() WHERE turn_id = $1 AND state = 'started'", [turnId]);
}

export type ToolRunKey = { readonly turnId: TurnId; readonly step: number; readonly n: number };

/** Journals a tool run before it begins. @returns its state before, and which attempt this is */
export async function openToolRun(
  tx: TenantTx,
  { turnId, step, n }: ToolRunKey,
  call: { readonly id: string; readonly name: string; readonly arguments: string },
): Promise<{ state: "started" | "done" | "failed"; attempt: number }> {
  const [row] = await tx.query<{ state: "started" | "done" | "failed"; attempt: number }>(
    `INSERT INTO tool_run AS existing (id, turn_id, step, n, tool_call_id, name, arguments, state, attempt)
     VALUES ($1, $2, $3, $4, $5, $6, $7, 'started', 1)
     ON CONFLICT (id) DO UPDATE SET attempt = existing.attempt + (existing.state = 'started')::int
     RETURNING state, attempt`,
    [`${callIdOf(turnId, step)}.${n}`, turnId, step, n, call.id, call.name, call.arguments],
  );
  if (row === undefined) throw new Error("an upsert answered no row");
  return row;
}

export async function settleToolRun(
  tx: TenantTx,
  { turnId, step, n }: ToolRunKey,
  outcome: { readonly failed: boolean; readonly content: string; readonly facts: Readonly<Record<string, unknown>> },
): Promise<void> {
  await tx.execute("UPDATE tool_run SET state = $2, result = $3, finished_at = now() WHERE id = $1 AND state = 'started'", [
    `${callIdOf(turnId, step)}.${n}`,
    outcome.failed ? "failed" : "done",
    toJsonb({ content: outcome.content, facts: outcome.facts }),
  ]);
}
