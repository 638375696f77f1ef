import type { ChainName } from "./audit.ts";
import { canonicalJson } from "./canonical-json.ts";

/** What a signature vouches for: at `ts` entry `seq` of the chain had this hash. */
export type AnchorStatement = {
  readonly chain: ChainName;
  readonly seq: number;
  readonly hash: string;
  /** The workflow's run that wrote the entry; null where the database alone recorded it. */
  readonly run: string | null;
  /** ISO 8601 in UTC with milliseconds. */
  readonly ts: string;
};

export type SignedAnchor = AnchorStatement & {
  /** SHA-256 of the public key, 64 hex. */
  readonly key: string;
  /** Ed25519, base64. */
  readonly signature: string;
};

/** The text that is signed; its first line keeps it apart from everything else that the key could sign. */
export const anchorText = ({ chain, seq, hash, run, ts }: AnchorStatement): string =>
  `openclaw audit anchor v1\n${canonicalJson({ chain, seq, hash, run, ts })}`;
