import { once } from "node:events";
import { createServer, type IncomingMessage, request as requestOf, type Server, type ServerResponse } from "node:http";
import { connect, isIP, type LookupFunction, type Socket } from "node:net";
import { type Duplex, pipeline, Transform } from "node:stream";
import { type EgressTarget, formatEgressHost, formatEgressTarget, parseEgressTarget } from "../domain/egress-rule.ts";
import type { EgressEvent, EgressVerdict } from "../domain/egress-event.ts";
import { formatIpAddress, parseIpAddress } from "../domain/ip-address.ts";
import { readOpening } from "./client-hello.ts";
import { createEgressDecider, type EgressOutside } from "./egress-decision.ts";
import type { EgressGrant } from "./egress-grant.ts";

/** How long each step of a connection may take. */
export type EgressTimes = { readonly headMs: number; readonly connectMs: number; readonly idleMs: number };

const egressTimes: EgressTimes = { headMs: 15_000, connectMs: 10_000, idleMs: 120_000 };

export type EgressProxyOptions = {
  readonly outside: EgressOutside;
  readonly times?: EgressTimes | undefined;
  readonly onEvent: (event: EgressEvent) => void;
};

export type EgressProxy = {
  /** Listens on this path, which must not exist. */
  listen(path: string): Promise<void>;
  /** Ends every connection. */
  close(): Promise<void>;
};

const HTTP_PORT = 80;
const HTTPS_PORT = 443;
const MAX_HEAD_BYTES = 32 * 1024;
/** Of TLS: the server refuses to go on (`access_denied`), so that the program's library names a reason. */
const ACCESS_DENIED_ALERT = Buffer.from([21, 3, 3, 0, 2, 2, 49]);
/** How long between two addresses of a name; the default of 250 ms gives up on the other side of the world. */
const NEXT_ADDRESS_MS = 2_000;

type Refusal = { readonly verdict: Exclude<EgressVerdict, "allowed">; readonly says: string; readonly address?: string | undefined };
type Allowed = { readonly verdict: "allowed"; readonly target: EgressTarget; readonly addresses: readonly string[] };

const statusOf: Readonly<Record<Refusal["verdict"], number>> = {
  not_listed: 403,
  address: 403,
  name: 502,
  protocol: 400,
  limit: 429,
  unreachable: 502,
};

const refusal = (verdict: Refusal["verdict"], says: string): Refusal => ({ verdict, says });

/**
 * The way out of one sandbox: an HTTP proxy (CONNECT, and absolute-form requests of plain HTTP) that reaches what its grant allows. It
 * never looks a name up twice, sends on no byte before the destination is judged, and answers a refusal with one line that says why.
 * Whoever reaches its socket is the sandbox: there is no secret that a program could give away.
 */
