import { once } from "node:events";
import { type Socket, connect } from "node:net";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

const rows = 60_000;
let model: ModelServer;
let product: RunningProduct;
let databaseUrl: string;
let acme: string;
beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  const address = inject("temporalAddress");
  const env = { DATABASE_URL: databaseUrl, TEMPORAL_ADDRESS: address, TEMPORAL_NAMESPACE: await freshNamespace(address) };
  product = await startProduct({ config: configWithProvider(model.url), env });
  acme = await product.createTenant("acme");
  await runSql(
    databaseUrl,
    "set session_replication_role = replica", // no triggers: they would move one sum sixty thousand times
    `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens, cache_write_tokens,
       output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
     select 'trn_' || n || '.0', 'acme', 'api:s' || n % 50 || ':default', timestamptz '2026-06-01Z' + n * interval '1 second', 'm', 'chat', n, 0, 0, 1, 0, n, n, 0,
       repeat('a', 64) from generate_series(0, ${rows - 1}) n`,
    `insert into control.usage_daily (tenant_id, day, model, tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd, calls)
     select tenant_id, ("timestamp" at time zone 'UTC')::date, model, sum(input_tokens), count(*), 0, 0, 0, sum(cost_nano_usd), count(*)
     from control.usage_ledger group by 1, 2, 3`,
  );
});
afterAll(async () => {
  await product?.stop();
  await model?.close();
});

type Reader = { readonly socket: Socket; readonly head: string };

/** Someone who reads the first bytes of an answer, and then no more. */
async function openReader(format: "csv" | "json" = "csv"): Promise<Reader> {
  const { hostname, port } = new URL(product.url);
  const socket = connect({ host: hostname, port: Number(port) });
  socket.on("error", () => undefined);
  socket.write(
    `GET /v1/billing/report?tenant=acme&period=2026-06&format=${format}&detail=true HTTP/1.1\r\n` +
      `Host: ${hostname}\r\nConnection: close\r\nAuthorization: Bearer ${product.adminKey}\r\n\r\n`,
  );
  await once(socket, "readable");
  const first = socket.read() as Buffer;
  socket.unshift(first);
  return { socket, head: first.toString("latin1") };
}

const isGiven = ({ head }: Reader): boolean => head.startsWith("HTTP/1.1 200");

/** Line ends of the CSV: those of HTTP have a carriage return. */
async function countLines(socket: Socket): Promise<number> {
  let lines = 0;
  for await (const chunk of socket as AsyncIterable<Buffer>) for (const byte of chunk) lines += byte === 10 ? 1 : byte === 13 ? -1 : 0;
  return lines;
}

const ask = async (): Promise<number> => {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${acme}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content: "hello" }] }),
  });
  await answer.text();
  return answer.status;
};

/** Connections of the product that are inside a statement or a transaction. */
const busyConnections = async (): Promise<number> =>
  Number(
    (
      await runSql(
        databaseUrl,
        "select count(*)::int as busy from pg_stat_activity where datname = current_database() and application_name = 'openclaw' and state <> 'idle'",
      )
    ).rows[0]?.["busy"],
  );

test("those who read a report slowly hold no connection: turns go on, and who hangs up makes room for the next", async () => {
  const readers = await Promise.all(Array.from({ length: 30 }, async (_, index) => await openReader(index % 2 === 0 ? "csv" : "json")));
  const given = readers.filter(isGiven);
  expect(given).toHaveLength(8);
  for (const { head } of readers.filter((reader) => !isGiven(reader))) expect(head).toMatch(/^HTTP\/1\.1 503[^]*\r\nretry-after: 10\r\n/i);
  await expect.poll(busyConnections, { timeout: 60_000 }).toBe(0);
  expect(await ask()).toBe(200);

  for (const { socket } of given) socket.destroy();
  await expect.poll(async () => isGiven(await openReader()), { timeout: 60_000 }).toBe(true);
  await expect.poll(busyConnections, { timeout: 60_000 }).toBe(0);
  expect(await ask()).toBe(200);

  const { socket } = await openReader();
  expect(await countLines(socket)).toBe(rows + 1);
}, 180_000);
