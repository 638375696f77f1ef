import { sealedAnswerField, sealedAnswerTable } from "./sealed-answers.ts";

/** A column of the control schema that holds sealed values, for the rotation that seals them again. SQL names and expressions. */
export type SealedColumn = {
  /** Below `control`. */
  readonly table: string;
  readonly column: string;
  /** What the values' place says: `FieldPlace.table`, `.field`, and an expression for the owner and for `.row`. */
  readonly place: { readonly table: string; readonly field: string; readonly owner: string; readonly row: string };
};

/** Every column with sealed values: one line each. A value that is not listed stays readable, under its old key version. */
export const sealedColumns: readonly SealedColumn[] = [
  {
    table: "sealed_answer",
    column: "answer",
    place: { table: sealedAnswerTable, field: sealedAnswerField, owner: "owner", row: "op_id || '/' || command_hash" },
  },
  { table: "overlay_text", column: "sealed", place: { table: "overlay_text", field: "sealed", owner: "tenant_id", row: "digest" } },
];
