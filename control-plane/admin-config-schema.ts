import { isIP } from "node:net";
import { z } from "zod";
import { refusePrivateNetwork } from "../domain/address-class.ts";
import { AppError } from "../domain/app-error.ts";
import { formatEgressRule, parseEgressRule } from "../domain/egress-rule.ts";
import { parseIpNetwork } from "../domain/ip-address.ts";
import { modelKinds } from "../domain/service-request.ts";
import { parseMarkup, parseRate } from "../domain/money.ts";

/**
 * The shape of `config.yaml` (contract §8). Every scalar arrives as its source text, so numbers are made here and money stays
 * text until it becomes an integer. Every mapping is strict: a key that is not listed is an error.
 */

const text = z.string().min(1, "must not be empty");
export const flag = z.enum(["true", "false"], "must be true or false").transform((value) => value === "true");

/** A whole number; digits may be grouped with `_`. */
export const whole = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  z
    .string(`must be a whole number from ${min} to ${max}`)
    .regex(/^\d[\d_]{0,20}$/, `must be a whole number from ${min} to ${max}`)
    .transform((digits) => Number(digits.replaceAll("_", "")))
    .refine((value) => value >= min && value <= max, `must be a whole number from ${min} to ${max}`);

function decimal(parse: (value: string) => unknown, says: string) {
  return z.string(says).refine((value) => {
    try {
      parse(value);
      return true;
    } catch (error) {
      if (error instanceof AppError) return false;
      throw error;
    }
  }, says);
}

const rate = decimal(
  (value) => parseRate(value, "rate"),
  "must be USD per 1M tokens: a decimal of at most 6 places between 0 and 1,000,000",
);
const markup = decimal(
  (value) => parseMarkup(value, "markup"),
  "must be a decimal of at most 6 places between 0 and 1,000,000, for example 0.10 for 10 %",
);
const usd = decimal((value) => parseRate(value, "usd"), "must be US dollars: a decimal of at most 6 places between 0 and 1,000,000");

export const environmentName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "must be the name of an environment variable");
export const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/, "must be a name of letters, digits, _ . and -, at most 64 characters");
export const modelId = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,127}$/, "must be a model id of letters, digits and _ . : / @ -, at most 128 characters");
const url = (...protocols: string[]) =>
  z
    .string()
    .refine(
      (value) => URL.canParse(value) && protocols.includes(new URL(value).protocol),
      `must be a URL that begins with ${protocols.join(" or ")}`,
    );

const network = z.string().refine((value) => {
  const [address = "", bits, ...more] = value.split("/");
  const family = isIP(address);
  return (
    family !== 0 &&
    more.length === 0 &&
    (bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) >= 1 && Number(bits) <= (family === 4 ? 32 : 128)))
  );
}, "must be an IP address or a network such as 10.0.0.0/8");
const origin = z
  .string()
  .refine(
    (value) => URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) && new URL(value).origin === value,
    "must be an origin as browsers send it, for example https://chat.example.com",
  );

const providerSchema = z.strictObject({
  kind: z.enum(["openai", "anthropic", "openai-compatible", "demo"], "must be openai, anthropic, openai-compatible or demo"),
  base_url: url("http:", "https:").optional(),
  // OpenAI's older API, the default, or its newer one.
  api: z.enum(["chat", "responses"], "must be chat or responses").optional(),
  // One name or several: a key that is told to wait, or not taken, gives way to the next.
  api_key_env: z
    .union([
      environmentName.transform((one) => [one]),
      z
        .array(environmentName)
        .min(1)
        .max(32)
        .refine((names) => new Set(names).size === names.length, "must name each key once"),
    ])
    .optional(),
  // How long it may be silent (http.provider_idle_seconds unless said here) and take in all.
  idle_seconds: whole(1, 290).optional(),
  total_seconds: whole(1, 840).default(600),
});

export const modelSchema = z.strictObject({
  provider: name,
  // What it is for; only a chat model holds a conversation.
  kind: z.enum(modelKinds, "must be chat, embedding, transcription or moderation").default("chat"),
  context_window: whole(1, 1_000_000_000),
  max_output_tokens: whole(1, 1_000_000_000),
  fallbacks: z.array(modelId).default([]),
});

export const ratesSchema = z.strictObject({
  input: rate,
  output: rate,
  cache_read: rate.optional(),
  cache_write: rate.optional(),
  reasoning: rate.optional(),
});

