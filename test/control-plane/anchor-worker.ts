/**
 * A gateway that is killed between an anchor and its place: makes two changes, signs, tells its parent and never puts the anchor
 * anywhere. `node anchor-worker.ts <place as JSON> <home> <tenant>`
 */
import { startAnchorKeeper } from "../../control-plane/anchor-keeper.ts";
import { openSigningKey } from "../../control-plane/audit-signing-key.ts";
import { directoryPlace } from "../../control-plane/anchor-place.ts";
import { parseTenantId } from "../../domain/tenant.ts";
import { join } from "node:path";
import { quiet } from "../turn-stack.ts";
import { startChanges } from "./changes-stage.ts";

const [place = "{}", home = "", tenant = ""] = process.argv.slice(2);
const stage = await startChanges(JSON.parse(place));
const tenantId = parseTenantId(tenant);
await stage.make(tenantId, { type: "tenant.suspend" });
await stage.make(tenantId, { type: "tenant.resume" });
const { database } = stage.stack;
const key = await openSigningKey({ database, home, log: quiet });
const directory = directoryPlace(join(home, "audit-anchors"), key);
await startAnchorKeeper({
  database,
  key,
  places: [{ ...directory, put: () => (process.send?.("signed"), new Promise<never>(() => {})) }],
  log: quiet,
  everyEntries: 1,
});
