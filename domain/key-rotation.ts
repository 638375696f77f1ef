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

export type KeyRotationStep = "prepare" | "spread" | "renew" | "rewrap" | "reseal" | "finish" | "done" | "failed";

/** Where a rotation stands. */
export type KeyRotationProgress = {
  readonly step: KeyRotationStep;
  readonly dataKeysRenewed: number;
  readonly dataKeysRewrapped: number;
  readonly valuesResealed: number;
  /** Why it failed. */
  readonly reason?: string;
};

export const rotationWorkflowIdOf = (rotationId: string): string => `rekey:_system:${rotationId}`;
