/** Long work that is followed by its workflow id: `GET /v1/operations/{workflow_id}`. */
export const operationKinds = ["provision", "erase", "rekey", "backup", "restore", "export", "import", "invoice", "reconcile"] as const;
export type OperationKind = (typeof operationKinds)[number];

/** `failing`: it is tried again. */
export type StepState = "waiting" | "running" | "failing" | "done";

/** How far an operation has come; `done` of `total` are what it counts: steps, rows, files. */
export type OperationProgress = {
  readonly steps: readonly { readonly name: string; readonly state: StepState }[];
  readonly done: number;
  readonly total: number;
  /** Why it has failed, in words for administrators. */
  readonly failure?: string;
};