/** A rate card whose decimals are not looked at: `createRateCard` says what is wrong with one. */
export const rateCardShape = z.record(
  modelId,
  z.strictObject(
    {
      input: z.string("must be USD per 1M tokens"),
      output: z.string("must be USD per 1M tokens"),
      cache_read: z.string("must be USD per 1M tokens").optional(),
      cache_write: z.string("must be USD per 1M tokens").optional(),
      reasoning: z.string("must be USD per 1M tokens").optional(),
    },
    "must be a mapping with input and output",
  ),
  "must be a mapping of models to their rates",
);

const quotaSchema = z.strictObject({
  tokens_per_day: whole(0).nullable().optional(),
  cost_per_day_usd: usd.nullable().optional(),
  requests_per_minute: whole(0).nullable().optional(),
});

const sandboxModeSchema = z.strictObject({
  runtime: z.enum(["bwrap", "docker"], "must be bwrap or docker").optional(),
  image: text.optional(),
  memory_limit_mb: whole(1).optional(),
  cpu_quota: z
    .string()
    .regex(/^\d{1,4}(\.\d{1,3})?$/, "must be a number of CPUs, for example 0.5")
    .optional(),
  pids: whole(1).optional(),
  wall_seconds: whole(1).optional(),
  output_kb: whole(1).optional(),
  disk_mb: whole(1).optional(),
  inodes: whole(1).optional(),
  tmp_mb: whole(1).optional(),
  open_files: whole(1).optional(),
  runtime_class: text.optional(),
  seccomp: text.optional(),
  network: z.enum(["none", "allow-list"], "must be none or allow-list").optional(),
});

/** A destination that sandboxed code may reach, in its one spelling. */
export const egressRule = z.string("must be text").transform((value, context) => {
  const rule = parseEgressRule(value);
  if (typeof rule !== "string") return formatEgressRule(rule);
  context.addIssue({ code: "custom", message: rule });
  return z.NEVER;
});

const privateNetwork = z.string("must be text").superRefine((value, context) => {
  const parsed = parseIpNetwork(value);
  const fault = parsed === undefined ? "must be an IP address or a network such as 10.0.0.0/8" : refusePrivateNetwork(parsed);
  if (fault !== undefined) context.addIssue({ code: "custom", message: fault });
});

const sandboxNetworkSchema = z.strictObject({
  default: z.literal("deny", "must be deny").optional(),
  allow: z.array(egressRule).optional(),
  // Networks of the operator's that the allowed names may resolve to; metadata services and this machine's loopback never.
  allow_private: z.array(privateNetwork).optional(),
  // Of one run: bytes that it sends and receives, connections at once, and destinations that it asks for.
  max_up_mb: whole(1, 1_000_000).optional(),
  max_down_mb: whole(1, 1_000_000).optional(),
  max_connections: whole(1, 1_000).optional(),
  max_requests: whole(1, 1_000_000).optional(),
});

const sandboxSchema = z.strictObject({
  require: z.enum(["cgroup", "any"], "must be cgroup or any").optional(),
  // image: each tenant's directory is a file system of its own, no larger than the largest disk_mb and inodes of a mode.
  disk_quota: z.enum(["image", "polled"], "must be image or polled").optional(),
  default_mode: name.optional(),
  modes: z.record(name, sandboxModeSchema).optional(),
  network: sandboxNetworkSchema.optional(),
  tenant_may_allow: z.array(egressRule).optional(),
});

const backupSchema = z.strictObject({
  s3: z
    .strictObject({
      endpoint: url("http:", "https:").optional(),
      bucket: text.optional(),
      region: text.optional(),
      access_key_id_env: environmentName.optional(),
      secret_access_key_env: environmentName.optional(),
      session_token_env: environmentName.optional(),
    })
    .optional(),
  schedule: text.optional(),
  recipients: z.array(text).optional(),
});

const temporalSchema = z.strictObject({
  address: z
    .string()
    .regex(/^[^\s/]+:\d{1,5}$/, "must be host:port")
    .optional(),
  namespace: text.optional(),
  tls: flag.optional(),
  tls_server_name: text.optional(),
  tls_ca_file: text.optional(),
  tls_cert_file: text.optional(),
  tls_key_file: text.optional(),
  // Of Temporal Cloud, or whatever asks for one: sent with every call, over TLS only.
  api_key_env: environmentName.optional(),
  pseudonymous_ids: flag.optional(),
  lane_window_seconds: whole(2, 3_600).optional(),
  model_call: z.enum(["remote", "local"], "must be remote or local").optional(),
  // How long histories of closed runs are kept in the database; 0: they go when Temporal forgets them.
  archive_days: whole(0, 36_500).default(0),
  // For the Web UI's "Call Stack": costs a tenth of every turn.
  call_stacks: flag.optional(),
});

