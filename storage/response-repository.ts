import type { StoredError } from "../domain/app-error.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnReply, TurnState } from "../domain/turn.ts";
import type { TenantTx } from "./database.ts";
import { toJsonb } from "./jsonb.ts";

/** Responses that a tenant keeps: what their turns' rows do not say. */

export type ResponseRow = {
  readonly id: string;
  readonly turnId: TurnId;
  readonly previousId: string | null;
  readonly head: Readonly<Record<string, unknown>>;
  readonly input: readonly unknown[];
  readonly state: TurnState;
  readonly reply: TurnReply | null;
  readonly error: StoredError | null;
  readonly finishedAtMs: number | null;
};

/** `isKept` is false for one that nobody may ask for, but whose items a conversation gets. */
export async function insertResponse(
  tx: TenantTx,
  {
    id,
    turnId,
    previousId,
    head,
    input,
    isKept,
  }: Pick<ResponseRow, "id" | "turnId" | "previousId" | "head" | "input"> & { readonly isKept: boolean },
): Promise<void> {
  await tx.execute(
    "INSERT INTO response (id, turn_id, previous_id, head, input, kept) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
    [id, turnId, previousId, toJsonb(head), toJsonb(input), isKept],
  );
}

const columns = `response.id, turn.id AS "turnId", previous_id AS "previousId", head, input, state, reply, error,
  (extract(epoch FROM finished_at) * 1000)::float8 AS "finishedAtMs"`;

/** A response whose turn was taken back before it began is none. */
export async function readResponse(tx: TenantTx, id: string): Promise<ResponseRow | undefined> {
  const [row] = await tx.query<ResponseRow>(
    `SELECT ${columns} FROM response JOIN turn ON turn.id = turn_id WHERE response.id = $1 AND kept AND state <> 'void'`,
    [id],
  );
  return row;
}

/** A response and those before it, oldest first, `limit` at most. What is left of a chain whose older part was deleted. */
export async function readChain(tx: TenantTx, id: string, limit: number): Promise<readonly ResponseRow[]> {
  return await tx.query<ResponseRow>(
    `WITH RECURSIVE link AS (
       SELECT id, previous_id AS before, 1 AS depth FROM response WHERE id = $1 AND kept
       UNION ALL
       SELECT response.id, previous_id, depth + 1 FROM link JOIN response ON response.id = before AND kept WHERE depth < $2
     )
     SELECT ${columns} FROM link JOIN response USING (id) JOIN turn ON turn.id = turn_id AND state <> 'void' ORDER BY depth DESC`,
    [id, limit],
  );
}

/**
 * Deletes a response whose turn has ended, and what its turn says; a turn of a session keeps what belongs to the session, and one of a
 * conversation all of it until the conversation goes.
 * @returns false while the turn runs
 */
export async function deleteResponse(tx: TenantTx, id: string, error: StoredError): Promise<boolean> {
  const [conversation] = await tx.query(
    "SELECT id FROM conversation WHERE id = (SELECT conversation_id FROM conversation_entry WHERE response_id = $1) FOR SHARE", // it may be going
    [id],
  );
  if (conversation === undefined) return (await eraseResponses(tx, [id], error)) === 1;
  const hidden = await tx.execute(
    `UPDATE response SET kept = false FROM turn
     WHERE response.id = $1 AND kept AND turn.id = turn_id AND state NOT IN ('queued', 'running')`,
    [id],
  );
  return hidden === 1;
}

/** @returns how many there were whose turn has ended */
export async function eraseResponses(tx: TenantTx, ids: readonly string[], error: StoredError): Promise<number> {
  const erased = await tx.query(
    `WITH gone AS (
       DELETE FROM response USING turn WHERE response.id = ANY ($1) AND turn.id = turn_id AND state NOT IN ('queued', 'running')
       RETURNING turn.id, stateless
     ), wiped AS (
       UPDATE turn SET request = NULL, reply = NULL, error = $2 FROM gone WHERE turn.id = gone.id AND gone.stateless RETURNING turn.id
     ), calls AS (DELETE FROM model_call USING wiped WHERE turn_id = wiped.id AND model_call.state <> 'started'),
       runs AS (DELETE FROM tool_run USING wiped WHERE turn_id = wiped.id)
     SELECT id FROM gone`,
    [ids, toJsonb(error)],
  );
  return erased.length;
}
