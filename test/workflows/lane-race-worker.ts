/**
 * A process of its own that serves the lanes of the race until it is killed: worker pool, a model that writes down when each call
 * began and ended, and, when asked for, the relay. `node lane-race-worker.ts <owner url> <temporal address> <bundle directory> <tenant> [relay]`
 */
import pg from "pg";
import { parseTenantId } from "../../domain/tenant.ts";
import { ModelCallError } from "../../providers/model-provider.ts";
import { startOpenTurnRelay } from "../../workers/open-turn-relay.ts";
import { quiet, scriptedProvider, startTurnStack } from "../turn-stack.ts";
import { raceLane } from "./lane-race.ts";

const [ownerUrl = "", temporalAddress = "", bundleDirectory = "", tenant = "", relay = ""] = process.argv.slice(2);
const tenantId = parseTenantId(tenant);
const log = new pg.Pool({ connectionString: ownerUrl, max: 4 });

const provider = scriptedProvider(async ({ callId, messages }, signal) => {
  const session = JSON.parse(messages.at(-1)?.content as string).session as string;
  const { rows } = await log.query<{ id: string }>("insert into race_call (call_id, session, pid) values ($1, $2, $3) returning id", [
    callId,
    session,
    process.pid,
  ]);
  await new Promise((resolve) => setTimeout(resolve, Math.random() * 15));
  await log.query("update race_call set ended_at = clock_timestamp() where id = $1", [rows[0]?.id]);
  if (signal.aborted) throw new ModelCallError("aborted", "aborted");
  return { text: `answer to ${callId}` };
});

const stack = await startTurnStack({ provider, ownerUrl, temporalAddress, bundleDirectory, lane: raceLane });
await stack.pool.wake(tenantId);
if (relay === "relay")
  startOpenTurnRelay({ database: stack.database, clientOf: stack.clientOf, wake: stack.pool.wake, log: quiet, intervalMs: 1_000 });
console.log("serving");
