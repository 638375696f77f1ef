/**
 * What became of a sandbox's request for a destination: `allowed`, or refused because no rule names it, for the address that it resolves
 * to, because its name resolves to nothing, for what was said to it or to us (SNI, Host, no TLS, no HTTP), or because a limit of the run
 * is used up; `unreachable` was allowed and did not answer.
 */
export const egressVerdicts = ["allowed", "not_listed", "address", "name", "protocol", "limit", "unreachable"] as const;
export type EgressVerdict = (typeof egressVerdicts)[number];

/** What is told of a run while it lasts. `target` is `host:port`, or empty where the program named none that can be one. */
export type EgressEvent =
  | {
      readonly kind: "decided";
      readonly target: string;
      readonly verdict: EgressVerdict;
      /** For people: one clause. */
      readonly says: string;
      /** The address that was reached, or was refused. */
      readonly address: string | undefined;
    }
  /** A connection that was allowed has ended. */
  | { readonly kind: "ended"; readonly target: string; readonly upBytes: number; readonly downBytes: number };
