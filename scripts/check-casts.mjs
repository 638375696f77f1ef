// Fails where the HTTP side or a channel casts something to a tenant or a principal: neither checker has a rule for it, and a tenant
// comes from a token or an administrator's path only.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const rooms = ["gateway", "channels"].filter((room) => existsSync(room));
/** Looks the payload of a notification up among the tenants that it watches. */
const exempt = new Set([join("gateway", "token-watch.ts")]);
const cast = /\bas (?:unknown as )?(TenantId|TenantContext|TenantPrincipal|AdminPrincipal|Principal|Owner)\b/;

let found = 0;
for (const room of rooms) {
  for (const name of readdirSync(room, { recursive: true, encoding: "utf8" })) {
    const path = join(room, name);
    if (!path.endsWith(".ts") || exempt.has(path)) continue;
    for (const [index, line] of readFileSync(path, "utf8").split("\n").entries()) {
      const [, type] = /^\s*(?:import|export)\b.*\bfrom\b/.test(line) ? [] : (cast.exec(line) ?? []);
      if (type === undefined) continue;
      found++;
      process.stdout.write(`${path}:${index + 1}: a cast to ${type}: take it from tenantOf(request) or gateway/admin-path.ts\n`);
    }
  }
}
process.exit(found === 0 ? 0 : 1);