const day = z.string().refine((value) => {
  const atMs = /^\d{4}-\d{2}-\d{2}$/.test(value) ? Date.parse(`${value}T00:00:00Z`) : Number.NaN;
  return !Number.isNaN(atMs) && new Date(atMs).toISOString().startsWith(value);
}, "must be a day, for example 2026-11-01");
const meterEventName = z.string().regex(/^[A-Za-z0-9_.-]{1,100}$/, "must be the event name of a Stripe meter");
const tenant = z
  .string()
  .regex(/^(?=.{1,32}$)[a-z0-9](-?[a-z0-9])*$/, "must be a tenant id: 1 to 32 lower-case letters, digits and single inner hyphens");

/** Stripe's key goes over this address, so it is not sent in the clear to another machine. */
const stripeBase = url("http:", "https:").refine(
  (value) =>
    !URL.canParse(value) || new URL(value).protocol === "https:" || ["127.0.0.1", "localhost", "[::1]"].includes(new URL(value).hostname),
  "must begin with https: unless it is on this machine",
);

const stripeSchema = z.strictObject({
  api_key_env: environmentName,
  api_base: stripeBase.optional(),
  mode: z.enum(["live", "test"], "must be live or test").default("live"),
  meter_event_names: z
    .strictObject({
      usage: meterEventName.default("openclaw_usage_nano_usd"),
      platform_fee: meterEventName.default("openclaw_platform_fee_nano_usd"),
    })
    .prefault({}),
  // Earlier days are not told; default: the day on which a tenant was first mapped.
  first_day: day.optional(),
  customers: z.record(tenant, z.string().regex(/^cus_[A-Za-z0-9]{1,28}$/, "must be the id of a Stripe customer, cus_…")).default({}),
});

export const adminConfigSchema = z.strictObject({
  default_model: modelId,
  providers: z.record(name, providerSchema),
  models: z.record(modelId, modelSchema),
  billing: z
    .strictObject({
      currency: z.literal("USD", "must be USD: every price is in US dollars").default("USD"),
      markup: markup.default("0"),
      platform_fee_usd_per_month: usd.optional(),
      stripe: stripeSchema.optional(),
      rate_card: z.record(modelId, ratesSchema).default({}),
    })
    .prefault({}),
  quotas: z.strictObject({ default: quotaSchema.optional() }).prefault({}),
  sandbox: sandboxSchema.prefault({}),
  backup: backupSchema.prefault({}),
  temporal: temporalSchema.prefault({}),
  database: z.strictObject({ url: url("postgres:", "postgresql:").optional() }).prefault({}),
  channels: z.strictObject({ endpoints: z.record(name, url("http:", "https:")).optional() }).prefault({}),
  http: z
    .strictObject({
      slots_per_tenant: whole(1, 10_000).default(64),
      // Calls of all tenants that this process runs at once; tenants have their turns one after the other.
      slots: whole(1, 100_000).default(1_024),
      // Request bodies that are held at once.
      body_megabytes: whole(32, 1_000_000).default(256),
      body_megabytes_per_tenant: whole(32, 1_000_000).default(64),
      // How long a provider may be silent, before its first byte and between two pieces of its answer.
      provider_idle_seconds: whole(1, 290).default(120),
      // How long requests that run may go on when the gateway is told to end (SIGTERM), and for how long before it still takes new ones,
      // saying in /readyz that it should get none.
      drain_seconds: whole(0, 3_600).default(25),
      drain_notice_seconds: whole(0, 600).default(2),
      // How long a caller may take nothing of an answer that waits for it before its connection is cut.
      slow_reader_seconds: whole(1, 3_600).default(60),
      // Uploaded files of one tenant that are kept at once, and their bytes.
      files_per_tenant: whole(0, 1_000_000).default(1_000),
      file_megabytes_per_tenant: whole(0, 1_000_000).default(1_024),
      // Whose X-Forwarded-* headers are believed; nobody's unless listed.
      trusted_proxies: z.array(network).default([]),
      // Origins whose pages may call the API, beside the gateway's own.
      allowed_origins: z.array(origin).default([]),
    })
    .prefault({}),
  telemetry: z
    .strictObject({
      otlp_endpoint: url("http:", "https:").optional(),
      service_name: text.optional(),
      // Of traces that begin here; a caller's own decision stands.
      trace_sample_ratio: z.number().min(0, "must be 0 to 1").max(1, "must be 0 to 1").default(1),
      // A turn that takes longer is told in the log, with its steps.
      slow_turn_seconds: whole(1, 86_400).default(30),
      // Temporal's own metrics in /metrics.
      temporal_metrics: flag.default(false),
    })
    .prefault({}),
});

export type AdminConfigFile = z.infer<typeof adminConfigSchema>;
