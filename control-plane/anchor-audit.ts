import { type AuditEntry, type ChainHead, genesis } from "../domain/audit.ts";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import { AnchorCheck, type AnchorKeys, type Fault, checkSignatures, firstFault, linkFault } from "./anchor-check.ts";
import type { Finding } from "./audit-verify.ts";

export type AnchorAudit = {
  readonly findings: readonly Finding[];
  /** Chains with an anchor by one of the keys. */
  readonly chains: number;
  readonly anchors: number;
  readonly entries: number;
};

export type AnchorAuditDeps = {
  readonly anchors: readonly SignedAnchor[];
  /** Keys that are known from elsewhere than from what is verified. */
  readonly keys: AnchorKeys;
  /** A chain's entries in order. */
  readonly entriesOf: (chain: string) => AsyncIterable<readonly AuditEntry[]>;
};

/**
 * Compares chains with their anchors by keys that were given out of band: nothing that the gateway says is believed that these
 * keys did not sign. Anchors by other keys prove nothing here and are left out.
 */
export async function auditAnchors({ anchors, keys, entriesOf }: AnchorAuditDeps): Promise<AnchorAudit> {
  const byChain = Map.groupBy(
    anchors.filter(({ key }) => keys.has(key)),
    ({ chain }) => chain,
  );
  const findings: Finding[] = [];
  let count = 0;
  let entries = 0;
  for (const [chain, own] of [...byChain].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    const { sound, faults } = checkSignatures(own, keys);
    const check = new AnchorCheck({ anchors: sound, isTrusted: (key) => keys.has(key) });
    let head: ChainHead = genesis;
    let fault: Fault | undefined;
    for await (const page of entriesOf(chain)) {
      for (const entry of page) {
        fault ??= linkFault(entry, head);
        check.meet(entry);
        head = entry;
        entries++;
      }
    }
    check.end(head.seq);
    count += sound.length;
    const first = firstFault([...faults, fault, check.fault]);
    if (first !== undefined) findings.push({ chain, ...first });
  }
  return { findings, chains: byChain.size, anchors: count, entries };
}
