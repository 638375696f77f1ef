import { setTimeout as delay } from "node:timers/promises";
import { AppError, toStoredError } from "../domain/app-error.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { readPutItem } from "../storage/conversation-repository.ts";
import { type ResponseRow, deleteResponse, readChain, readResponse } from "../storage/response-repository.ts";
import type { ResponseRequest } from "./responses-request.ts";
import {
  type StoredItem,
  isResponseId,
  itemNotFound,
  itemsOf,
  outputOf,
  responseOfItem,
  toInputItem,
  toStored,
} from "./responses-items.ts";
import type { SessionService } from "./session-service.ts";

/** The items of a request, references resolved. */
export type ResolvedItems = readonly Exclude<ResponseRequest["input"][number], { type: "item_reference" }>[];

/** Kept responses. Every `not_found` is also for another tenant's. */
export interface ResponseService {
  /** @throws {AppError} `not_found` */
  get(context: TenantContext, id: string): Promise<ResponseRow>;
  /** What was said up to and with this response, without its instructions. @throws {AppError} `not_found`, `invalid_request` */
  chainOf(context: TenantContext, previousId: string): Promise<readonly StoredItem[]>;
  /** @throws {AppError} `not_found` for a reference to an item of no kept response, and that was put into no conversation */
  resolve(context: TenantContext, input: ResponseRequest["input"]): Promise<ResolvedItems>;
  /** Ends a background response; one that has ended stays as it is. @throws {AppError} `not_found`, `invalid_request` */
  cancel(context: TenantContext, id: string): Promise<ResponseRow>;
  /** A response that runs is ended first. @throws {AppError} `not_found`, `conflict` */
  delete(context: TenantContext, id: string): Promise<void>;
}

export type ResponseServiceDeps = { readonly database: Database; readonly sessions: Pick<SessionService, "abort"> };

const chainLimit = 1_000;
/** As much as one request may bring (contract §3). */
export const longestConversation = 16 * 1024 * 1024;
/** How long an aborted turn is waited for. */
const abortWaitMs = 10_000;
const abortPollMs = 100;

const deleted = toStoredError(new AppError("not_found", { client: { message: "This response was deleted." } }));
const notFound = (id: string, param: string): AppError =>
  new AppError("not_found", { client: { message: `Response with id '${id.slice(0, 128)}' not found.`, param } });
const isOpen = ({ state }: ResponseRow): boolean => state === "queued" || state === "running";

export function createResponseService({ database, sessions }: ResponseServiceDeps): ResponseService {
  const find = async (context: TenantContext, id: string): Promise<ResponseRow | undefined> =>
    isResponseId(id) ? await database.withTenant(context, async (tx) => await readResponse(tx, id), { readOnly: true }) : undefined;

  async function get(context: TenantContext, id: string): Promise<ResponseRow> {
    const row = await find(context, id);
    if (row === undefined) throw notFound(id, "response_id");
    return row;
  }

  /** @returns the row as it is when its turn has ended or the wait is over */
  async function abort(context: TenantContext, row: ResponseRow): Promise<ResponseRow> {
    if (!isOpen(row)) return row;
    await sessions.abort(context, row.turnId);
    const deadlineMs = performance.now() + abortWaitMs;
    for (;;) {
      const now = await get(context, row.id);
      if (!isOpen(now) || performance.now() > deadlineMs) return now;
      await delay(abortPollMs);
    }
  }

  return {
    get,
    async chainOf(context, previousId) {
      const read = async (): Promise<readonly ResponseRow[]> =>
        await database.withTenant(context, async (tx) => await readChain(tx, previousId, chainLimit), { readOnly: true });
      const chain = isResponseId(previousId) ? await read() : [];
      const refuse = (code: "not_found" | "invalid_request", message: string): AppError =>
        new AppError(code, { client: { message, param: "previous_response_id" } });
      const [oldest] = chain;
      if (oldest === undefined || chain.at(-1)?.id !== previousId)
        throw refuse("not_found", `Previous response with id '${previousId.slice(0, 128)}' not found.`);
      if (oldest.previousId !== null)
        throw chain.length === chainLimit
          ? refuse("invalid_request", `A conversation has ${chainLimit} responses at most.`)
          : refuse("not_found", `The response '${oldest.previousId}' that this conversation goes back to was deleted.`);
      const items = chain.flatMap(({ id, turnId, input, state, reply }) => {
        if (state !== "done" || reply === null) throw refuse("invalid_request", `The response '${id}' has no answer to go on from.`);
        return toStored(itemsOf({ turnId, input, reply }));
      });
      if (JSON.stringify(items).length > longestConversation)
        throw refuse("invalid_request", "The conversation is too long: begin a new one or delete some of it.");
      return items;
    },
    async resolve(context, input) {
      const rows = new Map<string, ResponseRow | undefined>();
      const resolved: ResolvedItems[number][] = [];
      for (const item of input) {
        if (item.type !== "item_reference") {
          resolved.push(item);
          continue;
        }
        const responseId = responseOfItem(item.id);
        if (responseId === undefined) throw itemNotFound(item.id);
        if (!rows.has(responseId)) rows.set(responseId, await find(context, responseId));
        const row = rows.get(responseId);
        const items =
          row === undefined
            ? []
            : [...(row.input as readonly StoredItem[]), ...(row.reply === null ? [] : outputOf(row.turnId, row.reply))];
        const meant =
          items.find(({ id }) => id === item.id) ??
          (await database.withTenant(context, async (tx) => await readPutItem(tx, item.id), { readOnly: true }));
        if (meant === undefined) throw itemNotFound(item.id);
        resolved.push(toInputItem(meant) as ResolvedItems[number]);
      }
      return resolved;
    },
    async cancel(context, id) {
      const row = await get(context, id);
      if (row.head["background"] !== true)
        throw new AppError("invalid_request", { client: { message: "Cannot cancel a synchronous response.", param: "response_id" } });
      return await abort(context, row);
    },
    async delete(context, id) {
      await abort(context, await get(context, id));
      if (await database.withTenant(context, async (tx) => await deleteResponse(tx, id, deleted))) return;
      await get(context, id); // twice at once: the other one did it
      throw new AppError("conflict", { client: { message: "The response is still being made. Try again.", param: "response_id" } });
    },
  };
}