export function createEgressProxy(grant: EgressGrant, { outside, times = egressTimes, onEvent }: EgressProxyOptions): EgressProxy {
  const { limits } = grant;
  const decideTarget = createEgressDecider(grant, outside);
  const open = new Set<Upstream>();
  const clients = new Set<Duplex>();
  /** Connections that carry a tunnel to port 80, whose requests are read. */
  const tunnels = new WeakMap<Duplex, Allowed>();
  /** A connection serves one request: what is sent behind it is not answered. */
  const served = new WeakSet<Duplex>();
  let asked = 0;
  let connecting = 0;
  let [upBytes, downBytes] = [0, 0];

  const told = (
    target: EgressTarget | undefined,
    { verdict, says, address }: Omit<Refusal, "verdict"> & { verdict: EgressVerdict },
  ): void => onEvent({ kind: "decided", target: target === undefined ? "" : formatEgressTarget(target), verdict, says, address });

  const usedUp = (): Refusal | undefined => {
    if (asked > limits.requests) return refusal("limit", `this run has asked for more than ${limits.requests} connections`);
    if (open.size + connecting >= limits.connections)
      return refusal("limit", `this run has ${limits.connections} connections open, the most at once`);
    if (upBytes > limits.upBytes) return refusal("limit", `this run has sent more than ${limits.upBytes} bytes`);
    return downBytes > limits.downBytes ? refusal("limit", `this run has received more than ${limits.downBytes} bytes`) : undefined;
  };

  /** Judges a destination, and tells of a refusal; whoever was allowed is told of when it is reached. */
  const decide = async (asking: EgressTarget | string): Promise<Allowed | Refusal> => {
    asked += 1;
    const target = typeof asking === "string" ? undefined : asking;
    const refused = usedUp() ?? (typeof asking === "string" ? refusal("protocol", asking) : await decideTarget(asking));
    if (refused.verdict === "allowed") return { ...refused, target: asking as EgressTarget };
    told(target, refused);
    return refused;
  };

  /** Counts what a connection has moved since it was last asked, and ends all of them when it is too much. */
  const count = (upstream: Upstream): void => {
    const { socket } = upstream;
    const [up, down] = [socket.bytesWritten, socket.bytesRead];
    [upBytes, downBytes] = [upBytes + up - upstream.upBytes, downBytes + down - upstream.downBytes];
    [upstream.upBytes, upstream.downBytes] = [up, down];
    if (upBytes <= limits.upBytes && downBytes <= limits.downBytes) return;
    told(upstream.target, usedUp() ?? refusal("limit", "this run has moved too many bytes"));
    for (const one of open) one.socket.destroy();
  };

  const reach = async ({ target, addresses }: Allowed): Promise<Upstream | Refusal> => {
    const refused = usedUp();
    connecting += 1;
    const socket = refused ?? (await dial(target, addresses, times.connectMs));
    connecting -= 1;
    if (!("destroy" in socket)) {
      told(target, socket);
      return socket;
    }
    const upstream: Upstream = { target, socket, upBytes: 0, downBytes: 0 };
    open.add(upstream);
    socket.setTimeout(times.idleMs, () => socket.destroy());
    socket.on("error", () => socket.destroy());
    socket.once("close", () => {
      open.delete(upstream);
      count(upstream);
      onEvent({ kind: "ended", target: formatEgressTarget(target), upBytes: upstream.upBytes, downBytes: upstream.downBytes });
    });
    told(target, { verdict: "allowed", says: "allowed", address: socket.remoteAddress });
    return upstream;
  };

  const forward = async (incoming: IncomingMessage, response: ServerResponse): Promise<void> => {
    const client = incoming.socket;
    if (served.has(client)) return void client.destroy();
    served.add(client);
    const decision = tunnels.get(client) ?? (await decide(absoluteTarget(incoming)));
    if (decision.verdict !== "allowed") return answer(response, decision);
    const wrong = hostFault(incoming, decision.target);
    if (wrong !== undefined) told(decision.target, wrong);
    const upstream = wrong ?? (await reach(decision));
    if ("verdict" in upstream) return answer(response, upstream);
    if (client.destroyed) return void upstream.socket.destroy();
    exchange(incoming, response, upstream, () => count(upstream));
  };

  const tunnel = async (incoming: IncomingMessage, client: Socket, head: Buffer): Promise<void> => {
    client.on("error", () => client.destroy());
    if (served.has(client) || tunnels.has(client)) return void client.destroy();
    const hasBody = incoming.headers["content-length"] !== undefined || incoming.headers["transfer-encoding"] !== undefined;
    const asking = hasBody ? "a CONNECT has no body" : parseEgressTarget(incoming.url ?? "");
    const decision = await decide(typeof asking === "string" && !hasBody ? `the destination of a CONNECT ${asking}` : asking);
    if (client.destroyed) return;
    if (decision.verdict !== "allowed") return answerRaw(client, decision);
    if (decision.target.port === HTTP_PORT) {
      // Its requests are read like those that come without a tunnel.
      tunnels.set(client, decision);
      client.write(ESTABLISHED);
      if (head.length > 0) client.unshift(head);
      return void server.emit("connection", client);
    }
    const upstream = await reach(decision);
    if ("verdict" in upstream) return answerRaw(client, upstream);
    if (client.destroyed) return void upstream.socket.destroy();
    client.write(ESTABLISHED);
    if (head.length > 0) client.unshift(head);
    const gate = gateOf(decision.target, (refused) => told(decision.target, refused), client);
    const counting = (): Transform => counted(() => count(upstream));
    pipeline(client, gate, counting(), upstream.socket, () => undefined);
    pipeline(upstream.socket, counting(), client, () => undefined);
  };

  const server: Server = createServer({
    maxHeaderSize: MAX_HEAD_BYTES,
    headersTimeout: times.headMs,
    requestTimeout: 0,
    connectionsCheckingInterval: Math.max(50, Math.ceil(times.headMs / 3)),
  });
  // A connection that has asked for nothing yet counts too; the kernel keeps some more waiting.
  server.maxConnections = limits.connections * 2;
  server.on("connection", (client: Socket) => {
    clients.add(client);
    client.setTimeout(times.idleMs, () => client.destroy());
    client.once("close", () => clients.delete(client));
  });
  server.on("request", (incoming, response) => {
    forward(incoming, response).catch(() => response.destroy());
  });
  server.on("connect", (incoming, client: Socket, head) => {
    tunnel(incoming, client, head).catch(() => client.destroy());
  });
  server.on("clientError", (error: NodeJS.ErrnoException, client) => {
    if (error.code === "ECONNRESET" || !client.writable) return void client.destroy();
    asked += 1;
    const why = error.code === "HPE_HEADER_OVERFLOW" ? "the head of the request is too long" : "this is no HTTP request";
    const refused = refusal("protocol", error.code === "ERR_HTTP_REQUEST_TIMEOUT" ? "the request did not come in time" : why);
    told(tunnels.get(client)?.target, refused);
    answerRaw(client, refused);
  });

  return {
    listen: async (path) =>
      await new Promise((resolve, reject) => {
        server.once("error", reject);
        server.listen(path, () => {
          server.off("error", reject);
          resolve();
        });
      }),
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      const ended = [...open].map(async ({ socket }) => socket.closed || (await once(socket, "close")));
      for (const client of clients) client.destroy();
      for (const { socket } of open) socket.destroy();
      await Promise.all([closed, ...ended]);
    },
  };
}

