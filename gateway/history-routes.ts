import { Readable } from "node:stream";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { ArchivedHistories } from "../control-plane/history-archive.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import type { ArchivedRun } from "../storage/archive-repository.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { eventsOfPage } from "../temporal/closed-runs.ts";
import { tenantOfPath } from "./admin-path.ts";

export type HistoryRouteDeps = {
  readonly tenants: Pick<Tenants, "get">;
  readonly histories: ArchivedHistories;
};

const runId = z.uuid("must be the id of a run");
const listQuery = z.strictObject({
  workflow: z.string().max(1_000).optional(),
  after: runId.optional(),
  limit: z.coerce.number().int().min(1).max(1_000).default(100),
});
const runParams = z.object({ run: runId });

const runJson = ({ runId: id, workflowId, type, status, events, sizeBytes, startedAtMs, closedAtMs }: ArchivedRun) => ({
  run_id: id,
  workflow_id: workflowId,
  type,
  status,
  events,
  bytes: sizeBytes,
  started_at: new Date(startedAtMs).toISOString(),
  closed_at: new Date(closedAtMs).toISOString(),
});

/** Archived histories. Their payloads stay encrypted: Temporal's Web UI decodes an imported one through the codec endpoint. */
export const createHistoryRoutes =
  ({ tenants, histories }: HistoryRouteDeps): FastifyPluginAsync =>
  async (app) => {
    const contextOf = async (request: FastifyRequest): Promise<TenantContext> => {
      const { id: tenantId } = await tenants.get(tenantOfPath(request));
      return { tenantId, requestId: request.id };
    };

    app.get(
      "/v1/tenants/:tenant/histories",
      { config: { access: "admin:read", describes: { summary: "Archived workflow runs of a tenant, newest first", query: listQuery } } },
      async (request) => {
        const context = await contextOf(request);
        const { workflow, after, limit } = listQuery.parse(request.query);
        const runs = await histories.list(context, { workflowId: workflow, after, limit: limit + 1 });
        return { object: "list", data: runs.slice(0, limit).map(runJson), has_more: runs.length > limit };
      },
    );

    app.get(
      "/v1/tenants/:tenant/histories/:run",
      { config: { access: "admin:read", describes: { summary: "The history of an archived run, as Temporal's tools read it" } } },
      async (request, reply) => {
        const context = await contextOf(request);
        const { success, data } = runParams.safeParse(request.params);
        if (!success) throw new AppError("not_found", { client: { message: "No such run is archived." } });
        const pages = await histories.open(context, data.run);
        return await reply.type("application/json; charset=utf-8").send(Readable.from(historyJson(pages), { highWaterMark: 2 }));
      },
    );
  };

/** One page at a time: a history may hold tens of megabytes. */
async function* historyJson(pages: AsyncIterable<Uint8Array>): AsyncGenerator<string, void, undefined> {
  let between = '{"events":[';
  for await (const page of pages) {
    const events = eventsOfPage(page);
    if (events.length === 0) continue;
    yield `${between}${events.map((event) => JSON.stringify(event)).join(",")}`;
    between = ",";
  }
  yield between === "," ? "]}\n" : `${between}]}\n`;
}
