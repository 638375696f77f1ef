import { execFileSync } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer as createTcpServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import type { EgressEvent } from "../../domain/egress-event.ts";
import type { EgressOutside } from "../../sandbox/egress-decision.ts";
import type { EgressGrant, EgressLimits } from "../../sandbox/egress-grant.ts";
import { createEgressProxy, type EgressTimes } from "../../sandbox/egress-proxy.ts";
import { testOutside } from "./egress-outside.ts";
import { isRoot } from "./sandbox-stage.ts";

/** A loopback address of this test process's own: only root may listen on the well-known ports, and nobody else does on this one. */
export const ownAddress = `127.${randomInt(16, 250)}.${randomInt(1, 250)}.${randomInt(1, 250)}`;
export const canServeWellKnownPorts = isRoot;

export const wideLimits: EgressLimits = { upBytes: 1e9, downBytes: 1e9, connections: 64, requests: 10_000 };

/** A server that keeps what it was sent on each connection, as text, and answers with `answer`. */
export type Listener = {
  readonly port: number;
  readonly received: string[];
  readonly sockets: Set<Socket>;
  close(): Promise<void>;
};

type ListenerOptions = {
  readonly address?: string;
  readonly port?: number;
  readonly answer?: (request: string, socket: Socket) => string | undefined;
  readonly tls?: boolean;
  /** Leaves its own side open when the other one ends. */
  readonly halfOpen?: boolean;
};

export const okAnswer = (body = "ok"): string => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

export async function listenOn({
  address = "127.0.0.1",
  port = 0,
  answer = () => okAnswer(),
  tls = false,
  halfOpen = false,
}: ListenerOptions = {}): Promise<Listener> {
  const received: string[] = [];
  const sockets = new Set<Socket>();
  const serve = (socket: Socket): void => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => undefined);
    const index = received.push("") - 1;
    socket.on("data", (chunk: Buffer) => {
      received[index] += chunk.toString("latin1");
      const said = answer(received[index] ?? "", socket);
      if (said !== undefined && socket.writable) socket.write(said);
    });
  };
  const server: Server = tls ? createTlsServer(certificate(), serve) : createTcpServer({ allowHalfOpen: halfOpen }, serve);
  server.listen(port, address);
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    received,
    sockets,
    async close() {
      const closed = once(server, "close");
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

let made: { readonly key: Buffer; readonly cert: Buffer } | undefined;

/** One key for every name below `test`. */
export function certificate(): { readonly key: Buffer; readonly cert: Buffer } {
  if (made !== undefined) return made;
  const directory = mkdtempSync(join(tmpdir(), "openclaw-egress-tls-"));
  const names = "subjectAltName=DNS:web.test,DNS:*.web.test,DNS:pypi.test,DNS:evil.test";
  execFileSync(
    "openssl",
    `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -days 2 -subj /CN=web.test -addext ${names}`.split(
      " ",
    ),
    { cwd: directory, stdio: "pipe" },
  );
  made = { key: readFileSync(join(directory, "key")), cert: readFileSync(join(directory, "cert")) };
  rmSync(directory, { recursive: true });
  return made;
}

/** What has come to a server since the last time, by connection. */
export function fresh(listener: Listener): string[] {
  const from = seen.get(listener) ?? 0;
  seen.set(listener, listener.received.length);
  return listener.received.slice(from);
}
const seen = new WeakMap<Listener, number>();

export type ProxyStage = {
  readonly path: string;
  readonly events: EgressEvent[];
  readonly lookups: readonly string[];
  /** Sends bytes on a new connection and reads to its end. */
  say(bytes: string | Buffer): Promise<string>;
  open(): Socket;
  close(): Promise<void>;
};

export type ProxyStageOptions = {
  readonly rules: readonly string[];
  readonly names: Readonly<Record<string, readonly string[]>>;
  readonly allowPrivate?: readonly string[];
  readonly limits?: Partial<EgressLimits>;
  readonly times?: Partial<EgressTimes>;
  readonly outside?: Partial<EgressOutside>;
};

export async function startProxy({ rules, names, allowPrivate = [], limits, times, outside }: ProxyStageOptions): Promise<ProxyStage> {
  const directory = mkdtempSync(join(realpathSync(tmpdir()), "openclaw-egress-"));
  const path = join(directory, "proxy.sock");
  const events: EgressEvent[] = [];
  const ground = testOutside(names);
  const grant: EgressGrant = { rules, allowPrivate, limits: { ...wideLimits, ...limits } };
  const proxy = createEgressProxy(grant, {
    outside: { ...ground, ...outside },
    times: { headMs: 60_000, connectMs: 60_000, idleMs: 60_000, ...times },
    onEvent: (event) => void events.push(event),
  });
  await proxy.listen(path);
  const open = (): Socket => {
    const socket = connect({ path, allowHalfOpen: true });
    socket.on("error", () => undefined);
    return socket;
  };
  return {
    path,
    events,
    lookups: ground.lookups,
    open,
    async say(bytes) {
      const socket = open();
      socket.write(bytes);
      return await readToEnd(socket);
    },
    async close() {
      await proxy.close();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

export async function readToEnd(socket: Socket): Promise<string> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => void chunks.push(chunk));
  if (!socket.readableEnded && !socket.destroyed) await Promise.race([once(socket, "end"), once(socket, "close")]);
  socket.destroy();
  return Buffer.concat(chunks).toString("latin1");
}

/** Reads until what came matches. */
export async function readUntil(socket: Socket, wanted: RegExp): Promise<string> {
  let text = "";
  while (!wanted.test(text)) {
    const chunk = socket.read() as Buffer | null;
    if (chunk !== null) text += chunk.toString("latin1");
    else if (socket.readableEnded || socket.destroyed) throw new Error(`the connection ended after: ${text}`);
    else await Promise.race([once(socket, "readable"), once(socket, "end"), once(socket, "close")]);
  }
  return text;
}

/** A ClientHello as a program would send it. `extensions`: type and bytes. */
export function clientHello(extensions: readonly (readonly [number, Buffer])[]): Buffer {
  const short = (value: number): Buffer => Buffer.from([value >> 8, value & 255]);
  const vector = (size: 1 | 2, bytes: Buffer): Buffer =>
    Buffer.concat([size === 1 ? Buffer.from([bytes.length]) : short(bytes.length), bytes]);
  const body = Buffer.concat([
    Buffer.from([3, 3]),
    Buffer.alloc(32, 7),
    vector(1, Buffer.alloc(32, 1)),
    vector(2, Buffer.from([0x13, 1, 0x13, 2])),
    vector(1, Buffer.from([0])),
    vector(2, Buffer.concat(extensions.flatMap(([type, bytes]) => [short(type), vector(2, bytes)]))),
  ]);
  const message = Buffer.concat([Buffer.from([1, 0]), short(body.length), body]);
  return recordsOf(message, 16_384);
}

/** A handshake message in records of at most `size` bytes. */
export function recordsOf(message: Buffer, size: number): Buffer {
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += size) {
    const fragment = message.subarray(at, at + size);
    records.push(Buffer.from([22, 3, 1, fragment.length >> 8, fragment.length & 255]), fragment);
  }
  return Buffer.concat(records);
}

export function serverName(...names: readonly string[]): readonly [number, Buffer] {
  const list = Buffer.concat(
    names.map((name) => Buffer.concat([Buffer.from([0, name.length >> 8, name.length & 255]), Buffer.from(name, "latin1")])),
  );
  return [0, Buffer.concat([Buffer.from([list.length >> 8, list.length & 255]), list])];
}
