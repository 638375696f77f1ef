import { AppError } from "../domain/app-error.ts";
import type { ConversationId } from "../domain/conversation-id.ts";
import { type EntryOrder, type EntryRow, readEntries } from "../storage/conversation-repository.ts";
import type { TenantTx } from "../storage/database.ts";
import { type ShownItem, type StoredItem, itemsOf, toStored } from "./responses-items.ts";
import { longestConversation } from "./responses-service.ts";

/** What a conversation holds: items that were put in, and those of its responses that are done. */

const entriesAtOnce = 50;

export const tooLong = (): AppError =>
  new AppError("invalid_request", {
    client: { message: "The conversation is too long: begin a new one or delete some of it.", param: "conversation" },
  });

type Held = { readonly item: ShownItem; readonly isRemoved: boolean };

/** The items of an entry in their order. */
export function heldBy(entry: EntryRow): readonly Held[] {
  if (entry.item !== null) return [{ item: entry.item as StoredItem, isRemoved: false }];
  const { turnId, input, state, reply, removed } = entry;
  if (state !== "done" || reply === null) return [];
  return itemsOf({ turnId, input, reply }).map((item) => ({ item, isRemoved: removed.includes(item.id) }));
}

/** The items from a place on, that place included. */
export async function* walk(tx: TenantTx, id: ConversationId, order: EntryOrder, from?: bigint): AsyncGenerator<Held, void, undefined> {
  for (let next = from; ;) {
    const entries = await readEntries(tx, id, { order, from: next, limit: entriesAtOnce });
    for (const entry of entries) yield* order === "asc" ? heldBy(entry) : heldBy(entry).toReversed();
    const last = entries.at(-1);
    if (last === undefined || entries.length < entriesAtOnce) return;
    next = last.place + (order === "asc" ? 1n : -1n);
  }
}

/** Everything that a response goes on from. @throws {AppError} `invalid_request` where that is more than a request may bring */
export async function readAll(tx: TenantTx, id: ConversationId): Promise<readonly StoredItem[]> {
  const items: ShownItem[] = [];
  let characters = 0;
  for await (const { item, isRemoved } of walk(tx, id, "asc")) {
    if (isRemoved) continue;
    characters += JSON.stringify(item).length;
    if (characters > longestConversation) throw tooLong();
    items.push(item);
  }
  return toStored(items);
}
