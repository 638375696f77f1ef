import { networkInterfaces } from "node:os";
import { type AddressGround, refuseAddress } from "../domain/address-class.ts";
import {
  allowsTarget,
  type EgressRule,
  type EgressTarget,
  formatEgressHost,
  formatEgressTarget,
  parseEgressRule,
} from "../domain/egress-rule.ts";
import type { EgressVerdict } from "../domain/egress-event.ts";
import { formatIpAddress, type IpAddress, parseIpAddress, parseIpNetwork } from "../domain/ip-address.ts";
import type { EgressGrant } from "./egress-grant.ts";
import { createNameResolver, type NameResolver } from "./name-resolver.ts";

/** What is outside of the sandbox, as the host sees it. */
export type EgressOutside = {
  readonly resolve: NameResolver;
  /** Why an address may not be reached, as a clause; undefined when it may. */
  readonly refuse: (address: IpAddress, opened: Pick<AddressGround, "allowPrivate">) => string | undefined;
};

export type EgressDecision =
  | { readonly verdict: "allowed"; readonly addresses: readonly string[] }
  | { readonly verdict: Exclude<EgressVerdict, "allowed">; readonly says: string; readonly address?: string };

export const realOutside = (): EgressOutside => ({
  resolve: createNameResolver(),
  refuse: (address, { allowPrivate }) => refuseAddress(address, { allowPrivate, own: ownAddresses() }),
});

function ownAddresses(): IpAddress[] {
  return Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .flatMap(({ address }) => parseIpAddress(address.replace(/%.*/, "")) ?? []);
}

/** More of a name's addresses are not tried, but all are judged. */
const MAX_TRIED = 4;

/** The rules of one grant. A name is resolved once, every address of it is judged, and only judged ones may be connected to. */
export function createEgressDecider(
  { rules, allowPrivate }: Pick<EgressGrant, "rules" | "allowPrivate">,
  { resolve, refuse }: EgressOutside,
): (target: EgressTarget) => Promise<EgressDecision> {
  const parsed = rules.map(ruleOf);
  const opened = { allowPrivate: allowPrivate.map(networkOf) };
  return async (target) => {
    const shown = formatEgressTarget(target);
    if (!parsed.some((rule) => allowsTarget(rule, target)))
      return { verdict: "not_listed", says: `${shown} is not on the network allow-list of this sandbox` };
    let texts: readonly string[];
    try {
      texts = target.host.kind === "address" ? [formatIpAddress(target.host.address)] : await resolve(target.host.name);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? "no reason given";
      return { verdict: "name", says: `${formatEgressHost(target.host)} could not be resolved (${code})` };
    }
    const addresses: string[] = [];
    // One bad answer among good ones is how a name is bound again.
    for (const text of texts) {
      const address = parseIpAddress(text);
      const why = address === undefined ? "cannot be read" : refuse(address, opened);
      if (why !== undefined || address === undefined)
        return { verdict: "address", says: `${shown} has an address that ${why}`, address: text };
      addresses.push(formatIpAddress(address));
    }
    if (addresses.length === 0) return { verdict: "name", says: `${formatEgressHost(target.host)} has no address` };
    return { verdict: "allowed", addresses: addresses.slice(0, MAX_TRIED) };
  };
}

/** Whoever made the grant has parsed them already. */
function ruleOf(text: string): EgressRule {
  const rule = parseEgressRule(text);
  if (typeof rule === "string") throw new TypeError(`the rule ${JSON.stringify(text)} ${rule}`);
  return rule;
}

function networkOf(text: string) {
  const network = parseIpNetwork(text);
  if (network === undefined) throw new TypeError(`${JSON.stringify(text)} is no network`);
  return network;
}
