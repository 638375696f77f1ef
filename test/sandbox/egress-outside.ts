import { refuseAddress } from "../../domain/address-class.ts";
import { isInNetwork, parseIpNetwork } from "../../domain/ip-address.ts";
import type { EgressOutside } from "../../sandbox/egress-decision.ts";

const loopback = parseIpNetwork("127.0.0.0/8") ?? undefined;

/** The outside as the product sees it, but that names are ours and that this machine's loopback is a place like any other. */
export function testOutside(names: Readonly<Record<string, readonly string[]>>): EgressOutside & { readonly lookups: string[] } {
  const lookups: string[] = [];
  return {
    lookups,
    resolve: async (name) => {
      lookups.push(name);
      const found = names[name];
      if (found === undefined) throw Object.assign(new Error("no such name"), { code: "ENOTFOUND" });
      return found;
    },
    refuse: (address, opened) =>
      loopback !== undefined && isInNetwork(loopback, address) ? undefined : refuseAddress(address, { ...opened, own: [] }),
  };
}
