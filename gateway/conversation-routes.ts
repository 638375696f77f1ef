import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { TenantContext } from "../domain/tenant.ts";
import { tenantOf } from "./access.ts";
import type { ConversationService } from "./conversation-service.ts";
import { type Idempotency, idempotencyKeyOf } from "./idempotency-key.ts";
import { includes, itemsQuery, toPage } from "./item-pages.ts";
import { parseField } from "./parse-field.ts";
import { knownFields, metadata, metadataPairs } from "./request-fields.ts";
import { inputItem } from "./responses-items.ts";
import { toItems } from "./responses-request.ts";
import type { ResolvedItems, ResponseService } from "./responses-service.ts";

export type ConversationDeps = {
  readonly conversations: ConversationService;
  readonly responses: Pick<ResponseService, "resolve">;
};

/** OpenAI's bound of one call. */
const mostItems = 20;
const items = z.array(z.unknown()).max(mostItems, `It holds ${mostItems} items at most.`);
const described = z.array(inputItem).max(mostItems);

const creation = { metadata, items: items.nullish() };
const update = { metadata: metadataPairs.nullable() };
const addition = { items: items.min(1) };

const itemQuery = z.object({ include: includes, "include[]": includes });
const params = z.object({ id: z.string(), itemId: z.string().default("") });
const paramsOf = (request: FastifyRequest): z.infer<typeof params> => params.parse(request.params);

/** OpenAI's Conversations: items that responses go on from and add to. */
export const createConversationRoutes =
  ({ conversations, responses }: ConversationDeps): FastifyPluginAsync =>
  async (app) => {
    const describe = (summary: string, more: { readonly body?: z.ZodType; readonly query?: z.ZodType } = {}) => ({
      config: { access: "tenant" as const, describes: { summary, ...more } },
    });
    const resolve = async (context: TenantContext, given: readonly unknown[] | null | undefined): Promise<ResolvedItems> =>
      await responses.resolve(context, toItems(given, "items"));

    app.post(
      "/v1/conversations",
      describe("Begins a conversation of responses", { body: z.object({ ...creation, items: described.nullish() }) }),
      async (request) => {
        const context = tenantOf(request);
        const body = parseField(z.object(creation), knownFields(request.body ?? {}, creation), []);
        const given = { metadata: body.metadata ?? {}, items: await resolve(context, body.items) };
        return await conversations.create(context, given, repeatOf(request));
      },
    );
    app.get(
      "/v1/conversations/:id",
      describe("A conversation"),
      async (request) => await conversations.get(tenantOf(request), paramsOf(request).id),
    );
    app.post("/v1/conversations/:id", describe("Replaces a conversation's metadata", { body: z.object(update) }), async (request) => {
      const body = parseField(z.object(update), knownFields(request.body, update), []);
      return await conversations.update(tenantOf(request), paramsOf(request).id, body.metadata ?? {}, repeatOf(request));
    });
    app.delete("/v1/conversations/:id", describe("Deletes a conversation"), async (request) => {
      const { id } = paramsOf(request);
      await conversations.delete(tenantOf(request), id);
      return { id, object: "conversation.deleted", deleted: true };
    });

    app.get("/v1/conversations/:id/items", describe("What a conversation holds, by pages", { query: itemsQuery }), async (request) => {
      const query = parseField(itemsQuery, request.query, []);
      return await conversations.list(tenantOf(request), paramsOf(request).id, query);
    });
    app.post(
      "/v1/conversations/:id/items",
      describe("Puts items at the end of a conversation", { query: itemQuery, body: z.object({ items: described.min(1) }) }),
      async (request) => {
        const context = tenantOf(request);
        parseField(itemQuery, request.query, []);
        const body = parseField(z.object(addition), knownFields(request.body, addition), []);
        const given = await resolve(context, body.items);
        return toPage(await conversations.add(context, paramsOf(request).id, given, repeatOf(request)), false);
      },
    );
    app.get("/v1/conversations/:id/items/:itemId", describe("One item of a conversation", { query: itemQuery }), async (request) => {
      parseField(itemQuery, request.query, []);
      const { id, itemId } = paramsOf(request);
      return await conversations.item(tenantOf(request), id, itemId);
    });
    app.delete("/v1/conversations/:id/items/:itemId", describe("Takes an item out of a conversation"), async (request) => {
      const { id, itemId } = paramsOf(request);
      return await conversations.remove(tenantOf(request), id, itemId);
    });
  };

function repeatOf(request: FastifyRequest): Idempotency | undefined {
  const key = idempotencyKeyOf(request);
  return key === undefined ? undefined : { key, body: { route: request.url, body: request.body ?? null } };
}
