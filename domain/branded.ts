declare const brand: unique symbol;

/** A value of `T` that only its own parser can make: `Branded<string, "TenantId">`. */
export type Branded<T, Name extends string> = T & { readonly [brand]: Name };
