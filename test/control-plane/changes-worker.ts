/** A second process that makes changes of a tenant, 25 at once. `node changes-worker.ts <place as JSON> <tenant>` */
import { parseTenantId } from "../../domain/tenant.ts";
import { startChanges } from "./changes-stage.ts";

const [place = "{}", tenant = ""] = process.argv.slice(2);
const stage = await startChanges(JSON.parse(place));
const tenantId = parseTenantId(tenant);
await Promise.all(
  Array.from(
    { length: 25 },
    async (_, index) => await stage.make(tenantId, { type: index % 2 === 0 ? "tenant.suspend" : "tenant.resume" }),
  ),
);
await stage.close();
console.log("done");
process.exit(0);
