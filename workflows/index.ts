export { rekey } from "./rekey.ts";
export { tenant } from "./tenant.ts";
export { turn } from "./turn.ts";
