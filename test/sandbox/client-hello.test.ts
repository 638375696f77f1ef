import { once } from "node:events";
import { type AddressInfo, connect as connectTcp, createServer } from "node:net";
import { connect } from "node:tls";
import fc from "fast-check";
import { expect, test } from "vitest";
import { readOpening } from "../../sandbox/client-hello.ts";
import { clientHello, recordsOf, serverName } from "./egress-stage.ts";

const HELLO_TYPE = 5;
/** The message without the header of its one record. */
const messageOf = (hello: Buffer): Buffer => hello.subarray(HELLO_TYPE);
const extra = [43, Buffer.from([2, 3, 4])] as const;
const whole = clientHello([extra, serverName("web.test"), [65_281, Buffer.from([0])]]);

/** What a real client says first. */
async function realHello(options: { readonly servername?: string }): Promise<Buffer> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = connect({
    socket: connectTcp((server.address() as AddressInfo).port, "127.0.0.1"),
    rejectUnauthorized: false,
    ...options,
  });
  client.on("error", () => undefined);
  const [socket] = (await once(server, "connection")) as [import("node:net").Socket];
  const [bytes] = (await once(socket, "data")) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return bytes;
}

test("the name that a real client asks for is read", async () => {
  expect(readOpening(await realHello({ servername: "files.web.test" }))).toEqual({
    kind: "tls",
    serverName: "files.web.test",
    hidesName: false,
  });
  expect(readOpening(await realHello({}))).toMatchObject({ kind: "tls", serverName: undefined });
});

test("cut into records and packets anywhere, it says the same or that more is needed", () => {
  const named = { kind: "tls", serverName: "web.test", hidesName: false };
  fc.assert(
    fc.property(fc.integer({ min: 3, max: 200 }), fc.nat(whole.length * 7), (size, length) => {
      const records = recordsOf(messageOf(whole), size);
      expect(readOpening(records)).toEqual(named);
      const cut = readOpening(records.subarray(0, length));
      expect(length >= records.length ? [named] : [named, { kind: "more" }]).toContainEqual(cut);
    }),
  );
  expect(readOpening(Buffer.concat([whole, Buffer.from("behind it")]))).toEqual(named);
  expect(readOpening(whole.subarray(0, -1))).toEqual({ kind: "more" });
});

test.each<readonly [string, Buffer, string]>([
  ["two names", clientHello([serverName("web.test", "evil.test")]), "malformed"],
  ["two lists of names", clientHello([serverName("web.test"), serverName("evil.test")]), "malformed"],
  ["an empty list of names", clientHello([serverName()]), "malformed"],
  ["a name of another type", clientHello([[0, Buffer.from([0, 4, 1, 0, 1, 97])]]), "malformed"],
  ["bytes behind the name", clientHello([[0, Buffer.concat([serverName("web.test")[1], Buffer.from([0])])]]), "malformed"],
  ["a length beyond the end", clientHello([[0, Buffer.from([0, 200, 0, 0, 1, 97])]]), "malformed"],
  ["another handshake message", recordsOf(Buffer.from([2, 0, 0, 1, 0]), 99), "malformed"],
  [
    "an alert behind its first record",
    Buffer.concat([recordsOf(messageOf(whole).subarray(0, 40), 40), Buffer.from([21, 3, 1, 0, 2, 1, 0])]),
    "malformed",
  ],
  ["an empty record", Buffer.from([22, 3, 1, 0, 0]), "malformed"],
  ["a record that is too long", Buffer.from([22, 3, 1, 255, 255]), "malformed"],
  ["a message that is too long", recordsOf(Buffer.concat([Buffer.from([1, 1, 0, 0]), Buffer.alloc(9)]), 99), "malformed"],
  ["a message that never ends", recordsOf(Buffer.concat([Buffer.from([1, 0, 70, 0]), Buffer.alloc(9)]), 99), "more"],
  ["a message in very many records", recordsOf(messageOf(whole), 1), "malformed"],
  ["HTTP", Buffer.from("GET / HTTP/1.1\r\n\r\n"), "other"],
  ["an SSLv2 hello", Buffer.from([0x80, 0x2e, 1, 3, 1]), "other"],
  ["SSH", Buffer.from("SSH-2.0-x\r\n"), "other"],
  ["another protocol that begins with 22", Buffer.from([22, 4]), "other"],
  ["nothing", Buffer.alloc(0), "more"],
])("%s", (_name, bytes, kind) => {
  expect(readOpening(bytes).kind).toBe(kind);
});

test("a hello that hides the name, or names none, is told from one that names it", () => {
  expect(readOpening(clientHello([serverName("web.test"), [0xfe0d, Buffer.alloc(8)]]))).toMatchObject({ hidesName: true });
  expect(readOpening(clientHello([serverName("web.test"), [0xffce, Buffer.alloc(8)]]))).toMatchObject({ hidesName: true });
  expect(readOpening(clientHello([extra]))).toEqual({ kind: "tls", serverName: undefined, hidesName: false });
});

test("any bytes are something, and never an exception", () => {
  const damaged = fc.tuple(fc.nat(whole.length - 1), fc.nat(255)).map(([at, value]) => {
    const bytes = Buffer.from(whole);
    bytes[at] = value;
    return bytes;
  });
  fc.assert(
    fc.property(
      fc.oneof(
        damaged,
        fc.uint8Array({ maxLength: 80 }).map((tail) => Buffer.from([22, 3, 1, ...tail])),
      ),
      (bytes) => {
        const opening = readOpening(bytes);
        if (opening.kind === "tls" && bytes.length === whole.length && opening.serverName !== undefined)
          expect(opening.serverName).toHaveLength(8);
      },
    ),
    { numRuns: 5_000 },
  );
});
