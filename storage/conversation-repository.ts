import type { StoredError } from "../domain/app-error.ts";
import type { ConversationId } from "../domain/conversation-id.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnReply, TurnState } from "../domain/turn.ts";
import type { TenantTx } from "./database.ts";
import { toJsonb } from "./jsonb.ts";
import { eraseResponses } from "./response-repository.ts";

/** Conversations of the Responses API: an order of items that were put in and of responses, which bring their input and output. */

export type ConversationRow = {
  readonly metadata: Readonly<Record<string, string>>;
  readonly version: bigint;
  /** A response of it is being made. While that is so nothing is added, hence only the last entry can be one. */
  readonly isLocked: boolean;
};

/** One place of a conversation; what a turn that is not done has left there is nothing. */
export type EntryRow = { readonly place: bigint } & (
  | { readonly item: { readonly id: string } & Readonly<Record<string, unknown>>; readonly turnId: null }
  | {
      readonly item: null;
      readonly turnId: TurnId;
      readonly input: readonly unknown[];
      readonly state: TurnState;
      readonly reply: TurnReply | null;
      readonly removed: readonly string[];
    }
);

export async function insertConversation(tx: TenantTx, id: ConversationId, metadata: ConversationRow["metadata"]): Promise<void> {
  await tx.execute("INSERT INTO conversation (id, metadata) VALUES ($1, $2)", [id, toJsonb(metadata)]);
}

/** @param forChange holds the row until the transaction ends */
export async function readConversation(
  tx: TenantTx,
  id: ConversationId,
  { forChange = false }: { readonly forChange?: boolean } = {},
): Promise<ConversationRow | undefined> {
  if (forChange) await tx.query("SELECT FROM conversation WHERE id = $1 FOR UPDATE", [id]);
  const [row] = await tx.query<ConversationRow>(
    `SELECT metadata, version, coalesce(last.state IN ('queued', 'running'), false) AS "isLocked"
     FROM conversation LEFT JOIN LATERAL (
       SELECT (SELECT state FROM response JOIN turn ON turn.id = turn_id WHERE response.id = response_id) AS state
       FROM conversation_entry WHERE conversation_id = conversation.id ORDER BY place DESC LIMIT 1
     ) AS last ON true
     WHERE id = $1`,
    [id],
  );
  return row;
}

export async function updateMetadata(tx: TenantTx, id: ConversationId, metadata: ConversationRow["metadata"]): Promise<boolean> {
  return (await tx.execute("UPDATE conversation SET metadata = $2 WHERE id = $1", [id, toJsonb(metadata)])) === 1;
}

/** Of what was put in and asked, without the answers. */
export async function readSizeBytes(tx: TenantTx, id: ConversationId): Promise<number> {
  const [row] = await tx.query<{ size: number }>(
    "SELECT coalesce(sum(size_bytes), 0)::float8 AS size FROM conversation_entry WHERE conversation_id = $1",
    [id],
  );
  return row?.size ?? 0;
}

/** Puts items at the end. The caller holds the row, or has just made it. */
export async function addItems(tx: TenantTx, id: ConversationId, items: readonly { readonly id: string }[]): Promise<void> {
  const rows = items.map((item) => ({ item, size: Buffer.byteLength(JSON.stringify(item)) }));
  await tx.execute(
    `WITH room AS (UPDATE conversation SET version = version + $2 WHERE id = $1 RETURNING version - $2 AS first)
     INSERT INTO conversation_entry (conversation_id, place, item_id, item, size_bytes)
     SELECT $1, first + n - 1, row->'item'->>'id', row->'item', (row->>'size')::int
     FROM room, jsonb_array_elements($3::jsonb) WITH ORDINALITY AS added (row, n)`,
    [id, items.length, toJsonb(rows)],
  );
}

/**
 * Puts a response at the end of the version that it was asked from.
 * @returns false when the conversation has changed since, or gone
 */
export async function addResponse(
  tx: TenantTx,
  { id, version, responseId, sizeBytes }: { id: ConversationId; version: bigint; responseId: string; sizeBytes: number },
): Promise<boolean> {
  const added = await tx.execute(
    `WITH room AS (UPDATE conversation SET version = version + 1 WHERE id = $1 AND version = $2 RETURNING version - 1 AS place)
     INSERT INTO conversation_entry (conversation_id, place, response_id, size_bytes) SELECT $1, place, $3, $4 FROM room`,
    [id, version.toString(), responseId, sizeBytes],
  );
  return added === 1;
}

export type EntryOrder = "asc" | "desc";

/** The next entries from a place on, that place included. */
export async function readEntries(
  tx: TenantTx,
  id: ConversationId,
  { order, from, limit }: { readonly order: EntryOrder; readonly from: bigint | undefined; readonly limit: number },
): Promise<readonly EntryRow[]> {
  const [comparison, direction] = order === "asc" ? [">=", "ASC"] : ["<=", "DESC"];
  return await tx.query<EntryRow>(
    `SELECT place, item, turn.id AS "turnId", input, state, reply, removed
     FROM conversation_entry LEFT JOIN response ON response.id = response_id LEFT JOIN turn ON turn.id = turn_id
     WHERE conversation_id = $1 AND ($2::bigint IS NULL OR place ${comparison} $2)
     ORDER BY place ${direction} LIMIT $3`,
    [id, from?.toString() ?? null, limit],
  );
}

/** Where an item stands, by its own id or by that of the response that may hold it. */
export async function findPlace(
  tx: TenantTx,
  id: ConversationId,
  { itemId, responseId }: { readonly itemId: string; readonly responseId: string | undefined },
): Promise<bigint | undefined> {
  const [row] = await tx.query<{ place: bigint }>(
    "SELECT place FROM conversation_entry WHERE conversation_id = $1 AND (item_id = $2 OR response_id = $3)",
    [id, itemId, responseId ?? null],
  );
  return row?.place;
}

/** Takes an item out of the entry at a place: the entry itself, or one of its response's items. The caller holds the row. */
export async function removeItem(tx: TenantTx, id: ConversationId, place: bigint, itemId: string): Promise<void> {
  await tx.execute(
    `WITH changed AS (UPDATE conversation SET version = version + 1 WHERE id = $1),
       put_in AS (DELETE FROM conversation_entry WHERE conversation_id = $1 AND place = $2 AND item_id IS NOT NULL)
     UPDATE conversation_entry SET removed = array_append(removed, $3)
     WHERE conversation_id = $1 AND place = $2 AND response_id IS NOT NULL`,
    [id, place.toString(), itemId],
  );
}

/** An item that was put into a conversation, whichever it is. */
export async function readPutItem(tx: TenantTx, itemId: string): Promise<unknown> {
  const [row] = await tx.query<{ item: unknown }>("SELECT item FROM conversation_entry WHERE item_id = $1", [itemId]);
  return row?.item;
}

/** Deletes a conversation in which nothing runs, and those of its responses that nobody else can ask for. The caller holds the row. */
export async function deleteConversation(tx: TenantTx, id: ConversationId, error: StoredError): Promise<void> {
  const hidden = await tx.query<{ id: string }>(
    "SELECT response.id FROM conversation_entry JOIN response ON response.id = response_id WHERE conversation_id = $1 AND NOT kept",
    [id],
  );
  await tx.execute("DELETE FROM conversation WHERE id = $1", [id]);
  await eraseResponses(
    tx,
    hidden.map((response) => response.id),
    error,
  );
}
