import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inject } from "vitest";
import { parseTenantId, tenantSchemaOf } from "../../domain/tenant.ts";
import { openDatabase } from "../../storage/database.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { connectTemporal } from "../../temporal/temporal-connection.ts";
import { forTenant } from "../../temporal/tenant-client.ts";
import type { QuotaCount } from "../../workflows/quota-messages.ts";
import { type MockOpenAi, start } from "../fixtures/mock-openai-server.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, homeBeside, startProduct } from "../product.ts";
import { freshDatabase, runSql, sharedKek } from "../storage/fresh-database.ts";
import { quiet } from "../turn-stack.ts";

export type Tenant = { readonly id: string; readonly token: string };
export type Row = {
  readonly id: string;
  readonly input: number;
  readonly cached: number;
  readonly output: number;
  readonly reasoning: number;
  readonly costNanoUsd: bigint;
  readonly estimated: boolean;
};

/** Two whole products on one database, one Temporal and the same directories, a provider that counts, and a look at what each of them believes. */
export type QuotaStage = {
  readonly model: MockOpenAi;
  readonly first: RunningProduct;
  readonly second: RunningProduct;
  /** One that `product`'s worker serves, which makes its model calls. */
  newTenant(product: RunningProduct, quota: object): Promise<Tenant>;
  /** The status, 0 when the product went away before it answered; the body where it is JSON. */
  ask(product: RunningProduct, tenant: Tenant, text: string, more?: object, headers?: Record<string, string>): Promise<Answer>;
  rows(tenant: Tenant): Promise<readonly Row[]>;
  openTurns(tenant: Tenant): Promise<number>;
  reservations(tenant: Tenant): Promise<readonly { readonly tokens: number; readonly nanoUsd: bigint }[]>;
  count(tenant: Tenant): Promise<QuotaCount | undefined>;
  close(): Promise<void>;
};

export type Answer = { readonly status: number; readonly headers: Headers; readonly json: Record<string, unknown> };

export async function startQuotaStage(): Promise<QuotaStage> {
  const model = await start();
  const databaseUrl = await freshDatabase();
  const temporalAddress = inject("temporalAddress");
  const namespace = await freshNamespace(temporalAddress);
  const env = { DATABASE_URL: databaseUrl, TEMPORAL_ADDRESS: temporalAddress, TEMPORAL_NAMESPACE: namespace };
  const config = configWithProvider(model.url);
  const first = await startProduct({ config, env });
  await first.createTenant("first-of-all"); // with it the place of the directories is made
  const second = await startProduct({ config, env, adminKey: first.adminKey, home: homeBeside(first.home) });
  const database = await openDatabase({ ownerUrl: databaseUrl, log: quiet });
  const home = mkdtempSync(join(tmpdir(), "openclaw-look-"));
  const keys = await openDataKeys({ database, home, keyEncryptionKey: sharedKek(databaseUrl), log: quiet });
  const connection = await connectTemporal({ address: temporalAddress, namespace, dataKeys: keys.dataKeys });
  const sql = async (text: string): Promise<readonly Record<string, unknown>[]> =>
    (await runSql(databaseUrl, text)).rows as readonly Record<string, unknown>[];

  const ask: QuotaStage["ask"] = async (product, { token }, text, more = {}, headers = {}) => {
    try {
      const answer = await fetch(`${product.url}/v1/chat/completions`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json", "x-openclaw-mode": "gateway", ...headers },
        body: JSON.stringify({ model: "default", messages: [{ role: "user", content: text }], ...more }),
      });
      const body = await answer.text();
      return { status: answer.status, headers: answer.headers, json: body.startsWith("{") ? (JSON.parse(body) as Answer["json"]) : {} };
    } catch {
      return { status: 0, headers: new Headers(), json: {} };
    }
  };

  return {
    model,
    first,
    second,
    async newTenant(product, quota) {
      for (;;) {
        const id = `quota-${randomBytes(4).toString("hex")}`;
        const token = await product.createTenant(id);
        const answer = await fetch(`${product.url}/v1/tenants/${id}/quota`, {
          method: "PUT",
          headers: { authorization: `Bearer ${product.adminKey}`, "content-type": "application/json" },
          body: JSON.stringify(quota),
        });
        if (answer.status !== 200) throw new Error(`the quota was refused: ${await answer.text()}`);
        const [row] = await sql(`select pid from control.placement join control.process on process.id = holder where owner = '${id}'`);
        if (row?.["pid"] === product.pid) return { id, token };
      }
    },
    ask,
    async rows({ id }) {
      const found = await sql(
        `select id, input_tokens, cache_read_tokens, output_tokens, reasoning_tokens, cost_nano_usd, estimated
         from control.usage_ledger where tenant_id = '${id}' order by id`,
      );
      return found.map((row) => ({
        id: String(row["id"]),
        input: Number(row["input_tokens"]),
        cached: Number(row["cache_read_tokens"]),
        output: Number(row["output_tokens"]),
        reasoning: Number(row["reasoning_tokens"]),
        costNanoUsd: BigInt(String(row["cost_nano_usd"])),
        estimated: row["estimated"] === true,
      }));
    },
    async openTurns({ id }) {
      const [row] = await sql(`select count(*) as turns from control.open_turn where tenant_id = '${id}'`);
      return Number(row?.["turns"]);
    },
    async reservations({ id }) {
      const schema = tenantSchemaOf(parseTenantId(id));
      const found = await sql(`select reserved_tokens, reserved_nano_usd from "${schema}".model_call where state = 'done'`);
      return found.map((row) => ({ tokens: Number(row["reserved_tokens"]), nanoUsd: BigInt(String(row["reserved_nano_usd"])) }));
    },
    count: async ({ id }) =>
      await forTenant({ tenantId: parseTenantId(id) }, connection, { windowMs: 2_000, modelCall: "remote" }).quota.count(),
    async close() {
      await connection.close();
      await keys.close();
      await database.close();
      rmSync(home, { recursive: true, force: true });
      await first.stop();
      await second.stop();
      rmSync(second.home, { recursive: true, force: true });
      await model.close();
    },
  };
}
