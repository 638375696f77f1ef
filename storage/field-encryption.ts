import type { TenantId } from "../domain/tenant.ts";

/** Where a sealed value stands: bound into its authentication, so that it opens nowhere else. */
export type FieldPlace = { readonly tenantId: TenantId; readonly table: string; readonly field: string; readonly row: string };

/** Seals values with the tenant's own data key. */
export interface FieldEncryption {
  seal(place: FieldPlace, plaintext: Uint8Array): Promise<Uint8Array>;
  /** @throws {AppError} `data_key_erased` when the tenant was deleted, `internal` when the value was altered or moved */
  open(place: FieldPlace, sealed: Uint8Array): Promise<Uint8Array>;
}
