import { promises as dns } from "node:dns";
import { readFile } from "node:fs/promises";
import { parseIpAddress } from "../domain/ip-address.ts";

/** All addresses of a name. @throws when nobody can tell; the error's `code` is c-ares' own, for example ENOTFOUND */
export type NameResolver = (name: string) => Promise<readonly string[]>;

const QUERY_MS = 2_000;
const TRIES = 2;
/** How long /etc/resolv.conf is believed; it changes with the network. */
const SETTINGS_MS = 30_000;

/**
 * Asks /etc/hosts and then the DNS over sockets. Not getaddrinfo, which blocks one of the process's few threads for as long as a slow
 * name server likes: a tenant that may reach `*.its.own.domain` answers its own names.
 */
export function createNameResolver({ hostsFile = "/etc/hosts" }: { readonly hostsFile?: string } = {}): NameResolver {
  let resolver: dns.Resolver | undefined;
  let madeAtMs = 0;
  const current = (): dns.Resolver => {
    if (resolver === undefined || Date.now() - madeAtMs > SETTINGS_MS) {
      resolver = new dns.Resolver({ timeout: QUERY_MS, tries: TRIES });
      madeAtMs = Date.now();
    }
    return resolver;
  };
  return async (name) => {
    const listed = addressesIn(await readFile(hostsFile, "utf8").catch(() => ""), name);
    if (listed.length > 0) return listed;
    const [v4, v6] = await Promise.allSettled([current().resolve4(name), current().resolve6(name)]);
    const found = [v4, v6].flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
    if (found.length > 0) return found;
    // A name that has addresses of the other family only: the other answer says why it has none.
    const failures = [v4, v6].flatMap((answer) => (answer.status === "rejected" ? [answer.reason as NodeJS.ErrnoException] : []));
    throw failures.find(({ code }) => code !== "ENODATA") ?? failures[0] ?? new Error("the name has no address");
  };
}

function addressesIn(hosts: string, name: string): string[] {
  return hosts.split("\n").flatMap((line) => {
    const [address = "", ...names] = line.replace(/#.*/, "").trim().split(/\s+/);
    return parseIpAddress(address) !== undefined && names.some((one) => one.toLowerCase() === name) ? [address] : [];
  });
}
