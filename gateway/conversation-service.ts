import { randomBytes } from "node:crypto";
import { AppError, toStoredError } from "../domain/app-error.ts";
import { type ConversationId, asConversationId, mintConversationId } from "../domain/conversation-id.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { encodeUlid, ulidBytes, ulidTimeMs } from "../domain/ulid.ts";
import {
  type ConversationRow,
  addItems,
  addResponse,
  deleteConversation,
  findPlace,
  insertConversation,
  readConversation,
  readEntries,
  readSizeBytes,
  removeItem,
  updateMetadata,
} from "../storage/conversation-repository.ts";
import type { Database, TenantTx } from "../storage/database.ts";
import { claimIdempotencyKey } from "../storage/turn-repository.ts";
import { heldBy, readAll, tooLong, walk } from "./conversation-items.ts";
import { type Idempotency, claimOf } from "./idempotency-key.ts";
import { type ItemsQuery, noSuchItem, toPage } from "./item-pages.ts";
import { type ShownItem, type StoredItem, nameItems, responseOfItem } from "./responses-items.ts";
import { type ResolvedItems, longestConversation } from "./responses-service.ts";

type Metadata = ConversationRow["metadata"];
export type Conversation = ReturnType<typeof toConversation>;

/** What a response of a conversation goes on from. */
export type ConversationTail = {
  /** Undefined while another response of it is being made. */
  readonly items: readonly StoredItem[] | undefined;
  /** Adds the response to what was read, in the transaction that stores its turn. @throws {AppError} `conversation_locked`, `not_found` */
  join(tx: TenantTx, response: { readonly responseId: string; readonly input: readonly StoredItem[] }): Promise<void>;
};

/**
 * Conversations of the Responses API. Every `not_found` is also for another tenant's. While a response of a conversation is being
 * made, in whichever process, nothing else changes what it holds: `conversation_locked`.
 */
export interface ConversationService {
  create(context: TenantContext, given: { metadata: Metadata; items: ResolvedItems }, key?: Idempotency): Promise<Conversation>;
  /** @throws {AppError} `not_found` */
  get(context: TenantContext, id: string): Promise<Conversation>;
  /** @throws {AppError} `not_found` */
  update(context: TenantContext, id: string, metadata: Metadata, key?: Idempotency): Promise<Conversation>;
  /** Responses that are kept stay readable. @throws {AppError} `not_found`, `conversation_locked` */
  delete(context: TenantContext, id: string): Promise<void>;
  /** @returns the items under their ids @throws {AppError} `not_found`, `conversation_locked`, `invalid_request` where it grows too long */
  add(context: TenantContext, id: string, items: ResolvedItems, key?: Idempotency): Promise<readonly ShownItem[]>;
  /** @throws {AppError} `not_found` */
  list(context: TenantContext, id: string, query: ItemsQuery): Promise<ReturnType<typeof toPage>>;
  /** @throws {AppError} `not_found` */
  item(context: TenantContext, id: string, itemId: string): Promise<ShownItem>;
  /** @throws {AppError} `not_found`, `conversation_locked` */
  remove(context: TenantContext, id: string, itemId: string): Promise<Conversation>;
  /** @throws {AppError} `not_found`, `invalid_request` for one that is too long */
  tailOf(context: TenantContext, id: string): Promise<ConversationTail>;
}

const deleted = toStoredError(new AppError("not_found", { client: { message: "The conversation of this response was deleted." } }));
const locked = (): AppError => new AppError("conversation_locked", { client: { param: "conversation" } });
const notFound = (id: string): AppError =>
  new AppError("not_found", { client: { message: `Conversation with id '${id.slice(0, 128)}' not found.`, param: "conversation" } });
const mintUlid = (): string => encodeUlid(ulidBytes(Date.now(), randomBytes(10)));
const ulidOfId = (id: string): string => id.slice(id.indexOf("_") + 1);

const toConversation = (id: ConversationId, metadata: Metadata) => ({
  id,
  object: "conversation" as const,
  created_at: Math.floor(ulidTimeMs(ulidOfId(id)) / 1_000),
  metadata,
});

