import { once } from "node:events";
import { type ClientRequest, type IncomingMessage, request } from "node:http";
import type { FastifyInstance } from "fastify";
import { expect, onTestFinished, test } from "vitest";
import { gatewayStage, listening } from "./gateway-stage.ts";

/** A route that answers when the test says so, behind bounds of ten thousand bytes in all and six thousand for a tenant. */
async function someGateway() {
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  const route = async (app: FastifyInstance): Promise<void> => {
    app.post("/hold", { config: { access: "tenant" } }, async () => {
      await released;
      return { ok: true };
    });
  };
  const { app } = await gatewayStage(route, undefined, { bodyBytes: { all: 10_000, perTenant: 6_000 } });
  const { url } = await listening(app);
  return { url, release };
}

const bodyOf = (bytes: number): string => JSON.stringify({ text: "x".repeat(bytes - 11) });

/** Sends the head of a call and, when told, its body. */
function begin(url: string, tenant: string, body: string, declared: Record<string, string | number> = { "content-length": body.length }) {
  const sent: ClientRequest = request(`${url}/hold`, {
    method: "POST",
    agent: false,
    headers: { authorization: `Bearer ${tenant}`, "content-type": "application/json", ...declared },
  });
  onTestFinished(() => void sent.destroy());
  sent.on("error", () => {});
  sent.flushHeaders();
  const answer = once(sent, "response").then(([message]) => {
    (message as IncomingMessage).resume();
    return message as IncomingMessage;
  });
  answer.catch(() => {});
  return { sent, answer, finish: () => void sent.end(body) };
}

const status = async (url: string, tenant: string, bytes: number): Promise<readonly [number | undefined, string | undefined]> => {
  const call = begin(url, tenant, bodyOf(bytes));
  call.finish();
  const { statusCode, headers } = await call.answer;
  return [statusCode, headers["retry-after"]];
};

test("bodies that are held at once are bounded for each tenant and for all, before they are read", async () => {
  const { url, release } = await someGateway();
  const first = begin(url, "acme", bodyOf(5_000));
  first.sent.write(" "); // on its way: what was declared is held
  await expect.poll(async () => await status(url, "acme", 2_000)).toEqual([503, "1"]);

  const other = begin(url, "globex", bodyOf(4_500));
  other.sent.write(" ");
  await expect.poll(async () => await status(url, "initech", 1_000)).toEqual([503, "1"]);

  release();
  other.sent.destroy();
  await expect.poll(async () => await status(url, "initech", 1_000)).toEqual([200, undefined]);
  first.sent.destroy();
  await expect.poll(async () => await status(url, "acme", 2_000)).toEqual([200, undefined]);
});

test("one body always fits, and is let go of with its answer", async () => {
  const { url, release } = await someGateway();
  release();
  for (let n = 0; n < 3; n++) expect(await status(url, "acme", 9_000)).toEqual([200, undefined]);
});

test("what declares no length is taken for the largest", async () => {
  const { url, release } = await someGateway();
  release();
  const call = begin(url, "acme", bodyOf(100), { "transfer-encoding": "chunked" });
  call.sent.write(" ");
  await expect.poll(async () => await status(url, "acme", 100)).toEqual([503, "1"]);
  call.finish();
  expect((await call.answer).statusCode).toBe(200);
  await expect.poll(async () => await status(url, "acme", 100)).toEqual([200, undefined]);
});
