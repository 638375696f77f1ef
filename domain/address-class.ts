import { containsNetwork, type IpAddress, type IpNetwork, isInNetwork, parseIpNetwork } from "./ip-address.ts";

/**
 * `public`: an address of the internet. `private`: one of a network of the operator's, which they may open. `never`: one that no
 * configuration opens, because it is this machine, a cloud's metadata service, or no destination at all.
 */
export type AddressClass = { readonly reach: "public" | "private" | "never"; readonly is: string };

type Range = AddressClass & { readonly network: IpNetwork };

const rangesOf = (reach: AddressClass["reach"], entries: Readonly<Record<string, string>>): Range[] =>
  Object.entries(entries).map(([text, is]) => {
    const network = parseIpNetwork(text);
    if (network === undefined) throw new TypeError(`${text} is no network`);
    return { network, reach, is };
  });

/**
 * Searched in this order. Sources: IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its successors, named in
 * brackets) and the clouds' own documents for metadata services. What the registries call globally reachable is left out, and public.
 */
const ranges: readonly Range[] = [
  ...rangesOf("never", {
    "169.254.169.254": "a cloud's metadata service",
    "169.254.170.2": "a cloud's metadata service (ECS)",
    "100.100.100.200": "a cloud's metadata service (Alibaba)",
    "168.63.129.16": "a cloud's metadata service (Azure)",
    "192.0.0.192": "a cloud's metadata service (Oracle)",
    "fd00:ec2::/32": "a cloud's metadata service (AWS)",
    "fd20:ce::254": "a cloud's metadata service (Google)",
    "fd00:42::42": "a cloud's metadata service (Scaleway)",
    "0.0.0.0/8": "this network (RFC 791)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "169.254.0.0/16": "link-local (RFC 3927)",
    "192.0.0.0/24": "for protocols (RFC 6890)",
    "192.0.2.0/24": "for documentation (RFC 5737)",
    "198.51.100.0/24": "for documentation (RFC 5737)",
    "203.0.113.0/24": "for documentation (RFC 5737)",
    "192.88.99.0/24": "a 6to4 relay (RFC 7526)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "255.255.255.255": "broadcast (RFC 919)",
    "240.0.0.0/4": "reserved (RFC 1112)",
    "::": "unspecified (RFC 4291)",
    "::1": "loopback (RFC 4291)",
    "64:ff9b:1::/48": "a local translation to IPv4 (RFC 8215)",
    "100::/63": "for discarding (RFC 6666, RFC 9780)",
    "2001::/32": "a Teredo tunnel (RFC 4380)",
    "2001::/23": "for protocols (RFC 2928)",
    "2001:db8::/32": "for documentation (RFC 3849)",
    "2002::/16": "a 6to4 tunnel (RFC 3056)",
    "3fff::/20": "for documentation (RFC 9637)",
    "5f00::/16": "segment routing (RFC 9602)",
    "fe80::/10": "link-local (RFC 4291)",
    "fec0::/10": "site-local (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
  }),
  ...rangesOf("private", {
    "10.0.0.0/8": "private (RFC 1918)",
    "172.16.0.0/12": "private (RFC 1918)",
    "192.168.0.0/16": "private (RFC 1918)",
    "100.64.0.0/10": "shared by carriers (RFC 6598)",
    "198.18.0.0/15": "for benchmarks (RFC 2544)",
    "fc00::/7": "unique local (RFC 4193)",
  }),
];

/** IPv6 addresses that stand for an IPv4 one: IPv4-mapped (RFC 4291), and a network's translation with the well-known prefix (RFC 6052). */
const carriers: readonly IpNetwork[] = ["::ffff:0:0/96", "64:ff9b::/96"].map((text) => parseIpNetwork(text) as IpNetwork);
/** All that is handed out to anybody so far (RFC 4291, IANA's IPv6 Global Unicast Address Assignments). */
const globalUnicast = parseIpNetwork("2000::/3") as IpNetwork;

/** The IPv4 address that an IPv6 one stands for, or the address itself. */
const carriedBy = (address: IpAddress): IpAddress =>
  carriers.some((carrier) => isInNetwork(carrier, address)) ? { family: 4, value: address.value & 0xffff_ffffn } : address;

export function addressClassOf(given: IpAddress): AddressClass {
  const address = carriedBy(given);
  const found = ranges.find(({ network }) => isInNetwork(network, address));
  if (found !== undefined) return { reach: found.reach, is: found.is };
  if (address.family === 6 && !isInNetwork(globalUnicast, address)) return { reach: "never", is: "not handed out (RFC 4291)" };
  return { reach: "public", is: "public" };
}

export type AddressGround = {
  /** Networks of the operator's that programs may reach. */
  readonly allowPrivate: readonly IpNetwork[];
  /** This machine's addresses: services that trust it listen there. Only a network of that one address opens it. */
  readonly own: readonly IpAddress[];
};

/** Why an address may not be reached, as a clause; undefined when it may. */
export function refuseAddress(given: IpAddress, { allowPrivate, own }: AddressGround): string | undefined {
  const address = carriedBy(given);
  const { reach, is } = addressClassOf(address);
  if (reach === "never") return `is ${is}, which nothing opens`;
  const opened = allowPrivate.filter((network) => isInNetwork(network, address));
  if (own.some((one) => isSame(carriedBy(one), address)) && !opened.some(isSingle)) return "is one of this machine's own";
  return reach === "public" || opened.length > 0 ? undefined : `is ${is}, which the administrator has not opened`;
}

const isSame = (one: IpAddress, other: IpAddress): boolean => one.family === other.family && one.value === other.value;

const isSingle = ({ base: { family }, bits }: IpNetwork): boolean => bits === (family === 4 ? 32 : 128);

/** Why a network cannot be opened, as a clause; undefined when it can: it lies in a private one, or is an address of this machine. */
export function refusePrivateNetwork(network: IpNetwork): string | undefined {
  const isOpenable = isSingle(network)
    ? addressClassOf(network.base).reach !== "never"
    : ranges.some(({ reach, network: outer }) => reach === "private" && containsNetwork(outer, network));
  return isOpenable
    ? undefined
    : "must lie in a private network: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 198.18.0.0/15 or fc00::/7";
}
