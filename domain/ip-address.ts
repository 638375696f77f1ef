/** An IP address as a number, so that no spelling of it matters. */
export type IpAddress = { readonly family: 4 | 6; readonly value: bigint };

/** All addresses whose first `bits` bits are those of `base`. */
export type IpNetwork = { readonly base: IpAddress; readonly bits: number };

const widthOf = { 4: 32, 6: 128 } as const;
const ipv4Part = /^(0|[1-9]\d{0,2})$/;

/** Four decimal numbers without leading zeros, or IPv6 in any of its spellings; no zone, no brackets. Undefined for anything else. */
export function parseIpAddress(text: string): IpAddress | undefined {
  return text.includes(":") ? parseIpv6(text) : parseIpv4(text);
}

function parseIpv4(text: string): IpAddress | undefined {
  const parts = text.split(".");
  if (parts.length !== 4 || !parts.every((part) => ipv4Part.test(part) && Number(part) < 256)) return undefined;
  return { family: 4, value: parts.reduce((value, part) => (value << 8n) | BigInt(part), 0n) };
}

function parseIpv6(text: string): IpAddress | undefined {
  if (!/^[0-9a-f:.]{2,45}$/i.test(text)) return undefined;
  const url = URL.parse(`http://[${text}]/`);
  if (url === null) return undefined;
  // The canonical form: groups of hex digits, at most one run of zeros written "::".
  const [head = "", tail] = url.hostname.slice(1, -1).split("::");
  const [before, after] = [head, tail ?? ""].map((half) => (half === "" ? [] : half.split(":"))) as [string[], string[]];
  const zeros = tail === undefined ? [] : Array<string>(8 - before.length - after.length).fill("0");
  return { family: 6, value: [...before, ...zeros, ...after].reduce((value, group) => (value << 16n) | BigInt(`0x${group}`), 0n) };
}

/** The one spelling of an address that this product writes. */
export function formatIpAddress({ family, value }: IpAddress): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => (value >> shift) & 0xffn).join(".");
  const groups = Array.from({ length: 8 }, (_, index) => ((value >> BigInt(112 - 16 * index)) & 0xffffn).toString(16));
  return new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
}

/** `10.0.0.0/8` or a single address. Undefined for anything else, bits of the host included: `10.0.0.1/8` is a mistake. */
export function parseIpNetwork(text: string): IpNetwork | undefined {
  const [address = "", bitsText, ...rest] = text.split("/");
  const base = parseIpAddress(address);
  if (base === undefined || rest.length > 0) return undefined;
  const width = widthOf[base.family];
  if (bitsText !== undefined && !ipv4Part.test(bitsText)) return undefined;
  const bits = bitsText === undefined ? width : Number(bitsText);
  if (bits > width) return undefined;
  const hostBits = BigInt(width - bits);
  return (base.value >> hostBits) << hostBits === base.value ? { base, bits } : undefined;
}

export function isInNetwork({ base, bits }: IpNetwork, { family, value }: IpAddress): boolean {
  if (base.family !== family) return false;
  const hostBits = BigInt(widthOf[family] - bits);
  return value >> hostBits === base.value >> hostBits;
}

/** True when every address of `inner` lies in `outer`. */
export const containsNetwork = (outer: IpNetwork, inner: IpNetwork): boolean => inner.bits >= outer.bits && isInNetwork(outer, inner.base);
