import type { StoredError } from "../domain/app-error.ts";
import type { ChatMessage } from "../domain/conversation.ts";
import type { SessionId } from "../domain/session-id.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnState } from "../domain/turn.ts";
import type { TenantTx } from "./database.ts";
import { toJsonb } from "./jsonb.ts";

/** The sessions of one tenant as people see them: their list, their messages, their end. */

export type SessionRow = {
  readonly id: SessionId;
  readonly channel: string;
  readonly createdAt: Date;
  readonly updatedAt: Date;
  readonly messages: number;
  /** Microseconds since 1970: with the id, the session's place in the list. */
  readonly updatedAtMicros: bigint;
};

const sessionColumns = `id, channel, created_at AS "createdAt", updated_at AS "updatedAt",
  (SELECT count(*)::int FROM message WHERE session_id = session.id) AS messages,
  (extract(epoch FROM updated_at) * 1000000)::bigint AS "updatedAtMicros"`;

export type SessionListing = {
  readonly limit: number;
  readonly prefix: string;
  /** The place behind which the list goes on. */
  readonly before: { readonly micros: bigint; readonly id: string } | undefined;
};

/** Sessions by their last message, newest first. */
export async function listSessions(tx: TenantTx, { limit, prefix, before }: SessionListing): Promise<readonly SessionRow[]> {
  return await tx.query<SessionRow>(
    `SELECT ${sessionColumns} FROM session
     WHERE starts_with(id, $1)
       AND ($2::bigint IS NULL OR (updated_at, id) < (timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3::text))
     ORDER BY updated_at DESC, id DESC LIMIT $4`,
    [prefix, before === undefined ? null : before.micros.toString(), before?.id ?? "", limit],
  );
}

export async function readSession(tx: TenantTx, sessionId: SessionId): Promise<SessionRow | undefined> {
  const [row] = await tx.query<SessionRow>(`SELECT ${sessionColumns} FROM session WHERE id = $1`, [sessionId]);
  return row;
}

/** Turns of a session that have not ended, oldest first. */
export async function readOpenTurns(tx: TenantTx, sessionId: SessionId): Promise<readonly { turnId: TurnId; state: TurnState }[]> {
  return await tx.query(
    `SELECT id AS "turnId", state FROM turn WHERE session_id = $1 AND state IN ('queued', 'running') ORDER BY created_at, id`,
    [sessionId],
  );
}

export type MessageRow = { readonly seq: bigint; readonly content: ChatMessage; readonly turnId: TurnId | null; readonly at: Date };

/**
 * Messages before a place, newest first: at most `limit`, and as many as fit into `maxBytes`, but one at least.
 * @returns them, and whether there are older ones
 */
export async function readMessages(
  tx: TenantTx,
  sessionId: SessionId,
  { limit, beforeSeq, maxBytes }: { readonly limit: number; readonly beforeSeq: bigint | undefined; readonly maxBytes: number },
): Promise<{ readonly messages: readonly MessageRow[]; readonly hasOlder: boolean }> {
  const rows = await tx.query<MessageRow & { isLast: boolean }>(
    `WITH newest AS (
       SELECT seq, content, turn_id, at FROM message
       WHERE session_id = $1 AND ($2::bigint IS NULL OR seq < $2::bigint) ORDER BY seq DESC LIMIT $3::int + 1
     ), sized AS (
       SELECT *, row_number() OVER (ORDER BY seq DESC) AS place, sum(octet_length(content::text)) OVER (ORDER BY seq DESC) AS bytes,
         seq = min(seq) OVER () AS "isLast"
       FROM newest
     )
     SELECT seq, content, turn_id AS "turnId", at, "isLast" FROM sized
     WHERE place = 1 OR (place <= $3::int AND bytes <= $4::bigint) ORDER BY seq DESC`,
    [sessionId, beforeSeq?.toString() ?? null, limit, maxBytes],
  );
  return { messages: rows, hasOlder: rows.length > 0 && rows.at(-1)?.isLast === false };
}

/** Where a turn's messages begin in its session; undefined when it left none. */
export async function firstMessageOfTurn(tx: TenantTx, sessionId: SessionId, turnId: TurnId): Promise<bigint | undefined> {
  const [row] = await tx.query<{ seq: bigint | null }>("SELECT min(seq) AS seq FROM message WHERE session_id = $1 AND turn_id = $2", [
    sessionId,
    turnId,
  ]);
  return row?.seq ?? undefined;
}

