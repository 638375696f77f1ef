import { randomBytes } from "node:crypto";
import { join } from "node:path";
import OpenAI from "openai";
import { expect, inject } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

export type StageTenant = { readonly id: string; readonly token: string };

/** Two gateways and two workers on one database and one Temporal; the workers share the first gateway's home. */
export type ScalingStage = {
  readonly model: ModelServer;
  readonly namespace: string;
  readonly gateways: readonly [RunningProduct, RunningProduct];
  readonly workers: readonly [RunningProduct, RunningProduct];
  rows(sql: string): Promise<Record<string, unknown>[]>;
  createTenant(): Promise<StageTenant>;
  /** The worker that serves an owner now; undefined where none does. */
  holderOf(owner: string): Promise<RunningProduct | undefined>;
  /** New tenants until one is served by this worker. */
  tenantOn(worker: RunningProduct): Promise<StageTenant>;
  /** Resolves once this worker serves the tenant. */
  servedBy(tenant: StageTenant, worker: RunningProduct): Promise<void>;
  /** Ids of the billed calls of a tenant. */
  billed(tenant: StageTenant): Promise<readonly unknown[]>;
  sandboxOf(tenant: StageTenant): string;
  close(): Promise<void>;
};

export const ask = (text: string) => ({ model: "default", messages: [{ role: "user" as const, content: text }] });

export const clientOf = (gateway: Pick<RunningProduct, "url">, { token }: StageTenant): OpenAI =>
  new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey: token, maxRetries: 0, timeout: 90_000 });

/** What a caller gets for a question. */
export const answerTo = async (gateway: Pick<RunningProduct, "url">, tenant: StageTenant, text: string): Promise<string> =>
  (await clientOf(gateway, tenant).chat.completions.create(ask(text))).choices[0]?.message.content ?? "";

export async function startScalingStage(more = ""): Promise<ScalingStage> {
  const model = await startModelServer();
  const databaseUrl = await freshDatabase();
  const env = {
    DATABASE_URL: databaseUrl,
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  const config = configWithProvider(model.url, more);
  const first = await startProduct({ config, env, role: "gateway" });
  const { home, adminKey } = first;
  const workers = [await startProduct({ env, role: "worker", home }), await startProduct({ env, role: "worker", home })] as const;
  const gateways = [first, await startProduct({ config, env, role: "gateway", adminKey })] as const;
  const rows = async (sql: string): Promise<Record<string, unknown>[]> => (await runSql(databaseUrl, sql)).rows;

  const createTenant = async (): Promise<StageTenant> => {
    const id = `many-${randomBytes(4).toString("hex")}`;
    return { id, token: await first.createTenant(id) };
  };
  const holderOf = async (owner: string): Promise<RunningProduct | undefined> => {
    const [row] = await rows(
      `select pid from control.placement join control.process on process.id = holder
       where owner = '${owner}' and expires_at > clock_timestamp()`,
    );
    return workers.find(({ pid }) => pid === row?.["pid"]);
  };
  return {
    model,
    namespace: env.TEMPORAL_NAMESPACE,
    gateways,
    workers,
    rows,
    createTenant,
    holderOf,
    async tenantOn(worker) {
      for (;;) {
        const tenant = await createTenant();
        await answerTo(first, tenant, "who serves me?");
        if ((await holderOf(tenant.id)) === worker) return tenant;
      }
    },
    async servedBy({ id }, worker) {
      await expect.poll(async () => (await holderOf(id))?.pid, { timeout: 60_000, interval: 50 }).toBe(worker.pid);
    },
    async billed({ id }) {
      return (await rows(`select id from control.usage_ledger where tenant_id = '${id}' order by id`)).map((row) => row["id"]);
    },
    sandboxOf: ({ id }) => join(home, "tenants", id, "sandbox"),
    async close() {
      for (const worker of workers) await worker.stop();
      for (const gateway of gateways) await gateway.stop();
      await model.close();
    },
  };
}
