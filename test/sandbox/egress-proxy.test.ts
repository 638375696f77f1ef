import { once } from "node:events";
import { rmSync, writeFileSync } from "node:fs";
import { request as requestOf } from "node:http";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { refuseAddress } from "../../domain/address-class.ts";
import type { EgressEvent } from "../../domain/egress-event.ts";
import { createNameResolver } from "../../sandbox/name-resolver.ts";
import {
  canServeWellKnownPorts,
  certificate,
  clientHello,
  fresh,
  type Listener,
  listenOn,
  okAnswer,
  ownAddress,
  type ProxyStage,
  type ProxyStageOptions,
  readToEnd,
  readUntil,
  recordsOf,
  serverName,
  startProxy,
} from "./egress-stage.ts";

let web: Listener;
/** Its port is allowed for the name `web.test` only, which does not resolve to its address. */
let evil: Listener;
const open: (() => Promise<void>)[] = [];

beforeAll(async () => {
  // One answer for each request that has come whole, as far as its head tells.
  web = await listenOn({ answer: (request) => (/\r\n\r\n/.test(request) ? okAnswer(`seen ${request.split(" ")[1]}`) : undefined) });
  evil = await listenOn({ address: ownAddress });
});
afterAll(async () => {
  await web.close();
  await evil.close();
});
afterEach(async () => {
  for (const close of open.splice(0)) await close();
});

const names: Record<string, readonly string[]> = {
  "web.test": ["127.0.0.1"],
  "a.web.test": ["127.0.0.1"],
  "evil.test": [ownAddress],
  "inside.test": ["10.1.2.3"],
  "metadata.test": ["169.254.169.254"],
  "mapped.test": ["::ffff:169.254.169.254"],
  "mixed.test": ["93.184.216.34", "10.0.0.1"],
  "nowhere.test": [],
  "odd.test": ["not an address"],
};

async function stage(options: Partial<ProxyStageOptions> = {}): Promise<ProxyStage> {
  const started = await startProxy({
    names,
    rules: [`web.test:${web.port}`, `*.web.test:${web.port}`, "169.254.169.254:80", ...Object.keys(names).map((name) => `${name}:8`)],
    ...options,
  });
  open.push(started.close);
  return started;
}

/** However slow the machine. */
const poll: typeof expect.poll = (read, options) => expect.poll(read, { timeout: 30_000, ...options });
const statusOf = (answer: string): number => Number(/^HTTP\/1\.1 (\d{3}) /.exec(answer)?.[1] ?? 0);
const get = (url: string, host: string, more = ""): string => `GET ${url} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`;
const verdicts = (events: readonly EgressEvent[]): string[] => events.flatMap((event) => (event.kind === "decided" ? [event.verdict] : []));
const web_ = (): string => `web.test:${web.port}`;