type Upstream = { readonly target: EgressTarget; readonly socket: Socket; upBytes: number; downBytes: number };

const ESTABLISHED = "HTTP/1.1 200 Connection established\r\n\r\n";

/** Connects to the first of the judged addresses that answers. */
async function dial({ host, port }: EgressTarget, addresses: readonly string[], connectMs: number): Promise<Socket | Refusal> {
  const judged = addresses.map((address) => ({ address, family: isIP(address) }));
  const lookup = ((_name: string, _options: object, done: (error: null, found: typeof judged) => void) =>
    done(null, judged)) as LookupFunction;
  const name = host.kind === "name" ? host.name : (addresses[0] ?? "");
  const socket = connect({
    host: name,
    port,
    lookup,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: NEXT_ADDRESS_MS,
    allowHalfOpen: true,
  });
  const late = setTimeout(() => socket.destroy(Object.assign(new Error("no answer"), { code: "ETIMEDOUT" })), connectMs);
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", reject);
    });
    const reached = parseIpAddress(socket.remoteAddress ?? "");
    if (reached !== undefined && addresses.includes(formatIpAddress(reached))) return socket;
    socket.destroy();
    return refusal("address", "the connection went to another address than the judged one");
  } catch (error) {
    // The error of several addresses carries those of each.
    const { code = "no reason given" } = error as NodeJS.ErrnoException;
    return refusal("unreachable", `${formatEgressHost(host)}:${port} could not be reached (${code})`);
  } finally {
    clearTimeout(late);
  }
}

/** Where a request of plain HTTP wants to go, from its absolute URL; never by way of a URL parser, which would read odd addresses. */
function absoluteTarget({ url = "" }: IncomingMessage): EgressTarget | string {
  const [, scheme, authority = ""] = /^([a-z][a-z0-9+.-]*):\/\/([^/?#]*)/i.exec(url) ?? [];
  if (scheme === undefined) return "this is a proxy: it takes CONNECT and absolute URLs";
  if (scheme.toLowerCase() !== "http") return "only http: URLs are requested of this proxy, others go through a CONNECT";
  if (authority.includes("@")) return "a URL with a user's name or password is not passed on";
  const target = parseEgressTarget(authority, HTTP_PORT);
  return typeof target === "string" ? `the URL's host ${target}` : target;
}

/** The request's own words on where it goes: the server behind the judged address must read the same name. */
function hostFault({ rawHeaders, url = "" }: IncomingMessage, target: EgressTarget): Refusal | undefined {
  const hosts = rawHeaders.filter((_, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === "host");
  const named = hosts.length === 1 ? parseEgressTarget(hosts[0] ?? "", HTTP_PORT) : "is missing or given twice";
  if (typeof named === "string" || formatEgressTarget(named) !== formatEgressTarget(target))
    return refusal("protocol", `the Host header is not ${formatEgressTarget(target)}`);
  if (target.port === HTTPS_PORT) return refusal("protocol", "port 443 takes TLS only, through a CONNECT");
  if (url.includes("#")) return refusal("protocol", "a URL that is requested has no fragment");
  return undefined;
}

/** What concerns one connection only (RFC 9110 §7.6.1), with what is ours. */
const hopHeaders = new Set(
  "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect http2-settings".split(
    " ",
  ),
);

/** Flat, as Node gives and takes them: repeated ones stay apart. */
function endToEnd(rawHeaders: readonly string[], connection: string | undefined): string[] {
  const named = new Set((connection ?? "").split(",").map((name) => name.trim().toLowerCase()));
  return rawHeaders.flatMap((name, index) => {
    const isName = index % 2 === 0;
    const lower = name.toLowerCase();
    return isName && !hopHeaders.has(lower) && !named.has(lower) ? [name, rawHeaders[index + 1] ?? ""] : [];
  });
}

/** One request and its answer. Both are read and written anew, so that nothing in them can be two requests to one reader and one to another. */
function exchange(incoming: IncomingMessage, response: ServerResponse, { socket }: Upstream, count: () => void): void {
  const { method = "GET", url = "", headers } = incoming;
  const path = url.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, "");
  const kept = endToEnd(incoming.rawHeaders, headers.connection);
  // Said again, because a body without a length is not framed by itself for every method.
  const framing = headers["transfer-encoding"] === undefined ? [] : ["Transfer-Encoding", "chunked"];
  const outgoing = requestOf({
    createConnection: () => socket,
    method,
    path: path.startsWith("/") || (path === "*" && method === "OPTIONS") ? path : `/${path}`,
    headers: [...kept, ...framing, "Connection", "close"],
    setHost: false,
  });
  const fail = (): void => {
    socket.destroy();
    if (response.headersSent) response.destroy();
    else answer(response, refusal("unreachable", "the server's answer could not be read"));
  };
  outgoing.once("error", fail);
  // A server that goes over to another protocol has its connection closed and nothing else said of it.
  outgoing.once("close", () => !response.headersSent && fail());
  outgoing.once("response", (answered) => {
    response.sendDate = false;
    response.writeHead(answered.statusCode ?? 502, [...endToEnd(answered.rawHeaders, answered.headers.connection), "Connection", "close"]);
    pipeline(answered, counted(count), response, (error) => (error ? fail() : socket.destroy()));
  });
  response.once("close", () => {
    if (!response.writableFinished) socket.destroy();
  });
  pipeline(incoming, counted(count), outgoing, () => undefined);
}

const counted = (count: () => void): Transform =>
  new Transform({
    transform(chunk, _encoding, done) {
      count();
      done(null, chunk);
    },
  });

/** A ClientHello comes in one or two; each one more is looked at from the beginning. */
const MAX_PIECES = 64;

/** Holds what a program says first until it is known what it is. */
function gateOf(target: EgressTarget, onRefused: (refused: Refusal) => void, client: Socket): Transform {
  let held: Buffer = Buffer.alloc(0);
  let pieces = 0;
  let isOpen = false;
  const refuse = (refused: Refusal, done: (error: Error) => void): void => {
    onRefused(refused);
    client.write(ACCESS_DENIED_ALERT, () => done(new Error(refused.says)));
  };
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      if (isOpen) return done(null, chunk);
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      pieces += 1;
      const refused = pieces > MAX_PIECES ? refusal("protocol", "the TLS ClientHello cannot be read") : openingFault(held, target);
      if (refused === "more") return done();
      if (refused !== undefined) return refuse(refused, done);
      isOpen = true;
      done(null, held);
    },
    flush(done) {
      if (isOpen || held.length === 0) done();
      else refuse(refusal("protocol", "the connection ended in its ClientHello"), done);
    },
  });
}

