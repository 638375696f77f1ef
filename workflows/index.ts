export { archive } from "./archive.ts";
export { erase } from "./erase.ts";
export { invoice } from "./invoice.ts";
export { provision } from "./provision.ts";
export { reconcile } from "./reconcile.ts";
export { rekey } from "./rekey.ts";
export { tenant } from "./tenant.ts";
export { turn } from "./turn.ts";
