import { randomBytes } from "node:crypto";
import { Client, Connection } from "@temporalio/client";
import type { Payload } from "@temporalio/common";
import type { FastifyInstance } from "fastify";
import pino from "pino";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { Principal } from "../../control-plane/authentication.ts";
import type { AuditEntry } from "../../domain/audit.ts";
import { AppError } from "../../domain/app-error.ts";
import { type Owner, type TenantId, systemOwner } from "../../domain/tenant.ts";
import { createCodecRoutes } from "../../gateway/codec-routes.ts";
import { createGateway } from "../../gateway/gateway.ts";
import { readChain } from "../../storage/audit-repository.ts";
import { type ChangesStage, startChanges } from "../control-plane/changes-stage.ts";
import { aesCodec } from "./aes-codec.ts";

const host = "127.0.0.1:18789";
const secret = `the secret ${randomBytes(8).toString("hex")}`;
const key = randomBytes(32);

let stage: ChangesStage;
let app: FastifyInstance;
let tenant: TenantId;
let payloads: Record<string, readonly unknown[]>;

/** A workflow's input as it stands in Temporal's history, in the codec protocol's form. */
async function storedInput(owner: Owner): Promise<readonly unknown[]> {
  const connection = await Connection.connect({ address: inject("temporalAddress") });
  try {
    const client = new Client({ connection, namespace: stage.namespace, dataConverter: { payloadCodecs: [aesCodec(owner, key)] } });
    const workflowId = `codec-${owner}`;
    await client.workflow.start("nothing", { workflowId, taskQueue: "nobody", args: [{ text: secret }, `${owner}'s`] });
    const { history } = await connection.workflowService.getWorkflowExecutionHistory({
      namespace: stage.namespace,
      execution: { workflowId },
    });
    const input = history?.events?.[0]?.workflowExecutionStartedEventAttributes?.input?.payloads ?? [];
    await client.workflow.getHandle(workflowId).terminate();
    return input.map(wireForm);
  } finally {
    await connection.close();
  }
}

const wireForm = ({ metadata, data }: Payload) => ({
  metadata: Object.fromEntries(Object.entries(metadata ?? {}).map(([name, value]) => [name, Buffer.from(value).toString("base64")])),
  data: Buffer.from(data ?? []).toString("base64"),
});

beforeAll(async () => {
  stage = await startChanges();
  ({ tenantId: tenant } = await stage.createTenant());
  const admin = async (id: string | undefined): Promise<Principal & { kind: "admin" }> => {
    if (id === undefined) throw new AppError("invalid_api_key");
    return { kind: "admin", keyId: id, scopes: ["read"] };
  };
  app = await createGateway({
    authenticate: async (authorization) => await admin(authorization?.replace("Bearer ", "")),
    authenticateSession: admin,
    logger: pino({ level: "silent" }),
    routes: [createCodecRoutes({ decoder: aesCodec("_system", key), changes: stage.changes })],
  });
  payloads = { tenant: await storedInput(tenant), system: await storedInput(systemOwner) };
}, 60_000);
afterAll(async () => {
  await app.close();
  await stage.close();
});

const decode = async (
  body: unknown,
  { as = "root", path = "decode", headers = {} }: { as?: string; path?: string; headers?: object } = {},
) =>
  await app.inject({
    method: "POST",
    url: `/temporal-codec/${path}`,
    headers: Object.fromEntries(
      Object.entries({
        host,
        origin: `http://${host}`,
        cookie: `openclaw_admin=${as}`,
        "content-type": "application/json",
        "x-namespace": stage.namespace,
        ...headers,
      }).filter(([, value]) => value !== undefined),
    ),
    payload: JSON.stringify(body),
  });

const decodesOf = async (chain: string): Promise<readonly AuditEntry[]> =>
  (await stage.stack.database.withControl(async (tx) => await readChain(tx, chain, 0, 1_000))).filter(
    ({ action }) => action === "payloads.decode",
  );

test("what the history holds is unreadable, what an administrator is answered is not, and the tenant's chain says who read it", async () => {
  const given = payloads["tenant"] ?? [];
  const answer = await decode({ payloads: given });

  expect(Buffer.from(JSON.stringify(given)).includes(Buffer.from(secret).toString("base64").slice(0, 20))).toBe(false);
  expect(answer.statusCode).toBe(200);
  const texts = answer.json<{ payloads: { data: string }[] }>().payloads.map(({ data }) => Buffer.from(data, "base64").toString());
  expect(texts).toEqual([JSON.stringify({ text: secret }), JSON.stringify(`${tenant}'s`)]);
  expect(answer.headers["cache-control"]).toBe("no-store");
  expect(await decodesOf(tenant)).toEqual([
    expect.objectContaining({
      actor: { type: "admin", id: "root" },
      target: expect.stringMatching(/^2 payloads:[0-9a-f]{8}$/),
      outcome: "applied",
      tenant,
    }),
  ]);
  expect(JSON.stringify(await decodesOf(tenant))).not.toContain(secret);
});