/** A certificate proves a name to the program alone; the server's name in the ClientHello is what we can hold it to. */
function openingFault(bytes: Buffer, { host, port }: EgressTarget): Refusal | "more" | undefined {
  const opening = readOpening(bytes);
  switch (opening.kind) {
    case "more":
      return "more";
    case "other":
      return port === HTTPS_PORT ? refusal("protocol", "port 443 takes TLS only") : undefined;
    case "malformed":
      return refusal("protocol", "the TLS ClientHello cannot be read");
    case "tls": {
      const { serverName, hidesName } = opening;
      if (hidesName) return refusal("protocol", "the TLS ClientHello hides the server's name (ECH)");
      const wanted = host.kind === "name" ? host.name : undefined;
      if (serverName?.toLowerCase().replace(/\.$/, "") === wanted) return undefined;
      return refusal("protocol", `the TLS server name is not ${wanted ?? "left out, as for an address"}`);
    }
  }
}

/** Some clients show the body, some the reason phrase. */
const lineOf = ({ says }: Refusal): string => `openclaw: ${says}`;

const headersOf = ({ verdict }: Refusal): string[] => ["Content-Type", "text/plain", "Connection", "close", "X-OpenClaw-Egress", verdict];

function answer(response: ServerResponse, refused: Refusal): void {
  if (response.headersSent || response.destroyed) return void response.destroy();
  const body = `${lineOf(refused)}\n`;
  response.sendDate = false;
  response.writeHead(statusOf[refused.verdict], lineOf(refused), [...headersOf(refused), "Content-Length", String(body.length)]);
  response.end(body);
}

function answerRaw(client: Duplex, refused: Refusal): void {
  if (client.destroyed) return;
  const body = `${lineOf(refused)}\n`;
  const flat = [...headersOf(refused), "Content-Length", String(body.length)];
  const headers = flat.flatMap((name, index) => (index % 2 === 0 ? [`${name}: ${flat[index + 1]}\r\n`] : [])).join("");
  // Not destroyed at once: what is still coming in would take the answer with it.
  client.end(`HTTP/1.1 ${statusOf[refused.verdict]} ${lineOf(refused)}\r\n${headers}\r\n${body}`);
  client.resume();
}
