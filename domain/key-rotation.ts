/** What a rotation of the keys did. */
export type KeyRotationReport = {
  /** Of the key-encryption key that wraps now. */
  readonly keyId: string;
  /** Owners that got a new key version. */
  readonly dataKeysRenewed: number;
  readonly valuesResealed: number;
  /** Earlier key versions that stay readable: histories and backups may need them. */
  readonly readableVersionsKept: number;
};

/** Behind which sealed value the next batch begins: place of the column in the list, owner and row of the value. */
export type ResealCursor = { readonly column: number; readonly owner: string; readonly row: string };

/** Where a rotation stands, in the form of every operation's progress: `done` of `total` counts steps. */
export type KeyRotationProgress = {
  readonly steps: readonly { readonly name: string; readonly state: "waiting" | "running" | "failing" | "done" }[];
  readonly done: number;
  readonly total: number;
  readonly failure?: string;
};

export const rotationWorkflowIdOf = (rotationId: string): string => `rekey:_system:${rotationId}`;
