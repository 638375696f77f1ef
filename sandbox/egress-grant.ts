/** What one call may do over the network, all of its connections together. */
export type EgressLimits = {
  readonly upBytes: number;
  readonly downBytes: number;
  /** Connections at once. */
  readonly connections: number;
  /** Destinations asked for, the refused ones included. */
  readonly requests: number;
};

/** What a sandbox may reach, and nothing else; data alone, so that sandboxes with the same grant can be told from others. */
export type EgressGrant = {
  /** `EgressRule`s in their one spelling. */
  readonly rules: readonly string[];
  /** Networks of the operator's that the names of the rules may resolve to, beside the internet. */
  readonly allowPrivate: readonly string[];
  readonly limits: EgressLimits;
};

/**
 * What became of a request: `allowed`, or refused because no rule names the destination, for the address that it resolves to, because
 * its name resolves to nothing, for what was said to it or to us (SNI, Host, no TLS, no HTTP), because a limit of the call is used up; or
 * allowed and not reached.
 */
export const egressVerdicts = ["allowed", "not_listed", "address", "name", "protocol", "limit", "unreachable"] as const;
export type EgressVerdict = (typeof egressVerdicts)[number];

/** What the proxy tells of a call while it runs. `target` is `host:port`, or empty where the program named none that can be one. */
export type EgressEvent =
  | {
      readonly kind: "decided";
      readonly target: string;
      readonly verdict: EgressVerdict;
      /** For people: one sentence. */
      readonly says: string;
      /** The address that was reached, or was refused. */
      readonly address: string | undefined;
    }
  /** A connection that was allowed has ended. */
  | { readonly kind: "ended"; readonly target: string; readonly upBytes: number; readonly downBytes: number };