export function createConversationService({ database }: { readonly database: Pick<Database, "withTenant"> }): ConversationService {
  const requireId = (id: string): ConversationId => {
    const known = asConversationId(id);
    if (known === undefined) throw notFound(id);
    return known;
  };
  const requireRow = async (tx: TenantTx, id: ConversationId, options?: { readonly forChange: boolean }): Promise<ConversationRow> => {
    const row = await readConversation(tx, id, options);
    if (row === undefined) throw notFound(id);
    return row;
  };
  const requireUnlocked = async (tx: TenantTx, id: ConversationId): Promise<ConversationRow> => {
    const row = await requireRow(tx, id, { forChange: true });
    if (row.isLocked) throw locked();
    return row;
  };

  const requireRoom = async (tx: TenantTx, id: ConversationId, items: readonly StoredItem[]): Promise<void> => {
    if ((await readSizeBytes(tx, id)) + Buffer.byteLength(JSON.stringify(items)) > longestConversation) throw tooLong();
  };
  /** @throws {AppError} `not_found` where it is none of the conversation's */
  const requireItem = async (tx: TenantTx, id: ConversationId, itemId: string): Promise<{ place: bigint; item: ShownItem }> => {
    const place = await findPlace(tx, id, { itemId, responseId: responseOfItem(itemId) });
    const [entry] = place === undefined ? [] : await readEntries(tx, id, { order: "asc", from: place, limit: 1 });
    const held = entry === undefined ? undefined : heldBy(entry).find(({ item, isRemoved }) => item.id === itemId && !isRemoved);
    if (place === undefined || held === undefined) throw noSuchItem("item_id");
    return { place, item: held.item };
  };

  return {
    async create(context, { metadata, items }, key) {
      const fresh = mintConversationId(Date.now(), randomBytes(10));
      const id = await database.withTenant(
        context,
        async (tx) =>
          await once(tx, fresh, key, async () => {
            const named = nameItems(ulidOfId(fresh), items);
            await insertConversation(tx, fresh, metadata);
            await addItems(tx, fresh, named);
          }),
      );
      return toConversation(id, metadata);
    },
    async get(context, id) {
      const known = requireId(id);
      const { metadata } = await database.withTenant(context, async (tx) => await requireRow(tx, known), { readOnly: true });
      return toConversation(known, metadata);
    },
    async update(context, id, metadata, key) {
      const known = requireId(id);
      await database.withTenant(context, async (tx) => {
        await once(tx, `update_${mintUlid()}`, key, async () => {
          if (!(await updateMetadata(tx, known, metadata))) throw notFound(id);
        });
      });
      return toConversation(known, metadata);
    },
    async delete(context, id) {
      const known = requireId(id);
      await database.withTenant(context, async (tx) => {
        await requireUnlocked(tx, known);
        await deleteConversation(tx, known, deleted);
      });
    },
    async add(context, id, items, key) {
      const known = requireId(id);
      const fresh = `items_${mintUlid()}`;
      const made = await database.withTenant(
        context,
        async (tx) =>
          await once(tx, fresh, key, async () => {
            const named = nameItems(ulidOfId(fresh), items);
            await requireUnlocked(tx, known);
            await requireRoom(tx, known, named);
            await addItems(tx, known, named);
          }),
      );
      return nameItems(ulidOfId(made), items);
    },
    async list(context, id, { limit, order, after }) {
      const known = requireId(id);
      return await database.withTenant(
        context,
        async (tx) => {
          await requireRow(tx, known);
          const from = after === undefined ? undefined : await findPlace(tx, known, { itemId: after, responseId: responseOfItem(after) });
          if (after !== undefined && from === undefined) throw noSuchItem("after");
          const data: ShownItem[] = [];
          let isBehind = after === undefined;
          for await (const { item, isRemoved } of walk(tx, known, order, from)) {
            if (isBehind && !isRemoved && data.length === limit) return toPage(data, true);
            if (isBehind && !isRemoved) data.push(item);
            if (item.id === after) isBehind = true;
          }
          if (!isBehind) throw noSuchItem("after");
          return toPage(data, false);
        },
        { readOnly: true },
      );
    },
    async item(context, id, itemId) {
      const known = requireId(id);
      return await database.withTenant(
        context,
        async (tx) => {
          await requireRow(tx, known);
          return (await requireItem(tx, known, itemId)).item;
        },
        { readOnly: true },
      );
    },
    async remove(context, id, itemId) {
      const known = requireId(id);
      return await database.withTenant(context, async (tx) => {
        const { metadata } = await requireUnlocked(tx, known);
        const { place } = await requireItem(tx, known, itemId);
        await removeItem(tx, known, place, itemId);
        return toConversation(known, metadata);
      });
    },
    async tailOf(context, id) {
      const known = requireId(id);
      return await database.withTenant(
        context,
        async (tx) => {
          const { version, isLocked } = await requireRow(tx, known);
          return { items: isLocked ? undefined : await readAll(tx, known), join: joinAt(known, isLocked ? undefined : version) };
        },
        { readOnly: true },
      );
    },
  };

  /** Whoever saw a version without an open response finds none as long as that version stands: adding one ends it. */
  function joinAt(id: ConversationId, version: bigint | undefined): ConversationTail["join"] {
    return async (tx, { responseId, input }) => {
      const sizeBytes = Buffer.byteLength(JSON.stringify(input));
      if (version !== undefined && (await addResponse(tx, { id, version, responseId, sizeBytes }))) return;
      await requireRow(tx, id);
      throw locked();
    };
  }
}

/**
 * Does something once under an Idempotency-Key.
 * @param id of what is made
 * @returns the same, or that of an earlier call with this key @throws {AppError} `idempotency_mismatch`
 */
async function once<Id extends string>(tx: TenantTx, id: Id, key: Idempotency | undefined, make: () => Promise<void>): Promise<Id> {
  if (key !== undefined) {
    const claimed = await claimIdempotencyKey(tx, id, claimOf(key));
    if (!claimed.matches) throw new AppError("idempotency_mismatch");
    if (claimed.turnId !== id) return claimed.turnId;
  }
  await make();
  return id;
}
