import { formatIpAddress, type IpAddress, parseIpAddress } from "./ip-address.ts";

/**
 * What sandboxed code may reach: `host:port`, where the host is a name, `*.` before a name (any name below it, however deep, and not
 * itself), an IPv4 address, or an IPv6 address in brackets. The port is one number; there is no rule for every host or every port.
 */
export type EgressRule = {
  readonly host: EgressHost | { readonly kind: "below"; readonly name: string };
  readonly port: number;
};

/** Where a program wants to go. */
export type EgressTarget = { readonly host: EgressHost; readonly port: number };

/** Names are lower case, in ASCII, and without the dot that may end them. */
type EgressHost = { readonly kind: "name"; readonly name: string } | { readonly kind: "address"; readonly address: IpAddress };

const MAX_NAME_CHARACTERS = 253;
/** Letters, digits, inner hyphens, and underscores, which real names have. */
const label = /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;
/** A name that ends in a number is an address to some resolvers: `0x7f.1`, `2130706433`, `010.0.0.1`. */
const numericLabel = /^(?:\d+|0x[0-9a-f]*)$/;

/** The rule, or what is wrong with its text, as a clause that begins with a verb. */
export function parseEgressRule(text: string): EgressRule | string {
  const split = splitPort(text);
  if (split === undefined) return 'must be host:port, for example "pypi.org:443" or "*.example.com:443"';
  const port = parsePort(split.port);
  if (port === undefined) return "must end in a port from 1 to 65535";
  if (split.host.startsWith("*")) {
    const name = split.host.startsWith("*.")
      ? parseName(split.host.slice(2))
      : "must have its wildcard as a whole first label, *.example.com";
    if (typeof name === "string") return name;
    if (!name.name.includes(".")) return "must name at least two labels behind its wildcard: *.com would be half of the world";
    return { host: { kind: "below", name: name.name }, port };
  }
  const host = parseHost(split.host);
  return typeof host === "string" ? host : { host, port };
}

/**
 * A destination as a program writes it, in a request line or a `Host` header.
 * @param defaultPort what a text without a port means; undefined: it needs one
 * @returns the target, or what is wrong with the text
 */
export function parseEgressTarget(text: string, defaultPort?: number): EgressTarget | string {
  const split = splitPort(text) ?? (defaultPort === undefined ? undefined : { host: text, port: String(defaultPort) });
  if (split === undefined) return "must be host:port";
  const port = parsePort(split.port);
  if (port === undefined) return "must end in a port from 1 to 65535";
  const host = parseHost(split.host);
  return typeof host === "string" ? host : { host, port };
}

/** The last colon parts host and port, unless it stands in brackets or is one of an address without them. */
function splitPort(text: string): { readonly host: string; readonly port: string } | undefined {
  const [, host, port] = /^(\[[^\]]*\]|[^:]*):([^:]*)$/s.exec(text) ?? [];
  return host === undefined || port === undefined ? undefined : { host, port };
}

function parsePort(text: string): number | undefined {
  const port = /^[1-9]\d{0,4}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}

function parseHost(text: string): EgressHost | string {
  if (text.startsWith("[")) {
    const address = text.endsWith("]") && text.includes(":") ? parseIpAddress(text.slice(1, -1)) : undefined;
    return address === undefined ? "must have an IPv6 address between its brackets" : { kind: "address", address };
  }
  const address = text.includes(":") ? undefined : parseIpAddress(text);
  return address === undefined ? parseName(text) : { kind: "address", address };
}

function parseName(text: string): Extract<EgressHost, { kind: "name" }> | string {
  if (/[^\x20-\x7e]/.test(text)) return "must be written in ASCII, a name of other letters as xn--…";
  const name = text.toLowerCase().replace(/\.$/, "");
  const labels = name.split(".");
  if (name.length > MAX_NAME_CHARACTERS || !labels.every((one) => label.test(one)))
    return "must name a host, of letters, digits, hyphens and dots";
  if (numericLabel.test(labels.at(-1) ?? "")) return "must spell an IP address as four decimal numbers";
  return { kind: "name", name };
}

/** The one spelling of a rule. */
export const formatEgressRule = ({ host, port }: EgressRule): string =>
  host.kind === "below" ? `*.${host.name}:${port}` : formatEgressTarget({ host, port });

export function formatEgressTarget({ host, port }: EgressTarget): string {
  return `${formatEgressHost(host)}:${port}`;
}

export function formatEgressHost(host: EgressHost): string {
  if (host.kind === "name") return host.name;
  const text = formatIpAddress(host.address);
  return host.address.family === 6 ? `[${text}]` : text;
}

export function allowsTarget(rule: EgressRule, target: EgressTarget): boolean {
  return rule.port === target.port && allowsHost(rule.host, target.host);
}

/** True when whatever `inner` lets through, `outer` lets through too. */
export function coversRule(outer: EgressRule, inner: EgressRule): boolean {
  if (outer.port !== inner.port) return false;
  if (inner.host.kind !== "below") return allowsHost(outer.host, inner.host);
  return outer.host.kind === "below" && `.${inner.host.name}`.endsWith(`.${outer.host.name}`);
}

/** True when one of the bounds covers the wish; a text that is no rule covers nothing and is covered by nothing. */
export function isWithinRules(bounds: readonly string[], wish: string): boolean {
  const inner = parseEgressRule(wish);
  if (typeof inner === "string") return false;
  return bounds.map(parseEgressRule).some((outer) => typeof outer !== "string" && coversRule(outer, inner));
}

function allowsHost(rule: EgressRule["host"], host: EgressHost): boolean {
  switch (rule.kind) {
    case "below":
      return host.kind === "name" && host.name.endsWith(`.${rule.name}`);
    case "name":
      return host.kind === "name" && host.name === rule.name;
    case "address":
      return host.kind === "address" && host.address.family === rule.address.family && host.address.value === rule.address.value;
  }
}