/** Where the messages of an instant and later ones begin; undefined when there are none. */
export async function firstMessageSince(tx: TenantTx, sessionId: SessionId, at: Date): Promise<bigint | undefined> {
  const [row] = await tx.query<{ seq: bigint | null }>("SELECT min(seq) AS seq FROM message WHERE session_id = $1 AND at >= $2", [
    sessionId,
    at,
  ]);
  return row?.seq ?? undefined;
}

/** A turn as `chat.abort` finds it; `lane` is the name of the lane that an open one runs in. */
export async function readTurnState(
  tx: TenantTx,
  turnId: TurnId,
): Promise<{ readonly state: TurnState; readonly lane: string | null } | undefined> {
  const [row] = await tx.query<{ state: TurnState; lane: string | null }>(
    `SELECT turn.state, open.lane FROM turn LEFT JOIN control.open_turn AS open ON open.tenant_id = $2 AND open.turn_id = turn.id
     WHERE turn.id = $1`,
    [turnId, tx.tenantId],
  );
  return row;
}

/** Ends the turns among these that nothing runs yet. @returns their ids */
export async function endQueuedTurns(tx: TenantTx, turnIds: readonly TurnId[], error: StoredError): Promise<readonly TurnId[]> {
  const ended = await tx.query<{ id: TurnId }>(
    `WITH queued AS (SELECT id FROM turn WHERE id = ANY ($1) AND state = 'queued' ORDER BY id FOR UPDATE),
     ended AS (
       UPDATE turn SET state = 'aborted', error = $2, finished_at = now() FROM queued WHERE turn.id = queued.id RETURNING turn.id
     ), closed AS (DELETE FROM control.open_turn USING ended WHERE tenant_id = $3 AND turn_id = ended.id)
     SELECT id FROM ended`,
    [turnIds, toJsonb(error), tx.tenantId],
  );
  return ended.map(({ id }) => id);
}

/**
 * Forgets a session's messages; turns that have not ended will add none. `isDeleted`: the session goes, too.
 * @returns the turns that have not ended; undefined when there is no such session
 */
export async function clearSession(
  tx: TenantTx,
  sessionId: SessionId,
  { isDeleted }: { readonly isDeleted: boolean },
): Promise<readonly TurnId[] | undefined> {
  await lockSession(tx, sessionId);
  // Turns before the session, as a turn that ends locks them: one that is ending now is waited for, and its messages go with the rest.
  const detached = await tx.query<{ id: TurnId }>(
    `WITH open AS (
       SELECT id FROM turn WHERE session_id = $1 AND state IN ('queued', 'running') AND NOT stateless ORDER BY id FOR UPDATE
     )
     UPDATE turn SET detached = true FROM open WHERE turn.id = open.id RETURNING turn.id`,
    [sessionId],
  );
  const found = isDeleted
    ? await tx.execute("DELETE FROM session WHERE id = $1", [sessionId])
    : await tx.execute("UPDATE session SET updated_at = now() WHERE id = $1", [sessionId]);
  if (found === 0) return undefined;
  if (!isDeleted) await tx.execute("DELETE FROM message WHERE session_id = $1", [sessionId]);
  return detached.map(({ id }) => id);
}

/** One at a time: two that lock the same turns and the same session would stop each other. Turns themselves do not wait for it. */
async function lockSession(tx: TenantTx, sessionId: SessionId): Promise<void> {
  await tx.query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [`session/${tx.tenantId}/${sessionId}`]);
}

/** Takes what was said out of a deleted session's ended turns; their rows stay for whoever holds their ids, and answer `error`. */
export async function wipeTurns(tx: TenantTx, sessionId: SessionId, error: StoredError): Promise<void> {
  await lockSession(tx, sessionId);
  await tx.execute(
    `WITH ended AS (
       SELECT id FROM turn
       WHERE session_id = $1 AND state NOT IN ('queued', 'running') AND request IS NOT NULL AND NOT stateless
         AND (detached OR NOT EXISTS (SELECT FROM session WHERE id = $1))
       ORDER BY id FOR UPDATE
     ), wiped AS (
       UPDATE turn SET request = NULL, reply = NULL, error = $2 FROM ended WHERE turn.id = ended.id RETURNING turn.id
     ), calls AS (DELETE FROM model_call USING wiped WHERE turn_id = wiped.id AND model_call.state <> 'started')
     DELETE FROM tool_run USING wiped WHERE turn_id = wiped.id`,
    [sessionId, toJsonb(error)],
  );
}
