export { tenant } from "./tenant.ts";
export { turn } from "./turn.ts";
