import { once } from "node:events";
import pino from "pino";
import { expect, onTestFinished } from "vitest";
import WebSocket from "ws";
import { type AdminScope, createAuthentication } from "../../control-plane/authentication.ts";
import { createBillingReports } from "../../control-plane/billing-reports.ts";
import { tokenChannel } from "../../control-plane/commands.ts";
import { createChanges } from "../../control-plane/changes.ts";
import { mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import { createOverlayWriter, openOverlayReader } from "../../control-plane/overlays.ts";
import { createTenants } from "../../control-plane/tenants.ts";
import { type TenantContext, parseTenantId } from "../../domain/tenant.ts";
import { createGateway } from "../../gateway/gateway.ts";
import { createRpcEndpoint } from "../../gateway/rpc/rpc-endpoint.ts";
import { createRpcMethods } from "../../gateway/rpc/rpc-methods.ts";
import { createRpcRoutes } from "../../gateway/rpc/rpc-routes.ts";
import { type RpcSocketDeps, createRpcSocketRoutes } from "../../gateway/rpc/rpc-socket.ts";
import { createSessionService } from "../../gateway/session-service.ts";
import { openTokenWatch } from "../../gateway/token-watch.ts";
import { ModelCallError } from "../../providers/model-provider.ts";
import { createFieldEncryption } from "../../storage/tenant-field-encryption.ts";
import { someGround } from "../control-plane/some-overlay.ts";
import { type TurnStack, quiet, scriptedProvider, startTurnStack, turnServiceOf } from "../turn-stack.ts";
import { listening } from "./gateway-stage.ts";

export type RpcReply = {
  readonly jsonrpc: "2.0";
  readonly id: unknown;
  readonly result?: Record<string, unknown>;
  readonly error?: { readonly code: number; readonly message: string; readonly data?: Record<string, unknown> };
};
export type HttpAnswer = { readonly status: number; readonly headers: Headers; readonly text: string };
export type RpcTenant = { readonly context: TenantContext; readonly token: string };
export type HeldQuestion = { readonly arrived: Promise<void>; release(): void };

/** A gateway with `/rpc`, a worker and everything between them, in this process. */
export type RpcStage = {
  readonly stack: TurnStack;
  readonly url: string;
  readonly acme: RpcTenant;
  readonly globex: RpcTenant;
  /** Errors that the gateway logged. */
  readonly logged: Record<string, unknown>[];
  /** Questions that the model was asked, in order. */
  readonly asked: string[];
  addTenant(name: string): Promise<RpcTenant>;
  addAdmin(keyId: string, scope: AdminScope): Promise<string>;
  /** Makes the model wait when it is asked this. */
  hold(question: string): HeldQuestion;
  post(body: string, token?: string, more?: { path?: string; headers?: Record<string, string> }): Promise<HttpAnswer>;
  call(method: string, params?: unknown, token?: string): Promise<RpcReply>;
  /** @throws when it was answered with an error */
  result(method: string, params?: unknown, token?: string): Promise<Record<string, unknown>>;
  /** Sends a text and waits until its turn has ended. */
  say(sessionId: string, text: string, tenant?: RpcTenant): Promise<string>;
  stateOf(turnId: string, tenant?: RpcTenant): Promise<unknown>;
  /** As a rotation does: the epoch rises, and every process is told. */
  raiseEpoch(tenant: RpcTenant): Promise<void>;
  /** WebSockets that the server holds open. */
  openConnections(): number;
  close(): Promise<void>;
};

export async function startRpcStage(limits: RpcSocketDeps["limits"] = {}): Promise<RpcStage> {
  const held = new Map<string, { readonly arrived: PromiseWithResolvers<void>; readonly release: PromiseWithResolvers<void> }>();
  const asked: string[] = [];
  const provider = scriptedProvider(async ({ messages }, signal) => {
    const question = String(messages.at(-1)?.content);
    asked.push(question);
    held.get(question)?.arrived.resolve();
    const release = held.get(question)?.release.promise;
    if (release !== undefined) await Promise.race([release, new Promise((resolve) => signal.addEventListener("abort", resolve))]);
    if (signal.aborted) throw new ModelCallError("aborted", "the turn was aborted");
    return { text: `you said ${question}` };
  });
  const stack = await startTurnStack({ provider });
  const { database, bus, clientOf, pool } = stack;
  const authentication = createAuthentication({ database, log: quiet });
  const tokens = await openTokenWatch({ database, log: quiet });
  const turns = turnServiceOf(stack, stack.quota);
  const logged: Record<string, unknown>[] = [];
  const logger = pino({ level: "error" }, { write: (line: string) => void logged.push(JSON.parse(line)) });
  const ground = () => someGround;
  const encryption = createFieldEncryption(stack.keys.dataKeys);
  const reader = await openOverlayReader({ database, encryption, ground });
  const changes = createChanges({
    database,
    dataKeys: stack.keys.dataKeys,
    chainOf: (owner) => clientOf(parseTenantId(owner)).chain,
    wake: pool.wake,
    obstacle: () => undefined,
    log: quiet,
  });
  const endpoint = createRpcEndpoint({
    methods: createRpcMethods({
      turns,
      sessions: createSessionService({ database, bus, clientOf, log: quiet }),
      overlays: { ...reader, write: createOverlayWriter({ reader, database, encryption, ground, changes }) },
      defaultModel: () => "test-model",
      tenants: createTenants({ database }),
      reports: createBillingReports({ database }),
      checks: { database: async () => void (await database.withControl(async (tx) => await tx.query("select 1"))) },
    }),
    logFailure: (error, fields) => logger.error({ err: error, ...fields }, "a call of /rpc failed"),
  });
  const app = await createGateway({
    authenticate: authentication.authenticate,
    logger,
    routes: [
      createRpcRoutes({ endpoint, tenants: createTenants({ database }) }),
      createRpcSocketRoutes({ endpoint, authenticateCredential: authentication.authenticateCredential, tokens, limits }),
    ],
  });
  const { url } = await listening(app);
  const addTenant = async (name: string): Promise<RpcTenant> => {
    const context = await stack.addTenant(name);
    const { token, hash } = mintTenantToken(context.tenantId);
    await database.withControl(async (tx) => {
      await tx.execute("insert into control.tenant_token (hash, tenant_id) values ($1, $2)", [hash, context.tenantId]);
    });
    return { context, token };
  };
  const acme = await addTenant("acme");
  const globex = await addTenant("globex");
  const stateOf: RpcStage["stateOf"] = async (turnId, { context } = acme) => {
    const [row] = await database.withTenant(context, async (tx) => await tx.query("select state from turn where id = $1", [turnId]));
    return row?.["state"];
  };
  const post: RpcStage["post"] = async (body, token = acme.token, { path = "/rpc", headers = {} } = {}) => {
    const answer = await fetch(`${url}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
      body,
    });
    return { status: answer.status, headers: answer.headers, text: await answer.text() };
  };
  const call: RpcStage["call"] = async (method, params, token) => {
    const { text } = await post(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }), token);
    return JSON.parse(text) as RpcReply;
  };
  const result: RpcStage["result"] = async (method, params, token) => {
    const answer = await call(method, params, token);
    if (answer.result === undefined) throw new Error(`${method} answered ${JSON.stringify(answer.error)}`);
    return answer.result;
  };
  return {
    stack,
    url,
    acme,
    globex,
    logged,
    asked,
    addTenant,
    async addAdmin(keyId, scope) {
      const { key, hash } = mintAdminKey(keyId);
      await database.withControl(async (tx) => {
        await tx.execute("insert into control.admin_key (id, hash, scopes) values ($1, $2, $3)", [keyId, hash, [scope]]);
      });
      return key;
    },
    hold(question) {
      const entry = { arrived: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() };
      held.set(question, entry);
      return { arrived: entry.arrived.promise, release: () => entry.release.resolve() };
    },
    post,
    call,
    result,
    async say(sessionId, text, tenant = acme) {
      const turnId = String((await result("chat.send", { session_id: sessionId, text }, tenant.token))["turn_id"]);
      await expect.poll(async () => await stateOf(turnId, tenant), { timeout: 20_000 }).toBe("done");
      return turnId;
    },
    stateOf,
    async raiseEpoch({ context: { tenantId } }) {
      await database.withControl(async (tx) => {
        await tx.execute("update control.tenant set token_epoch = token_epoch + 1 where id = $1", [tenantId]);
        await tx.query("select pg_notify($1, $2)", [tokenChannel, tenantId]);
      });
    },
    openConnections: () => app.websocketServer.clients.size,
    async close() {
      app.server.closeAllConnections();
      await app.close();
      await reader.close();
      await tokens.close();
      await authentication.close();
      await stack.close();
    },
  };
}

/** A client's end of a WebSocket; what comes is kept until it is asked for. */
export type RpcClient = {
  readonly socket: WebSocket;
  /** The status of a refused upgrade, or the code that the socket was closed with. */
  readonly ended: Promise<{ readonly status?: number; readonly code?: number }>;
  send(value: unknown): void;
  /** The next message that `fits`; earlier ones that do not are passed over. */
  next(fits?: (message: Message) => boolean): Promise<Message>;
  call(method: string, params?: unknown): Promise<RpcReply>;
};
export type Message = RpcReply & { readonly method?: string; readonly params?: Record<string, unknown> };

let calls = 0;

/** Opens a WebSocket, which ends with the test; `token` goes into the header, `origin` as browsers send it. */
export async function openSocket(
  url: string,
  { token, origin, path = "/rpc" }: { token?: string; origin?: string; path?: string } = {},
): Promise<RpcClient> {
  const socket = new WebSocket(`${url.replace("http", "ws")}${path}`, {
    headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
    ...(origin === undefined ? {} : { origin }),
  });
  onTestFinished(() => socket.terminate());
  const messages: Message[] = [];
  const waiting = new Set<() => void>();
  socket.on("message", (data) => {
    messages.push(JSON.parse(String(data)) as Message);
    for (const look of waiting) look();
  });
  socket.on("error", () => {});
  const ended = new Promise<{ status?: number; code?: number }>((resolve) => {
    socket.once("close", (code) => resolve({ code }));
    socket.once("unexpected-response", (request, response) => {
      resolve({ status: response.statusCode ?? 0 });
      request.destroy();
    });
  });
  const next: RpcClient["next"] = async (fits = () => true) =>
    await new Promise((resolve, reject) => {
      const look = (): void => {
        for (let message = messages.shift(); message !== undefined; message = messages.shift()) {
          if (!fits(message)) continue;
          waiting.delete(look);
          return resolve(message);
        }
      };
      waiting.add(look);
      void ended.then((end) => reject(new Error(`the socket ended: ${JSON.stringify(end)}`)));
      look();
    });
  await Promise.race([once(socket, "open"), ended]);
  const send = (value: unknown): void => socket.send(typeof value === "string" ? value : JSON.stringify(value));
  return {
    socket,
    ended,
    send,
    next,
    async call(method, params) {
      const id = `call-${++calls}`;
      send({ jsonrpc: "2.0", id, method, params });
      return await next((message) => message.id === id);
    },
  };
}