describe("what is allowed gets there", () => {
  test("a request of plain HTTP, without what concerns the proxy alone", async () => {
    const proxy = await stage();
    fresh(web);

    const answer = await proxy.say(
      get(
        `http://WEB.test:${web.port}/a?b=c`,
        web_(),
        "Proxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nAccept: a\r\nAccept: b\r\n",
      ),
    );

    expect(statusOf(answer)).toBe(200);
    expect(answer).toMatch(/seen \/a\?b=c$/);
    const [sent] = fresh(web);
    expect(sent).toMatch(/^GET \/a\?b=c HTTP\/1\.1\r\n/);
    expect(sent?.match(/^(\S+):/gm)).toEqual(["Host:", "Accept:", "Accept:", "Connection:"]);
    await poll(() => proxy.events).toHaveLength(2);
    expect(proxy.events).toMatchObject([
      { kind: "decided", target: web_(), verdict: "allowed", address: "127.0.0.1" },
      { kind: "ended", target: web_(), upBytes: sent?.length, downBytes: okAnswer("seen /a?b=c").length },
    ]);
  });

  test("a tunnel, both ways, also when one of them has ended", async () => {
    const server = await listenOn({ answer: () => undefined, halfOpen: true });
    open.push(server.close);
    const proxy = await stage({ rules: [`web.test:${server.port}`] });
    const client = proxy.open();
    client.write(`CONNECT web.test:${server.port} HTTP/1.1\r\nHost: web.test:${server.port}\r\n\r\nhel`);
    await readUntil(client, /200 Connection established\r\n\r\n/);
    client.end("lo");

    await poll(() => [...server.sockets].map(({ readableEnded }) => readableEnded)).toEqual([true]);
    expect(server.received).toEqual(["hello"]);
    for (const socket of server.sockets) socket.end("late words");

    expect(await readToEnd(client)).toBe("late words");
    await poll(() => proxy.events.at(-1)).toMatchObject({ kind: "ended", upBytes: 5, downBytes: 10 });
  });

  test("a body with a length, one in chunks, and a large answer", async () => {
    const big = "x".repeat(3_000_000);
    const server = await listenOn({
      answer: (request) => (request.endsWith("0\r\n\r\n") || request.endsWith("body") ? okAnswer(big) : undefined),
    });
    open.push(server.close);
    const proxy = await stage({ rules: [`web.test:${server.port}`] });
    const post = (more: string): string => `POST http://web.test:${server.port}/ HTTP/1.1\r\nHost: web.test:${server.port}\r\n${more}`;

    expect((await proxy.say(post("Content-Length: 4\r\n\r\nbody"))).length).toBeGreaterThan(big.length);
    expect((await proxy.say(post("Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"))).length).toBeGreaterThan(big.length);
    expect(server.received[0]).toMatch(/Content-Length: 4\r\n[^]*\r\n\r\nbody$/);
    expect(server.received[1]).toMatch(/\r\n\r\n4\r\nbody\r\n0\r\n\r\n$/);
  });

  test("a name below a wildcard, at any depth, and of several addresses one that answers", async () => {
    const proxy = await stage({ names: { ...names, "a.b.web.test": ["127.0.0.2", "127.0.0.1"] } });

    expect(statusOf(await proxy.say(get(`http://a.b.web.test:${web.port}/`, `a.b.web.test:${web.port}`)))).toBe(200);
    expect(proxy.events[0]).toMatchObject({ verdict: "allowed", address: "127.0.0.1" });
  });

  test("TLS whose server name is the destination's, end to end", async () => {
    const server = await listenOn({ tls: true, answer: () => okAnswer("over TLS") });
    open.push(server.close);
    const proxy = await stage({ rules: [`*.web.test:${server.port}`] });
    const tunnel = requestOf({ socketPath: proxy.path, method: "CONNECT", path: `a.web.test:${server.port}`, agent: false });
    tunnel.end();
    const [, socket] = (await once(tunnel, "connect")) as [unknown, Socket];
    const client = connectTls({ socket, servername: "a.web.test", ca: certificate().cert });
    client.write(get("/", "a.web.test"));

    expect(await readUntil(client, /over TLS/)).toContain("200 OK");
    expect(client.authorized).toBe(true);
    client.destroy();
  });

  test("a server that speaks first, on a port that is not 443", async () => {
    const server = await listenOn();
    open.push(server.close);
    const proxy = await stage({ rules: [`web.test:${server.port}`] });
    const client = proxy.open();
    client.write(`CONNECT web.test:${server.port} HTTP/1.1\r\n\r\n`);
    await readUntil(client, /established\r\n\r\n/);
    const [socket] = [...server.sockets] as [Socket];
    socket.write("220 hello\r\n");

    expect(await readUntil(client, /hello/)).toBe("220 hello\r\n");
    client.destroy();
  });
});

