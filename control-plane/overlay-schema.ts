import { z } from "zod";
import type { SandboxLimitName } from "../domain/sandbox-policy.ts";
import { channelPrefixes } from "../domain/session-id.ts";
import { egressRule, environmentName, flag, modelId, name, whole } from "./admin-config-schema.ts";

/**
 * The shape of a tenant's overlay (contract §8). It is an allow-list: every mapping is strict, so that no key of the
 * administrator's, however it is spelt or nested, is anything but an error. Scalars arrive as text.
 */

const oneOf = <const Words extends readonly [string, ...string[]]>(...words: Words) =>
  z.enum(words, `must be ${words.length === 1 ? words[0] : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`}`);

function decimal(min: number, max: number) {
  const says = `must be a decimal from ${min} to ${max}`;
  return z
    .string(says)
    .regex(/^\d{1,4}(\.\d{1,6})?$/, says)
    .transform(Number)
    .refine((value) => value >= min && value <= max, says);
}

const listOf = <Item extends z.ZodType>(item: Item, { min = 0, max }: { readonly min?: number; readonly max: number }) =>
  z.array(item, "must be a list").min(min, `must name at least ${min}`).max(max, `must have at most ${max} entries`);

const toolName = z
  .string("must be the name of a tool")
  .regex(/^[A-Za-z][A-Za-z0-9_.-]{0,63}$/, "must be the name of a tool: a letter, then letters, digits, _ . and -, at most 64 characters");

const text = z.string("must be text");
const entry = z.string("must be text").min(1, "must not be empty").max(512, "must have at most 512 characters");

function isTimezone(zone: string): boolean {
  if (!/^[A-Za-z][A-Za-z0-9_+/-]*$/.test(zone)) return false; // an offset such as +01:00 is no zone: it knows no summer time
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return true;
  } catch {
    return false;
  }
}

const timezone = z.string("must be text").refine(isTimezone, "must be a time zone of the IANA database, for example Europe/Berlin");
const duration = z.string("must be text").regex(/^\d{1,4}[mhd]$/, "must be a number of minutes, hours or days, for example 30m, 2h or 1d");
const timeOfDay = z.string("must be text").regex(/^([01]\d|2[0-3]):[0-5]\d$/, "must be a time of day, for example 08:00");

const channelSchema = z.strictObject({
  enabled: flag.optional(),
  dm_policy: oneOf("pairing", "allowlist", "open", "disabled").optional(),
  allow_from: listOf(entry, { max: 1_000 }).optional(),
  group_policy: oneOf("open", "allowlist", "disabled").optional(),
  group_allow_from: listOf(entry, { max: 1_000 }).optional(),
  require_mention: flag.optional(),
});

const ownPrefixes: readonly string[] = ["web", "api", "cron"];
/** The channels that have settings: those of other companies' platforms. */
const channelKinds = Object.entries(channelPrefixes).flatMap(([prefix, kind]) => (ownPrefixes.includes(prefix) ? [] : [kind]));

/** A tenant may lower each of the limits. */
const sandboxModeSchema = z.strictObject({
  memory_limit_mb: whole(1).optional(),
  cpu_quota: decimal(0.001, 9_999).optional(),
  pids: whole(1).optional(),
  wall_seconds: whole(1).optional(),
  output_kb: whole(1).optional(),
  disk_mb: whole(1).optional(),
  inodes: whole(1).optional(),
  tmp_mb: whole(1).optional(),
  open_files: whole(1).optional(),
} satisfies Record<SandboxLimitName, z.ZodType>);

const sandboxSchema = z.strictObject({
  default_mode: name.optional(),
  modes: z.record(name, sandboxModeSchema, "must be a mapping of modes").optional(),
  tools: z.record(toolName, name, "must be a mapping of tools to modes").optional(),
  network: z.strictObject({ allow: listOf(egressRule, { max: 256 }).optional() }).optional(),
});

const skillSchema = z.strictObject({
  enabled: flag.optional(),
  env: z.record(environmentName, text, "must be a mapping of environment variables").optional(),
});

export const overlaySchema = z.strictObject({
  model: modelId.optional(),
  fallbacks: listOf(modelId, { max: 16 }).optional(),
  aliases: z.record(modelId, modelId, "must be a mapping of names to models").optional(),
  max_tokens: whole(1).optional(),
  temperature: decimal(0, 2).optional(),
  system_prompt: text.optional(),
  allowed_tools: listOf(toolName, { max: 512 }).optional(),
  denied_tools: listOf(toolName, { max: 512 }).optional(),
  timezone: timezone.optional(),
  api: z
    .strictObject({
      mode: oneOf("agent", "gateway").optional(),
      sessions: oneOf("by-user", "stateless").optional(),
      models: listOf(modelId, { min: 1, max: 512 }).optional(),
    })
    .prefault({}),
  session: z
    .strictObject({
      scope: oneOf("main", "per-peer", "per-channel-peer", "per-account-channel-peer").optional(),
      reset: oneOf("none", "daily", "idle").optional(),
      idle_minutes: whole(1, 525_600).optional(),
    })
    .optional(),
  memory: z
    .strictObject({
      enabled: flag.optional(),
      max_results: whole(1, 50).optional(),
      min_score: decimal(0, 1).optional(),
    })
    .optional(),
  channels: z.strictObject(Object.fromEntries(channelKinds.map((kind) => [kind, channelSchema.optional()]))).optional(),
  heartbeat: z
    .strictObject({
      enabled: flag.optional(),
      every: duration.optional(),
      prompt: text.optional(),
      model: modelId.optional(),
      active_hours: z.strictObject({ start: timeOfDay, end: timeOfDay }).optional(),
    })
    .optional(),
  cron: z
    .strictObject({
      enabled: flag.optional(),
      max_concurrent_runs: whole(1, 16).optional(),
    })
    .optional(),
  sandbox: sandboxSchema.optional(),
  tts: z
    .strictObject({
      enabled: flag.optional(),
      auto: oneOf("off", "always", "inbound", "tagged").optional(),
      voice: entry.optional(),
    })
    .optional(),
  skills: z.record(name, skillSchema, "must be a mapping of skills").optional(),
});

export type OverlayFile = z.infer<typeof overlaySchema>;
