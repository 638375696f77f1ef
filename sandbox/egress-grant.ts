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
