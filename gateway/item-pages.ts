import { z } from "zod";
import { AppError } from "../domain/app-error.ts";

/** Pages of items, as the Responses API shows them. */

/** What a call asks to be shown beside; what there is of it is always there. */
export const includes = z.union([z.string(), z.array(z.string())]).optional();

export const itemsQuery = z.object({
  limit: z.coerce.number().int().min(1).max(100).default(20),
  order: z.enum(["asc", "desc"]).default("desc"),
  /** The id of the last item of the page before. */
  after: z.string().max(256).optional(),
  include: includes,
  "include[]": includes,
});
export type ItemsQuery = Pick<z.infer<typeof itemsQuery>, "limit" | "order" | "after">;

type Item = { readonly id: string };

export const toPage = (data: readonly Item[], hasMore: boolean) => ({
  object: "list" as const,
  data,
  first_id: data.at(0)?.id ?? null,
  last_id: data.at(-1)?.id ?? null,
  has_more: hasMore,
});

export const noSuchItem = (param: string): AppError => new AppError("not_found", { client: { message: "There is no such item.", param } });

/** @param items in the order that is asked for @throws {AppError} `not_found` where `after` is none of them */
export function pageOf(items: readonly Item[], { limit, after }: Pick<ItemsQuery, "limit" | "after">) {
  const place = after === undefined ? -1 : items.findIndex(({ id }) => id === after);
  if (after !== undefined && place === -1) throw noSuchItem("after");
  return toPage(items.slice(place + 1, place + 1 + limit), place + 1 + limit < items.length);
}
