/**
 * What the first bytes of a connection are. `tls` names the server that the ClientHello asks for; undefined where it asks for none.
 * `more`: it cannot be said yet.
 */
export type Opening =
  | { readonly kind: "more" | "other" | "malformed" }
  | { readonly kind: "tls"; readonly serverName: string | undefined; readonly hidesName: boolean };

const HANDSHAKE_RECORD = 22;
const CLIENT_HELLO = 1;
const RECORD_HEADER_BYTES = 5;
const HANDSHAKE_HEADER_BYTES = 4;
/** A record's fragment, RFC 8446 §5.1. */
const MAX_RECORD_BYTES = 16_384;
/** Ten times what clients send, keys of the post-quantum kind included. */
const MAX_HELLO_BYTES = 20_000;
/** A hello that is cut into more of them is no client's: it is meant to cost us time. */
const MAX_RECORDS = 64;

/** `server_name` (RFC 6066), `encrypted_client_hello` (RFC 9849) and its draft's forerunner. */
const SERVER_NAME = 0;
const hidingExtensions: ReadonlySet<number> = new Set([0xfe0d, 0xffce]);
const HOST_NAME = 0;

/** Reads a ClientHello that may be cut into records and packets anywhere. Its record begins with 22 and 3, as no HTTP does. */
export function readOpening(bytes: Buffer): Opening {
  if (bytes.length === 0) return { kind: "more" };
  if (bytes[0] !== HANDSHAKE_RECORD || (bytes.length > 1 && bytes[1] !== 3)) return { kind: "other" };
  const fragments: Buffer[] = [];
  let heldBytes = 0;
  for (let at = 0; at + RECORD_HEADER_BYTES <= bytes.length;) {
    const size = bytes.readUInt16BE(at + 3);
    if (bytes[at] !== HANDSHAKE_RECORD || bytes[at + 1] !== 3 || size === 0 || size > MAX_RECORD_BYTES) return { kind: "malformed" };
    const fragment = bytes.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + size);
    if (fragments.push(fragment) > MAX_RECORDS) return { kind: "malformed" };
    heldBytes += fragment.length;
    at += RECORD_HEADER_BYTES + size;
    if (heldBytes < HANDSHAKE_HEADER_BYTES) continue;
    const message = Buffer.concat(fragments);
    const helloBytes = message.readUIntBE(1, 3);
    if (message[0] !== CLIENT_HELLO || helloBytes > MAX_HELLO_BYTES) return { kind: "malformed" };
    if (heldBytes >= HANDSHAKE_HEADER_BYTES + helloBytes) {
      const hello = new Fields(message.subarray(HANDSHAKE_HEADER_BYTES, HANDSHAKE_HEADER_BYTES + helloBytes));
      return readHello(hello) ?? { kind: "malformed" };
    }
  }
  return { kind: "more" };
}

/** Undefined where a length does not fit, or where two readers could read two names. */
function readHello(hello: Fields): Opening | undefined {
  const VERSION_AND_RANDOM_BYTES = 34;
  hello.take(VERSION_AND_RANDOM_BYTES);
  hello.vector(1); // session id
  hello.vector(2); // cipher suites
  hello.vector(1); // compression methods
  if (hello.isBroken) return undefined;
  if (hello.isEmpty) return { kind: "tls", serverName: undefined, hidesName: false };
  const extensions = new Fields(hello.vector(2));
  if (hello.isBroken || !hello.isEmpty) return undefined;
  let serverName: string | undefined;
  const seen = new Set<number>();
  while (!extensions.isEmpty) {
    const type = extensions.number(2);
    const data = extensions.vector(2);
    if (extensions.isBroken || seen.has(type)) return undefined;
    seen.add(type);
    if (type !== SERVER_NAME) continue;
    const names = new Fields(data);
    const list = new Fields(names.vector(2));
    const isHostName = list.number(1) === HOST_NAME;
    serverName = list.vector(2).toString("latin1");
    if (names.isBroken || list.isBroken || !names.isEmpty || !list.isEmpty || !isHostName) return undefined;
  }
  return { kind: "tls", serverName, hidesName: [...seen].some((type) => hidingExtensions.has(type)) };
}

/** Numbers and length-prefixed bytes, one after the other. */
class Fields {
  #left: Buffer;
  isBroken = false;

  constructor(bytes: Buffer) {
    this.#left = bytes;
  }

  get isEmpty(): boolean {
    return this.#left.length === 0;
  }

  take(size: number): Buffer {
    if (size > this.#left.length) this.isBroken = true;
    const taken = this.#left.subarray(0, size);
    this.#left = this.#left.subarray(size);
    return taken;
  }

  number(size: 1 | 2): number {
    const bytes = this.take(size);
    return bytes.length < size ? 0 : bytes.readUIntBE(0, size);
  }

  vector(lengthSize: 1 | 2): Buffer {
    return this.take(this.number(lengthSize));
  }
}
