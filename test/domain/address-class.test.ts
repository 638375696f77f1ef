import { BlockList, isIP } from "node:net";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addressClassOf, refuseAddress, refusePrivateNetwork } from "../../domain/address-class.ts";
import { formatIpAddress, type IpAddress, type IpNetwork, isInNetwork, parseIpAddress, parseIpNetwork } from "../../domain/ip-address.ts";

const addressOf = (text: string): IpAddress => parseIpAddress(text) ?? expect.fail(`${text} is no address`);
const networkOf = (text: string): IpNetwork => parseIpNetwork(text) ?? expect.fail(`${text} is no network`);

/** The first and the last address of each range, and what is next to it. */
const classes = {
  never: `0.0.0.0 0.255.255.255 127.0.0.1 127.255.255.255 169.254.0.1 169.254.169.254 169.254.170.2 169.254.255.255 192.0.0.0 192.0.0.192
    192.0.0.255 192.0.2.1 198.51.100.255 203.0.113.7 192.88.99.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 100.100.100.200
    168.63.129.16 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1
    64:ff9b:1:ffff:ffff:ffff:ffff:ffff 100:: 100::1:0:0:0 100:0:0:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1ff:ffff::
    2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1 3fff:fff:ffff::1 5f00::1 fd00:ec2::254 fd00:ec2:1::1 fd20:ce::254 fd00:42::42 fe80::1
    febf::1 fec0::1 feff::1 ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 1::1 4000::1 ::fffe:1.2.3.4`,
  private: `10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255 100.64.0.1 100.127.255.255 198.18.0.1 198.19.255.255
    fc00::1 fdff::1 ::ffff:10.0.0.1 64:ff9b::a00:1`,
  public: `1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 169.253.255.255 169.255.0.0 172.15.255.255
    172.32.0.0 191.255.255.255 192.0.1.0 192.31.196.1 192.52.193.1 192.175.48.1 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    198.51.99.255 203.0.114.0 223.255.255.255 168.63.129.15 100.100.100.199x 2000::1 2001:200::1 2001:db7:ffff::1 2001:db9::1 2003::1
    2620:4f:8000::1 2606:4700::1111 3ffe:ffff::1 3fff:1000::1 ::ffff:1.1.1.1 64:ff9b::101:101`,
} as const;

describe.each(Object.entries(classes))("%s", (reach, texts) => {
  test.each(texts.split(/\s+/).filter((text) => !text.endsWith("x")))("%s", (text) => {
    expect(addressClassOf(addressOf(text)).reach).toBe(reach);
  });
});

test("metadata services, loopback and the like are opened by nothing, private networks by the administrator", () => {
  const allowPrivate = ["0.0.0.0/0", "::/0"].map(networkOf);

  for (const text of classes.never.split(/\s+/))
    expect(refuseAddress(addressOf(text), { allowPrivate, own: [] }), text).toContain("nothing opens");
  for (const text of classes.private.split(/\s+/)) {
    expect(refuseAddress(addressOf(text), { allowPrivate: [], own: [] }), text).toContain("has not opened");
    expect(refuseAddress(addressOf(text), { allowPrivate, own: [] }), text).toBeUndefined();
  }
});

test("a network opens its own addresses only, also when IPv6 carries them", () => {
  const refuse = (text: string) => refuseAddress(addressOf(text), { allowPrivate: [networkOf("10.1.0.0/16")], own: [] });

  expect([refuse("10.1.2.3"), refuse("::ffff:10.1.2.3"), refuse("64:ff9b::a01:203")]).toEqual([undefined, undefined, undefined]);
  expect(refuse("10.2.0.1")).toContain("has not opened");
  expect(refuse("::ffff:10.2.0.1")).toContain("has not opened");
});

test("this machine's own addresses are opened by name alone", () => {
  const own = ["10.1.2.3", "93.184.216.34", "2606:2800::1"].map(addressOf);
  const refuse = (text: string, ...allow: string[]) => refuseAddress(addressOf(text), { allowPrivate: allow.map(networkOf), own });

  expect(refuse("93.184.216.34")).toBe("is one of this machine's own");
  expect(refuse("::ffff:93.184.216.34")).toBe("is one of this machine's own");
  expect(refuse("2606:2800::1")).toBe("is one of this machine's own");
  expect(refuse("10.1.2.3", "10.0.0.0/8")).toBe("is one of this machine's own");
  expect(refuse("10.1.2.3", "10.1.2.3")).toBeUndefined();
  expect(refuse("93.184.216.34", "93.184.216.34/32")).toBeUndefined();
  expect(refuse("93.184.216.35")).toBeUndefined();
});

test.each([
  ["10.0.0.0/8", undefined],
  ["192.168.7.0/24", undefined],
  ["fd12::/16", undefined],
  ["10.0.0.1", undefined],
  ["93.184.216.34", undefined],
  ["0.0.0.0/0", "must lie in a private network"],
  ["10.0.0.0/7", "must lie in a private network"],
  ["8.8.8.0/24", "must lie in a private network"],
  ["127.0.0.0/8", "must lie in a private network"],
  ["127.0.0.1", "must lie in a private network"],
  ["169.254.169.254", "must lie in a private network"],
  ["fd00:ec2::254", "must lie in a private network"],
  ["::1", "must lie in a private network"],
  ["::/0", "must lie in a private network"],
])("the administrator may open %s: %s", (text, fault) => {
  const said = refusePrivateNetwork(networkOf(text));

  if (fault === undefined) expect(said).toBeUndefined();
  else expect(said).toContain(fault);
});

test.each(["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/", "10.0.0.0/8/8", "10.0.0/8", "a.b", "fd00::/129", "fe80::1%1/64", ""])(
  "%j is no network",
  (text) => {
    expect(parseIpNetwork(text)).toBeUndefined();
  },
);

const v4 = fc.ipV4();
const v6 = fc.oneof(
  fc.ipV6(),
  fc.tuple(fc.constantFrom("::ffff:", "64:ff9b::"), fc.ipV4()).map((parts) => parts.join("")),
);

test("an address is read as Node reads it, and has one spelling", () => {
  fc.assert(
    fc.property(fc.oneof(v4, v6, fc.string({ unit: fc.constantFrom(...Array.from("0123456789abcdefx:.%")), maxLength: 24 })), (text) => {
      const address = parseIpAddress(text);
      const isZoned = text.includes("%");

      expect(address?.family ?? 0).toBe(isZoned ? 0 : isIP(text));
      if (address !== undefined) expect(parseIpAddress(formatIpAddress(address))).toEqual(address);
    }),
    { numRuns: 5_000 },
  );
});

test("an address lies in a network when Node's own list says so", () => {
  fc.assert(
    fc.property(fc.oneof(fc.tuple(v4, v4, fc.nat(32)), fc.tuple(v6, v6, fc.nat(128))), ([base, text, bits]) => {
      const [parsed, address] = [addressOf(base), addressOf(text)];
      const width = BigInt((parsed.family === 4 ? 32 : 128) - bits);
      const network = { base: { ...parsed, value: (parsed.value >> width) << width }, bits };
      const list = new BlockList();
      list.addSubnet(formatIpAddress(network.base), bits, parsed.family === 4 ? "ipv4" : "ipv6");

      expect(isInNetwork(network, address)).toBe(list.check(text, address.family === 4 ? "ipv4" : "ipv6"));
    }),
    { numRuns: 2_000 },
  );
});
