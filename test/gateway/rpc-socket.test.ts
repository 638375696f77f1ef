import { once } from "node:events";
import { connect } from "node:net";
import { request as httpRequest } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { abuse } from "./rpc-abuse.ts";
import { type RpcStage, openSocket, startRpcStage } from "./rpc-stage.ts";

let stage: RpcStage;
beforeAll(async () => {
  stage = await startRpcStage({ authenticationMs: 1_500, perTenant: 4 });
});
afterAll(async () => await stage.close());

const origin = (): string => stage.url;
const authFrame = (token: string) => ({ type: "auth", token });
const withHeader = async (token = stage.acme.token) => await openSocket(stage.url, { token });

describe("who opens a WebSocket", () => {
  test("says so in the bearer header, or in the first frame", async () => {
    const program = await withHeader();
    const page = await openSocket(stage.url, { origin: origin() });
    page.send(authFrame(stage.acme.token));

    expect(await program.call("health")).toMatchObject({ result: { status: "ok" } });
    expect(await page.call("health")).toMatchObject({ result: { status: "ok" } });
  });

  test("may send on before the first frame has been looked at", async () => {
    const page = await openSocket(stage.url, { origin: origin() });
    page.send(authFrame(stage.acme.token));
    page.send({ jsonrpc: "2.0", id: 1, method: "health" });
    page.send({ jsonrpc: "2.0", id: 2, method: "health" });

    expect(new Set([(await page.next()).id, (await page.next()).id])).toEqual(new Set([1, 2]));
  });

  test("and says nothing in time is closed with 4401", async () => {
    const page = await openSocket(stage.url, { origin: origin() });

    expect(await page.ended).toEqual({ code: 4401 });
  });

  test.each([
    ["another frame", JSON.stringify({ jsonrpc: "2.0", id: 1, method: "health" })],
    ["no JSON", "hello"],
    ["a frame with more in it", JSON.stringify({ type: "auth", token: "tk_a_b", tenant: "globex" })],
    ["a wrong token", JSON.stringify({ type: "auth", token: "tk_acme_00000000000000000000000000000000" })],
    ["a token that is none", JSON.stringify({ type: "auth", token: 7 })],
    ["a huge token", JSON.stringify({ type: "auth", token: "x".repeat(500_000) })],
  ])("with %s first is closed with 4401, and nothing is answered", async (_what, frame) => {
    const page = await openSocket(stage.url, { origin: origin() });
    page.send(frame);
    page.send({ jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:unasked:default", text: "unasked" } });

    expect(await page.ended).toEqual({ code: 4401 });
    expect(stage.asked).not.toContain("unasked");
  });

  test("with a header that lets nobody in is closed with 4401", async () => {
    const key = await stage.addAdmin("root", "all");
    for (const token of ["", "tk_nobody", key]) {
      expect(await (await openSocket(stage.url, { token })).ended).toEqual({ code: 4401 });
    }
  });

  test("from a page of another origin is refused, with a token, too", async () => {
    const { token } = stage.acme;
    for (const foreign of [
      "https://evil.example",
      "null",
      "http://127.0.0.1:1",
      `${stage.url}.evil.example`,
      `${stage.url}/x`,
      "file://",
    ]) {
      expect(await (await openSocket(stage.url, { token, origin: foreign })).ended).toEqual({ status: 403 });
    }
  });

  test("finds no other route that takes one, and leaves nothing open there", async () => {
    const ask = async (path: string, token: string): Promise<string> => {
      const socket = connect(Number(new URL(stage.url).port), "127.0.0.1");
      let answer = "";
      socket.on("data", (chunk) => (answer += chunk.toString()));
      socket.write(
        `GET ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n` +
          "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
      );
      await once(socket, "close"); // by the server
      return answer.slice(0, 12);
    };

    expect(await ask("/nowhere", stage.acme.token)).toBe("HTTP/1.1 404");
    expect(await ask("/rpc/x", stage.acme.token)).toBe("HTTP/1.1 404");
  });
});

describe("a turn that was sent over a socket", () => {
  test("is answered first, told of as it speaks, and once more when it has ended", async () => {
    const client = await withHeader();
    client.send({ jsonrpc: "2.0", id: "s", method: "chat.send", params: { session_id: "api:told:default", text: "tell me of it" } });

    const answer = await client.next();
    const turnId = answer.result?.["turn_id"];
    const told = [await client.next()];
    while (told.at(-1)?.method !== "chat.finished") told.push(await client.next());

    expect(answer.id).toBe("s");
    const deltas = told.slice(0, -1);
    expect(deltas.map(({ method }) => method)).toEqual(deltas.map(() => "chat.delta"));
    expect(deltas.map(({ params }) => params?.["text"]).join("")).toBe("you said tell me of it");
    expect(deltas[0]?.params).toEqual({ turn_id: turnId, session_id: "api:told:default", offset: 0, text: "you " });
    expect(told.at(-1)).toEqual({
      jsonrpc: "2.0",
      method: "chat.finished",
      params: {
        turn_id: turnId,
        session_id: "api:told:default",
        state: "done",
        text: "you said tell me of it",
        model: "test-model",
        finish_reason: "stop",
        usage: { input_tokens: 10, cache_read_tokens: 0, cache_write_tokens: 0, output_tokens: 5, reasoning_tokens: 0 },
        error: null,
      },
    });
  });

  test("is told of as aborted, and aborted by another socket", async () => {
    const [client, other] = [await withHeader(), await withHeader()];
    const { arrived } = stage.hold("abort this one");
    const sent = await client.call("chat.send", { session_id: "api:told-abort:default", text: "abort this one" });
    await arrived;

    await other.call("chat.abort", { turn_id: sent.result?.["turn_id"] });

    expect(await client.next(({ method }) => method === "chat.finished")).toMatchObject({
      params: { state: "aborted", text: null, error: { code: "turn_aborted" } },
    });
  });

  test("is told to its socket only, and goes on without it", async () => {
    const [client, other] = [await withHeader(), await withHeader()];
    const { arrived, release } = stage.hold("my socket goes away");
    const sent = await client.call("chat.send", { session_id: "api:left:default", text: "my socket goes away" });
    await arrived;

    client.socket.close();
    await client.ended;
    release();

    await expect.poll(async () => await stage.stateOf(String(sent.result?.["turn_id"])), { timeout: 20_000 }).toBe("done");
    other.send({ jsonrpc: "2.0", id: "after", method: "health" });
    expect(await other.next()).toMatchObject({ id: "after" });
  });
});

describe("a token that ends", () => {
  test("ends its idle sockets with 4401, and no others", async () => {
    const tenant = await stage.addTenant("rotated");
    const sockets = [await withHeader(tenant.token), await openSocket(stage.url, { origin: origin() })];
    sockets[1]?.send(authFrame(tenant.token));
    for (const socket of sockets) await socket.call("health");
    const bystander = await withHeader();

    await stage.raiseEpoch(tenant);

    for (const socket of sockets) expect(await socket.ended).toEqual({ code: 4401 });
    expect(await bystander.call("health")).toHaveProperty("result");
  });

  test("is no token for the very next frame, although nobody was told", async () => {
    const tenant = await stage.addTenant("silent");
    const client = await withHeader(tenant.token);
    await client.call("health");
    await stage.stack.database.withControl(async (tx) => {
      await tx.execute("update control.tenant_token set revoked_at = now() where tenant_id = $1", [tenant.context.tenantId]);
    });

    client.send({ jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:x:default", text: "after the end" } });

    expect(await client.ended).toEqual({ code: 4401 });
    expect(stage.asked).not.toContain("after the end");
  });

  test("ends no turn", async () => {
    const tenant = await stage.addTenant("mid-turn");
    const client = await withHeader(tenant.token);
    const { arrived, release } = stage.hold("the token ends meanwhile");
    const sent = await client.call("chat.send", { session_id: "api:x:default", text: "the token ends meanwhile" });
    await arrived;

    await stage.raiseEpoch(tenant);
    expect(await client.ended).toEqual({ code: 4401 });
    release();

    await expect.poll(async () => await stage.stateOf(String(sent.result?.["turn_id"]), tenant), { timeout: 20_000 }).toBe("done");
  });
});

describe("what a socket may cost", () => {
  test("a tenant has so many at once, and room again when one closes", async () => {
    const tenant = await stage.addTenant("many");
    const sockets = await Promise.all([1, 2, 3, 4].map(async () => await withHeader(tenant.token)));
    for (const socket of sockets) await socket.call("health");

    expect(await (await withHeader(tenant.token)).ended).toEqual({ code: 1013 });
    expect(await (await withHeader()).call("health")).toHaveProperty("result");
    sockets[0]?.socket.close();
    await sockets[0]?.ended;

    await expect
      .poll(
        async () => {
          const again = await withHeader(tenant.token);
          return await Promise.race([
            again.call("health").then(
              ({ id }) => typeof id,
              () => "refused",
            ),
            again.ended,
          ]);
        },
        { timeout: 20_000 },
      )
      .toBe("string");
  });

  test("bytes are no message, and a frame of more than a megabyte is too large", async () => {
    const bytes = await withHeader();
    bytes.socket.send(Buffer.from('{"jsonrpc":"2.0","id":1,"method":"health"}'));
    const large = await withHeader();
    large.send("x".repeat(1024 * 1024 + 1));

    expect(await bytes.ended).toEqual({ code: 1003 });
    expect(await large.ended).toEqual({ code: 1009 });
    expect(stage.logged).toEqual([]);
  });

  test("a client that does not read is cut off, and the others are answered", async () => {
    const small = await startRpcStage({ waitingBytes: 1024 * 1024 });
    try {
      await small.say("api:slow:default", "begin");
      await small.stack.database.withTenant(small.acme.context, async (tx) => {
        await tx.execute(
          `insert into message (session_id, seq, role, content)
           select 'api:slow:default', 100, 'user', jsonb_build_object('role', 'user', 'content', $1::text)`,
          ["x".repeat(3 * 1024 * 1024)],
        );
      });
      const slow = await openSocket(small.url, { token: small.acme.token });
      slow.socket.pause();
      for (let id = 0; id < 100; id++) {
        slow.send({ jsonrpc: "2.0", id, method: "chat.history", params: { session_id: "api:slow:default" } });
      }
      const other = await openSocket(small.url, { token: small.acme.token });

      expect(await other.call("health")).toHaveProperty("result");
      await expect.poll(() => small.openConnections(), { timeout: 20_000 }).toBe(1);
    } finally {
      await small.close();
    }
  });

  test("a client that does not answer pings is cut off", async () => {
    const pinging = await startRpcStage({ pingMs: 100 });
    try {
      const dead = await openSocket(pinging.url, { token: pinging.acme.token });
      const alive = await openSocket(pinging.url, { token: pinging.acme.token });
      await dead.call("health");
      dead.socket.pause();
      await once(alive.socket, "ping");

      await expect.poll(() => pinging.openConnections(), { timeout: 20_000 }).toBe(1);
      expect(await alive.call("health")).toHaveProperty("result");
    } finally {
      await pinging.close();
    }
  });

  test("many frames at once are all answered, once each", async () => {
    const client = await withHeader();
    const ids = Array.from({ length: 500 }, (_, id) => `f${id}`);
    for (const id of ids) client.send({ jsonrpc: "2.0", id, method: "health" });

    const answered: unknown[] = [];
    while (answered.length < ids.length) answered.push((await client.next()).id);

    expect(new Set(answered)).toEqual(new Set(ids));
  });
});

describe("abuse", () => {
  test("frame by frame is answered by the protocol, and the socket and others stay", async () => {
    const [client, other] = [await withHeader(), await withHeader()];
    for (const [text, code] of abuse) {
      client.send(text);
      const { error } = await client.next();
      expect({ text: text.slice(0, 100), code: error?.code }).toEqual({ text: text.slice(0, 100), code });
    }

    expect(await client.call("health")).toHaveProperty("result");
    expect(await other.call("health")).toHaveProperty("result");
    expect(stage.logged).toEqual([]);
  });

  test("of the protocol below is closed, and nobody else notices", async () => {
    const other = await withHeader();
    const port = Number(new URL(stage.url).port);
    const handshakes: Record<string, string>[] = [
      { "sec-websocket-version": "1" },
      { "sec-websocket-key": "short" },
      { "sec-websocket-key": "" },
      { upgrade: "h2c" },
      { "sec-websocket-extensions": "permessage-deflate; client_max_window_bits=99" },
      { "sec-websocket-protocol": "\u00e9" },
    ];
    for (const more of handshakes) {
      const request = httpRequest({
        port,
        path: "/rpc",
        headers: {
          authorization: `Bearer ${stage.acme.token}`,
          connection: "Upgrade",
          upgrade: "websocket",
          "sec-websocket-version": "13",
          "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
          ...more,
        },
      });
      request.on("error", () => {});
      request.end();
      const status = await Promise.race([
        once(request, "response").then(([response]) => Number((response as { statusCode: number }).statusCode)),
        once(request, "upgrade").then(([response]) => Number((response as { statusCode: number }).statusCode)),
        once(request, "close").then(() => 0),
      ]);
      request.destroy();
      expect(status, JSON.stringify(more)).toBeLessThan(500);
    }
    // Frames that no library sends: reserved bits, an unknown opcode, no mask, a cut UTF-8 character, a huge length.
    const frames = [
      "f1850000000068656c6c6f",
      "8b8000000000",
      "810568656c6c6f",
      "818100000000ff",
      "81ff7fffffffffffffff00000000",
      "8980",
      "88810000000001",
    ];
    for (const hex of frames) {
      const raw = await withHeader();
      (raw.socket as unknown as { _socket: { write(bytes: Buffer): void; end(): void } })._socket.write(Buffer.from(hex, "hex"));
      (raw.socket as unknown as { _socket: { end(): void } })._socket.end();
      expect(await raw.ended).toHaveProperty("code");
    }

    expect(await other.call("health")).toHaveProperty("result");
    expect(stage.logged).toEqual([]);
  });
});