test("a page's requests are one entry for each reader, and each is answered after it", async () => {
  const before = (await decodesOf(tenant)).length;
  const answers = await Promise.all(
    Array.from({ length: 60 }, async (_, n) => await decode({ payloads: payloads["tenant"] }, { as: n % 2 === 0 ? "anna" : "ben" })),
  );
  const entries = (await decodesOf(tenant)).slice(before);

  expect(new Set(answers.map(({ statusCode }) => statusCode))).toEqual(new Set([200]));
  expect(entries.length).toBeLessThan(20);
  const counted = (reader: string) =>
    entries.filter(({ actor }) => actor.id === reader).reduce((sum, { target }) => sum + Number.parseInt(target), 0);
  expect([counted("anna"), counted("ben")]).toEqual([60, 60]);
});

test("a repeat with an Idempotency-Key is a reading like the first", async () => {
  const headers = { "idempotency-key": "same" };
  for (let n = 0; n < 2; n++) expect((await decode({ payloads: payloads["tenant"] }, { as: "twice", headers })).statusCode).toBe(200);

  expect((await decodesOf(tenant)).filter(({ actor }) => actor.id === "twice")).toHaveLength(2);
});

test("a look at the system's payloads is recorded once an hour: the record is itself one of them", async () => {
  for (let n = 0; n < 3; n++) expect((await decode({ payloads: payloads["system"] }, { as: "watcher" })).statusCode).toBe(200);

  expect((await decodesOf("system")).filter(({ actor }) => actor.id === "watcher")).toHaveLength(1);
});

test("what is not encrypted is given back and not recorded", async () => {
  const before = (await decodesOf(tenant)).length;
  const plain = { metadata: { encoding: Buffer.from("json/plain").toString("base64") }, data: Buffer.from("1").toString("base64") };

  expect((await decode({ payloads: [plain, { metadata: {} }] })).json()).toEqual({ payloads: [plain, { metadata: {} }] });
  expect((await decodesOf(tenant)).length).toBe(before);
});

test("what cannot be decrypted is not answered, and nothing is recorded of it", async () => {
  const before = (await decodesOf(tenant)).length;
  const [first] = payloads["tenant"] as [{ metadata: Record<string, string>; data: string }];
  const stolen = { ...first, metadata: { ...first.metadata, owner: Buffer.from("someone-else").toString("base64") } };

  expect((await decode({ payloads: [stolen] })).statusCode).toBe(500);
  expect((await decodesOf(tenant)).length).toBe(before);
  expect(await decodesOf("someone-else")).toEqual([]);
});

test.each([
  ["no payloads", {}],
  ["payloads that are none", { payloads: "all" }],
  ["data that is not base64", { payloads: [{ data: "?" }] }],
  ["another field", { payloads: [{ data: "", tenant: "x" }] }],
])("%s is 400", async (_name, body) => {
  expect((await decode(body)).statusCode).toBe(400);
});

test("nobody else is answered: another site, nobody, no namespace, and nothing is encoded here", async () => {
  const body = { payloads: payloads["tenant"] };

  expect((await decode(body, { headers: { origin: "https://evil.example" } })).statusCode).toBe(403);
  expect((await decode(body, { headers: { origin: undefined } })).statusCode).toBe(403);
  expect((await decode(body, { headers: { cookie: "" } })).statusCode).toBe(401);
  expect((await decode(body, { headers: { "x-namespace": undefined } })).statusCode).toBe(400);
  expect((await decode(body, { path: "encode" })).statusCode).toBe(404);
});

test("what cannot be recorded is not answered", async () => {
  const { changes } = stage;
  const refusing = await createGateway({
    authenticate: async () => ({ kind: "admin", keyId: "root", scopes: ["read"] }),
    logger: pino({ level: "silent" }),
    routes: [
      createCodecRoutes({
        decoder: aesCodec(tenant, key),
        changes: {
          make: async (owner, command, options) => await changes.make(owner, { ...command, type: "tenant.create" } as never, options),
        },
      }),
    ],
  });

  const answer = await refusing.inject({
    method: "POST",
    url: "/temporal-codec/decode",
    headers: { authorization: "Bearer x", "x-namespace": "n", "content-type": "application/json" },
    payload: JSON.stringify({ payloads: payloads["tenant"] }),
  });

  expect(answer.statusCode).toBeGreaterThanOrEqual(400);
  expect(answer.body).not.toContain(Buffer.from(secret).toString("base64").slice(0, 20));
  await refusing.close();
});