/** Each is a whole connection's bytes: name, what is sent, status, verdicts. `W` stands for web's port, `E` for the other server's. */
const hostile: readonly (readonly [name: string, bytes: string, status: number, verdicts: readonly string[]])[] = [
  ["a name that is not listed", "GET http://evil.test:E/ HTTP/1.1\r\nHost: evil.test:E\r\n\r\n", 403, ["not_listed"]],
  ["a tunnel to a name that is not listed", "CONNECT evil.test:E HTTP/1.1\r\nHost: evil.test:E\r\n\r\n", 403, ["not_listed"]],
  ["another port of a listed name", "CONNECT web.test:22 HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["plain HTTP to the default port of a listed name", "GET http://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n", 403, ["not_listed"]],
  ["a name that ends like a listed one", "CONNECT evilweb.test:W HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["a name that begins like a listed one", "CONNECT web.test.evil.test:W HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["the address of a listed name", "CONNECT 127.0.0.1:W HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["localhost", "CONNECT localhost:W HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["the loopback of IPv6", "CONNECT [::1]:W HTTP/1.1\r\n\r\n", 403, ["not_listed"]],
  ["an address as one number", "CONNECT 2130706433:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["an address in hexadecimal", "CONNECT 0x7f000001:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["an address in octal", "CONNECT 0177.0.0.1:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a short address", "CONNECT 127.1:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a URL with an address as one number", "GET http://2130706433:W/ HTTP/1.1\r\nHost: 2130706433:W\r\n\r\n", 400, ["protocol"]],
  ["a URL with an address of full-width digits", "GET http://\uFF11\uFF12\uFF17.0.0.1:W/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, ["protocol"]],
  ["a host in percent signs", "GET http://%77eb.test:W/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a zone", "CONNECT [fe80::1%25eth0]:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["an empty label", "CONNECT web..test:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["two dots at the end", "CONNECT web.test..:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a wildcard", "CONNECT *.web.test:W HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["no port", "CONNECT web.test HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["two ports", "CONNECT web.test:W:E HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a port beyond the last", "CONNECT web.test:99999 HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a URL as a tunnel's destination", "CONNECT http://web.test:W/ HTTP/1.1\r\n\r\n", 400, ["protocol"]],
  ["a listed metadata address", "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 403, ["address"]],
  ["a name of a metadata address", "CONNECT metadata.test:8 HTTP/1.1\r\n\r\n", 403, ["address"]],
  ["a name of one mapped into IPv6", "CONNECT mapped.test:8 HTTP/1.1\r\n\r\n", 403, ["address"]],
  ["a name of a private address", "CONNECT inside.test:8 HTTP/1.1\r\n\r\n", 403, ["address"]],
  ["a name of a public and a private address", "CONNECT mixed.test:8 HTTP/1.1\r\n\r\n", 403, ["address"]],
  ["a name that resolves to no address", "CONNECT odd.test:8 HTTP/1.1\r\n\r\n", 403, ["address"]],
  ["a name without addresses", "CONNECT nowhere.test:8 HTTP/1.1\r\n\r\n", 502, ["name"]],
  ["a listed name that does not exist", "CONNECT gone.web.test:W HTTP/1.1\r\n\r\n", 502, ["name"]],
  ["a Host header of another name", "GET http://web.test:W/ HTTP/1.1\r\nHost: evil.test:E\r\n\r\n", 400, ["protocol"]],
  ["a Host header of another port", "GET http://web.test:W/ HTTP/1.1\r\nHost: web.test\r\n\r\n", 400, ["protocol"]],
  ["two Host headers", "GET http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nHost: evil.test:E\r\n\r\n", 400, ["protocol"]],
  ["no Host header", "GET http://web.test:W/ HTTP/1.0\r\n\r\n", 400, ["protocol"]],
  ["an empty Host header", "GET http://web.test:W/ HTTP/1.1\r\nHost:\r\n\r\n", 400, ["protocol"]],
  ["a user in the URL", "GET http://web.test:W@evil.test:E/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a user before a listed name", "GET http://me:secret@web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a backslash before another host", "GET http://web.test:W\\@evil.test:E/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a fragment before another host", "GET http://web.test:W#@evil.test:E/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a path in front of the authority", "GET http:/web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a request for the proxy itself", "GET / HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["https without a tunnel", "GET https://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["ftp", "GET ftp://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  ["file", "GET file:///etc/passwd HTTP/1.1\r\nHost: web.test:W\r\n\r\n", 400, ["protocol"]],
  [
    "a length and chunks",
    "POST http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    ["protocol"],
  ],
  [
    "two lengths",
    "POST http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbodyx",
    400,
    ["protocol"],
  ],
  ["a negative length", "POST http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nContent-Length: -1\r\n\r\n", 400, ["protocol"]],
  [
    "chunks that are not last",
    "POST http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    400,
    ["protocol"],
  ],
  ["a folded header", "GET http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nX: a\r\n b\r\n\r\n", 400, ["protocol"]],
  ["a blank before the colon", "GET http://web.test:W/ HTTP/1.1\r\nHost : web.test:W\r\n\r\n", 400, ["protocol"]],
  ["a NUL in a header", "GET http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nX: a\0b\r\n\r\n", 400, ["protocol"]],
  [
    "a line feed alone in a header",
    "GET http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nX: a\nHost: evil.test:E\r\n\r\n",
    400,
    ["protocol"],
  ],
  ["no HTTP at all", "\x16\x03\x01\x00\x05hello", 400, ["protocol"]],
  ["HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ["protocol"]],
  ["a tunnel with a body", "CONNECT web.test:W HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", 400, ["protocol"]],
  ["a tunnel in chunks", "CONNECT web.test:W HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, ["protocol"]],
  ["a head that is too long", `GET http://web.test:W/ HTTP/1.1\r\nHost: web.test:W\r\nX: ${"x".repeat(40_000)}\r\n\r\n`, 400, ["protocol"]],
  ["a URL that is too long", `GET http://web.test:W/${"x".repeat(40_000)} HTTP/1.1\r\nHost: web.test:W\r\n\r\n`, 400, ["protocol"]],
  ["nothing", "\r\n\r\n", 0, []],
];

describe("what is not allowed gets nowhere", () => {
  test("there are at least forty cases", () => {
    expect(hostile.length).toBeGreaterThanOrEqual(40);
  });

  test.each(hostile)("%s", async (_name, bytes, status, expected) => {
    const proxy = await stage();
    fresh(web);
    fresh(evil);
    const client = proxy.open();
    client.end(Buffer.from(bytes.replaceAll(/(?<=:)W/g, String(web.port)).replaceAll(/(?<=:)E/g, String(evil.port)), "utf8"));

    const answer = await readToEnd(client);

    expect(statusOf(answer), answer.slice(0, 300)).toBe(status);
    if (status !== 0) expect(answer).toMatch(/\r\n\r\nopenclaw: [^\r\n]+\n$/);
    expect(verdicts(proxy.events)).toEqual(expected);
    expect([...fresh(web), ...fresh(evil)]).toEqual([]);
  });

  test("the answer names the destination and the reason on its first line, where programs look", async () => {
    const proxy = await stage();

    const answer = await proxy.say("CONNECT Evil.test.:443 HTTP/1.1\r\n\r\n");

    expect(answer).toMatch(/^HTTP\/1\.1 403 openclaw: evil\.test:443 is not on the network allow-list of this sandbox\r\n/);
    expect(answer).toMatch(/\r\nX-OpenClaw-Egress: not_listed\r\n/);
  });

  test("a name is resolved once for each request, and only what was judged is connected to", async () => {
    let asked = 0;
    // The second answer would be another place: nobody asks for it.
    const resolve = async (): Promise<readonly string[]> => ((asked += 1) % 2 === 1 ? ["127.0.0.1"] : ["169.254.169.254"]);
    const proxy = await stage({ outside: { resolve } });

    const first = await proxy.say(get(`http://${web_()}/`, web_()));
    const second = await proxy.say(get(`http://${web_()}/`, web_()));

    expect([statusOf(first), statusOf(second), asked]).toEqual([200, 403, 2]);
    expect(second).not.toContain("169.254");
    expect(proxy.events.find((event) => event.kind === "decided" && event.verdict === "address")).toMatchObject({
      address: "169.254.169.254",
    });
  });

  test("a redirect is the program's to follow, and no way in", async () => {
    const server = await listenOn({
      answer: () => "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n",
    });
    open.push(server.close);
    const proxy = await stage({ rules: [`web.test:${server.port}`] });

    const answer = await proxy.say(get(`http://web.test:${server.port}/`, `web.test:${server.port}`));
    const location = /Location: (\S+)/.exec(answer)?.[1] ?? "";

    expect(location).toBe("http://169.254.169.254/latest");
    expect(statusOf(await proxy.say(get(location, "169.254.169.254")))).toBe(403);
  });

  test("what is hidden in the body of a request stays its body", async () => {
    const proxy = await stage();
    const hidden = "POST /hidden HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 0\r\n\r\n";
    fresh(web);

    await proxy.say(
      get(`http://${web_()}/`, web_(), "Transfer-Encoding: chunked\r\n").concat(`${hidden.length.toString(16)}\r\n${hidden}\r\n0\r\n\r\n`),
    );

    const [sent = ""] = fresh(web);
    const [head = "", ...rest] = sent.split("\r\n\r\n");
    expect(head).toMatch(/\r\nTransfer-Encoding: chunked(\r\n|$)/);
    expect(rest.join("\r\n\r\n")).toBe(`${hidden.length.toString(16)}\r\n${hidden}\r\n0\r\n\r\n`);
  });

  test.each([
    ["a request", () => get(`http://evil.test:${evil.port}/`, `evil.test:${evil.port}`)],
    ["an allowed request", () => get(`http://${web_()}/second`, web_())],
    ["a tunnel", () => `CONNECT ${web_()} HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n\r\n`],
  ])("%s behind the first one of a connection is not served", async (_name, second) => {
    const proxy = await stage();
    fresh(web);

    await proxy.say(get(`http://${web_()}/first`, web_()) + second());

    expect(fresh(web).join("")).not.toContain("/second");
    expect(verdicts(proxy.events).filter((verdict) => verdict === "allowed").length).toBeLessThanOrEqual(1);
  });

  test("an answer that is no HTTP, or goes over to another protocol, is not passed on", async () => {
    for (const said of ["garbage\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nraw"]) {
      const server = await listenOn({ answer: () => said });
      open.push(server.close);
      const proxy = await stage({ rules: [`web.test:${server.port}`] });

      const answer = await proxy.say(get(`http://web.test:${server.port}/`, `web.test:${server.port}`));

      expect(statusOf(answer)).toBe(502);
      expect(answer).not.toMatch(/garbage|raw$/);
    }
  });
});

describe("TLS", () => {
  const hello = (name: string | undefined, more: readonly (readonly [number, Buffer])[] = []): Buffer =>
    clientHello([...(name === undefined ? [] : [serverName(name)]), ...more]);
  const ACCESS_DENIED = "\x15\x03\x03\x00\x02\x02\x31";

  async function tunnelled(target: string, bytes: Buffer, options: Partial<ProxyStageOptions> = {}) {
    const proxy = await stage({ rules: [`web.test:${web.port}`, `127.0.0.1:${web.port}`], ...options });
    fresh(web);
    const client = proxy.open();
    client.write(`CONNECT ${target}:${web.port} HTTP/1.1\r\n\r\n`);
    await readUntil(client, /established\r\n\r\n/);
    client.end(bytes);
    const answer = await readToEnd(client);
    return { answer, sent: fresh(web).join(""), verdicts: verdicts(proxy.events) };
  }

  test.each([
    ["another server's name", () => hello("evil.test")],
    ["a name below", () => hello("a.web.test")],
    ["no name", () => hello(undefined)],
    ["a hidden name", () => hello("web.test", [[0xfe0d, Buffer.alloc(40)]])],
    ["two names", () => clientHello([serverName("web.test", "evil.test")])],
    ["an end in the middle", () => hello("web.test").subarray(0, 60)],
    ["an empty record", () => Buffer.from([22, 3, 1, 0, 0])],
    ["very many records", () => recordsOf(hello("web.test").subarray(5), 1)],
  ])("%s is refused with an alert, and no byte goes through", async (_name, bytes) => {
    expect(await tunnelled("web.test", bytes())).toEqual({ answer: ACCESS_DENIED, sent: "", verdicts: ["allowed", "protocol"] });
  });

  test("a hello that drips in goes through when it is whole, and one that never is does not", async () => {
    const proxy = await stage({ times: { idleMs: 4_000 } });
    fresh(web);
    const bytes = recordsOf(hello("web.test").subarray(5), 40);
    const client = proxy.open();
    client.setNoDelay(true);
    client.write(`CONNECT ${web_()} HTTP/1.1\r\n\r\n`);
    await readUntil(client, /established\r\n\r\n/);
    client.write(bytes.subarray(0, 50));
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(web.received.at(-1)).toBe("");
    client.write(bytes.subarray(50));

    await poll(() => web.received.at(-1)?.length).toBe(bytes.length);
    expect(await readToEnd(client)).toBe(""); // the idle time ends it
    await poll(() => proxy.events.at(-1)?.kind).toBe("ended");
  });

  test("for an address no name is asked for, or the hello is refused", async () => {
    expect((await tunnelled("127.0.0.1", hello("web.test"))).sent).toBe("");
    expect((await tunnelled("127.0.0.1", hello(undefined))).sent).toHaveLength(hello(undefined).length);
  });

  test("on another port than 443 what is no TLS passes", async () => {
    expect((await tunnelled("web.test", Buffer.from("SSH-2.0-x\r\n"))).sent).toBe("SSH-2.0-x\r\n");
  });
});

describe.runIf(canServeWellKnownPorts)("the well-known ports", () => {
  const inTunnel = async (port: 80 | 443, bytes: string | Buffer) => {
    const server = await listenOn({
      address: ownAddress,
      port,
      answer: (request) => (/\r\n\r\n/.test(request) ? okAnswer("inner") : undefined),
    });
    open.push(server.close);
    const proxy = await stage({ rules: ["web.test:80", "web.test:443"], names: { "web.test": [ownAddress] } });
    const client = proxy.open();
    client.write(`CONNECT web.test:${port} HTTP/1.1\r\n\r\n`);
    await readUntil(client, /established\r\n\r\n/);
    client.write(bytes);
    const answer = await readToEnd(client);
    return { answer, sent: server.received.join(""), verdicts: verdicts(proxy.events), lookups: proxy.lookups };
  };

  test("port 443 takes TLS only", async () => {
    for (const bytes of ["GET / HTTP/1.1\r\nHost: web.test\r\n\r\n", "SSH-2.0-x\r\n", "\0"]) {
      expect(await inTunnel(443, bytes)).toMatchObject({ sent: "", verdicts: ["allowed", "protocol"] });
      await open.shift()?.();
      await open.shift()?.();
    }
    const proxy = await stage({ rules: ["web.test:443"], names: { "web.test": [ownAddress] } });
    expect(statusOf(await proxy.say(get("http://web.test:443/", "web.test:443")))).toBe(400);
  });

  test("a tunnel to port 80 is HTTP to the tunnel's own host, one request of it", async () => {
    const good = await inTunnel(80, get("/x", "web.test"));
    expect(good).toMatchObject({ answer: expect.stringMatching(/200 OK[^]*inner$/), verdicts: ["allowed"], lookups: ["web.test"] });
    expect(good.sent).toMatch(/^GET \/x HTTP\/1\.1\r\nHost: web\.test\r\n/);
  });

  test.each([
    ["another host", get("/", "evil.test"), ["protocol"]],
    ["TLS", clientHello([serverName("web.test")]), ["protocol"]],
    ["another protocol", "SSH-2.0-x\r\n\r\n", ["protocol"]],
    ["a tunnel in the tunnel", "CONNECT evil.test:443 HTTP/1.1\r\n\r\n", []],
    [
      "a length and chunks",
      "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      ["protocol"],
    ],
  ])("in a tunnel to port 80 %s is refused", async (_name, bytes, expected) => {
    expect(await inTunnel(80, bytes)).toMatchObject({ sent: "", verdicts: expected });
  });

  test("in a tunnel to port 80 a second request is not served", async () => {
    const { sent } = await inTunnel(80, get("/first", "web.test") + get("/second", "evil.test"));
    expect(sent).not.toContain("second");
  });
});

describe("limits", () => {
  const silent = async () => {
    const server = await listenOn({ answer: () => undefined });
    open.push(server.close);
    return server;
  };
  const tunnel = async (proxy: ProxyStage, port: number): Promise<Socket> => {
    const client = proxy.open();
    client.write(`CONNECT web.test:${port} HTTP/1.1\r\n\r\n`);
    await readUntil(client, /\r\n\r\n/);
    return client;
  };

  test("connections at once", async () => {
    const server = await silent();
    const proxy = await stage({ rules: [`web.test:${server.port}`], limits: { connections: 2 } });
    const [one] = await Promise.all([tunnel(proxy, server.port), tunnel(proxy, server.port)]);

    const refused = await proxy.say(`CONNECT web.test:${server.port} HTTP/1.1\r\n\r\n`);
    expect(refused).toMatch(/^HTTP\/1\.1 429 openclaw: this run has 2 connections open, the most at once\r\n/);

    one?.destroy();
    await poll(() => proxy.events.filter(({ kind }) => kind === "ended")).toHaveLength(1);
    (await tunnel(proxy, server.port)).destroy();
  });

  test("a flood of connections is dropped before it is read", async () => {
    const proxy = await stage({ limits: { connections: 4 } });

    const sockets = Array.from({ length: 60 }, () => proxy.open().resume());
    await poll(() => sockets.filter(({ readableEnded }) => readableEnded).length, { timeout: 30_000 }).toBeGreaterThanOrEqual(52);
    for (const socket of sockets) socket.destroy();

    await poll(async () => statusOf(await proxy.say(get(`http://${web_()}/`, web_()))), { timeout: 30_000 }).toBe(200);
  });

  test("destinations asked for, the refused ones too", async () => {
    const proxy = await stage({ limits: { requests: 3 } });
    const ask = async (target: string) => statusOf(await proxy.say(`CONNECT ${target} HTTP/1.1\r\n\r\n`));

    expect([await ask("evil.test:1"), await ask("nonsense"), await ask("evil.test:1"), await ask(web_())]).toEqual([403, 400, 403, 429]);
  });

  test("bytes received, over all connections: the one that goes over ends all", async () => {
    const server = await listenOn({ answer: () => okAnswer("x".repeat(300_000)) });
    open.push(server.close);
    const proxy = await stage({ rules: [`web.test:${server.port}`], limits: { downBytes: 500_000 } });
    const fetchAll = async () => (await proxy.say(get(`http://web.test:${server.port}/`, `web.test:${server.port}`))).length;

    expect(await fetchAll()).toBeGreaterThan(300_000);
    expect(await fetchAll()).toBeLessThan(300_000);
    expect(statusOf(await proxy.say(`CONNECT web.test:${server.port} HTTP/1.1\r\n\r\n`))).toBe(429);
    expect(verdicts(proxy.events)).toContain("limit");
  });

  test("bytes sent, also in a tunnel", async () => {
    const server = await silent();
    const proxy = await stage({ rules: [`web.test:${server.port}`], limits: { upBytes: 100_000 } });
    const client = await tunnel(proxy, server.port);
    const closed = new Promise((resolve) => client.once("close", resolve));
    client.resume();

    for (let sent = 0; sent < 50 && !client.destroyed; sent += 1) {
      client.write("x".repeat(16_384));
      await new Promise((resolve) => setImmediate(resolve));
    }

    await closed;
    expect(server.received.join("").length).toBeLessThan(400_000);
  });

  test("a head that drips, and one that never ends, are cut", async () => {
    const proxy = await stage({ times: { headMs: 300 } });
    const client = proxy.open();
    client.write("GET http://web.test/ HTTP/1.1\r\n");
    const drip = setInterval(() => client.writable && client.write("X: y\r\n"), 50);

    const answer = await readToEnd(client);
    clearInterval(drip);

    expect(statusOf(answer)).toBe(400);
    expect(answer).toContain("did not come in time");
  });

  test("a tunnel in which nothing happens ends, and so does a server that never answers", async () => {
    const server = await silent();
    const proxy = await stage({ rules: [`web.test:${server.port}`], times: { idleMs: 2_000 } });

    expect(await readToEnd(await tunnel(proxy, server.port))).toBe("");
    const answer = await proxy.say(get(`http://web.test:${server.port}/`, `web.test:${server.port}`));
    expect([0, 502]).toContain(statusOf(answer));
  });

  test("a server that is not there is told of with the reason", async () => {
    const gone = await listenOn();
    await gone.close();
    const proxy = await stage({ rules: [`web.test:${gone.port}`] });

    const answer = await proxy.say(`CONNECT web.test:${gone.port} HTTP/1.1\r\n\r\n`);

    expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 502 openclaw: web\\.test:${gone.port} could not be reached \\(ECONNREFUSED\\)\r\n`));
    expect(verdicts(proxy.events)).toEqual(["unreachable"]);
  });

  test("whoever leaves takes the connection to the server along", async () => {
    const server = await silent();
    const proxy = await stage({ rules: [`web.test:${server.port}`] });
    const client = proxy.open();
    client.write(get(`http://web.test:${server.port}/`, `web.test:${server.port}`));
    await poll(() => server.sockets.size).toBe(1);

    client.destroy();

    await poll(() => server.sockets.size).toBe(0);
    await poll(() => proxy.events.at(-1)?.kind).toBe("ended");
  });

  test("the end of the proxy is the end of every connection", async () => {
    const server = await silent();
    const proxy = await stage({ rules: [`web.test:${server.port}`] });
    const client = await tunnel(proxy, server.port);
    const idle = proxy.open();
    await once(idle, "connect");
    const closed = [client, idle].map((socket) => once(socket.resume(), "end"));

    await open.pop()?.();

    await Promise.all(closed);
    await poll(() => server.sockets.size).toBe(0);
    expect(proxy.events.at(-1)).toMatchObject({ kind: "ended" });
    const late = connect(proxy.path);
    expect(await once(late, "error")).toBeDefined();
  });
});

describe("private networks", () => {
  const real = {
    refuse: (address: Parameters<typeof refuseAddress>[0], opened: object) =>
      refuseAddress(address, { allowPrivate: [], ...opened, own: [] }),
  };

  test("loopback is opened by nothing, this machine's own addresses and other private ones by the administrator", async () => {
    const proxy = await stage({ outside: real, allowPrivate: ["10.0.0.0/8"] });

    expect(statusOf(await proxy.say(get(`http://${web_()}/`, web_())))).toBe(403);
    expect(statusOf(await proxy.say("CONNECT metadata.test:8 HTTP/1.1\r\n\r\n"))).toBe(403);
    expect(proxy.events).toMatchObject([
      { verdict: "address", says: expect.stringContaining("loopback"), address: "127.0.0.1" },
      { verdict: "address", says: expect.stringContaining("metadata"), address: "169.254.169.254" },
    ]);
  });
});

describe("names", () => {
  test("are looked up in the hosts file first, under any of a line's names", async () => {
    const hostsFile = join(tmpdir(), `openclaw-hosts-${process.pid}`);
    writeFileSync(
      hostsFile,
      "# comment\n10.0.0.5\tmirror.internal mirror # mine\n::1 v6.internal\nnonsense mirror\n10.0.0.6 mirror.internal\n",
    );
    const resolve = createNameResolver({ hostsFile });

    expect(await resolve("mirror.internal")).toEqual(["10.0.0.5", "10.0.0.6"]);
    expect(await resolve("mirror")).toEqual(["10.0.0.5"]);
    expect(await resolve("v6.internal")).toEqual(["::1"]);
    rmSync(hostsFile);
  });
});
