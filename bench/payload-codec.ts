/** What encryption adds to one payload, on one core: `node bench/payload-codec.ts`. */
import { hkdfSync, randomBytes } from "node:crypto";
import type { Payload } from "@temporalio/common";
import type { DataKeys } from "../storage/data-keys.ts";
import { parseTenantId } from "../domain/tenant.ts";
import { encryptedConverter } from "../temporal/payload-codec.ts";

const rounds = 20_000;
const bytes = Buffer.from(hkdfSync("sha256", randomBytes(32), "", "bench", 32));
const key = { version: 1, bytes: () => bytes };
/** A key that is in memory, as it is for all but the first payload of a tenant in five minutes. */
const dataKeys: DataKeys = {
  ensure: async () => {},
  erase: async () => {},
  withCurrent: async (_owner, use) => use(key),
  withVersion: async (_owner, _version, use) => use(key),
};
const tenantId = parseTenantId("acme");
const context = { type: "workflow", namespace: "default", workflowId: `turn:${tenantId}:api:jane:default` } as const;
const [codec] = encryptedConverter({ dataKeys, namespace: "default" }).payloadCodecs;

for (const size of [150, 2_048, 32_768]) {
  const payload: Payload = { metadata: { encoding: Buffer.from("json/plain") }, data: randomBytes(size) };
  const { encoded, encodeMicros, decodeMicros } = await measure(payload);
  const moreBytes = (encoded.data?.length ?? 0) - size;
  console.log(`${size} bytes: encode ${encodeMicros.toFixed(1)} µs, decode ${decodeMicros.toFixed(1)} µs of CPU, ${moreBytes} bytes more`);
}

/** CPU time and not the clock's: the machine may be busy with other things. */
async function measure(payload: Payload) {
  if (codec === undefined) throw new Error("the converter has no codec");
  const microsOf = async (work: () => Promise<unknown>): Promise<number> => {
    const begun = process.cpuUsage();
    for (let round = 0; round < rounds; round++) await work();
    const { user, system } = process.cpuUsage(begun);
    return (user + system) / rounds;
  };
  const [encoded = payload] = await codec.encode([payload], context);
  return {
    encoded,
    encodeMicros: await microsOf(async () => await codec.encode([payload], context)),
    decodeMicros: await microsOf(async () => await codec.decode([encoded], context)),
  };
}
