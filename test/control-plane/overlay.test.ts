import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseAdminConfig } from "../../control-plane/admin-config.ts";
import { decodeOverlay, isToolAllowed, modelsOfTenant, parseOverlay, resolveTenantModel } from "../../control-plane/overlay.ts";
import { AppError } from "../../domain/app-error.ts";
import { adminConfigText, someGround, someOverlay } from "./some-overlay.ts";

/** What refuses a text: its sentence and key path. */
function refusalOf(text: string): { readonly message: string; readonly param: string | undefined } {
  try {
    someOverlay(text);
  } catch (error) {
    if (error instanceof AppError && error.code === "overlay_refused") return { message: error.message, param: error.client.param };
    throw error;
  }
  throw new Error(`accepted: ${text.slice(0, 200)}`);
}

const fullText = `
model: large
fallbacks: [small, large]
aliases: { fast: small, gpt-4: large }
max_tokens: 8_192
temperature: 0.7
system_prompt: |
  You are Acme's assistant.
  Be brief.
allowed_tools: [read, list, book_table, not.installed-yet]
denied_tools: [exec]
timezone: Europe/Berlin
api: { mode: gateway, sessions: by-user, models: [small, large] }
session: { scope: per-channel-peer, reset: idle, idle_minutes: 90 }
memory: { enabled: true, max_results: 8, min_score: 0.35 }
channels:
  whatsapp: { enabled: true, dm_policy: allowlist, allow_from: ["+15551234567"], group_policy: allowlist, require_mention: true }
  telegram: { dm_policy: pairing, group_allow_from: ["42"] }
heartbeat: { enabled: false, every: 30m, prompt: Look around., model: small, active_hours: { start: "08:00", end: "22:30" } }
cron: { enabled: true, max_concurrent_runs: 2 }
sandbox:
  default_mode: strict
  modes: { strict: { memory_limit_mb: 128, cpu_quota: 0.25, wall_seconds: 30 } }
  tools: { exec: docker }
  network: { allow: ["API.example.com.:443", "deep.er.example.com:8443", "*.er.example.com:443", "10.0.0.7:5432"] }
tts: { enabled: true, auto: inbound, voice: alloy }
skills: { weather: { enabled: true, env: { WEATHER_KEY: "abc: def", EMPTY: "" } } }
`;

describe("an overlay with every key", () => {
  test("is read", () => {
    const overlay = someOverlay(fullText);

    expect(overlay).toMatchObject({
      model: "large",
      fallbacks: ["small", "large"],
      maxTokens: 8192,
      temperature: 0.7,
      systemPrompt: "You are Acme's assistant.\nBe brief.\n",
      timezone: "Europe/Berlin",
      api: { mode: "gateway", sessionsByUser: true },
      session: { scope: "per-channel-peer", reset: "idle", idle_minutes: 90 },
      heartbeat: { every: "30m", active_hours: { start: "08:00", end: "22:30" } },
      skills: { weather: { enabled: true, env: { WEATHER_KEY: "abc: def", EMPTY: "" } } },
    });
    expect([...overlay.aliases]).toEqual([
      ["fast", "small"],
      ["gpt-4", "large"],
    ]);
    expect([...(overlay.allowedTools ?? [])]).toEqual(["read", "list", "book_table", "not.installed-yet"]);
    expect(overlay.sandbox?.network?.allow).toEqual([
      "api.example.com:443",
      "deep.er.example.com:8443",
      "*.er.example.com:443",
      "10.0.0.7:5432",
    ]);
  });

  test.each(["", "\n\n", "# nothing yet\n", "   # indented\n\n#\n", "\uFEFF# marked\n", "{}"])("is empty for %j", (text) => {
    expect(someOverlay(text)).toEqual(someOverlay(""));
    expect(someOverlay(text)).toMatchObject({ model: undefined, fallbacks: [], allowedTools: undefined, api: { sessionsByUser: false } });
  });
});

/** Text, key path, line, and a part of the sentence. */
const refused: readonly (readonly [text: string, param: string, line: number, says: string])[] = [
  // models that hold no conversation
  ["model: vectors", "model", 1, "is not a chat model"],
  ["fallbacks: [large, vectors]", "fallbacks.1", 1, "is not a chat model"],
  ["heartbeat: { model: vectors }", "heartbeat.model", 1, "is not a chat model"],
  // the administrator's keys
  ["anthropic_api_key: sk-ant-1", "anthropic_api_key", 1, "is not a known key"],
  ["# note\nrate_card: {}", "rate_card", 2, "is not a known key"],
  ["model: small\ns3_credentials: {}", "s3_credentials", 2, "is not a known key"],
  ["quotas: { tokens_per_day: 9 }", "quotas", 1, "is not a known key"],
  ["providers: { local: { base_url: http://evil } }", "providers", 1, "is not a known key"],
  ["models: { small: {} }", "models", 1, "is not a known key"],
  ["default_model: small", "default_model", 1, "is not a known key"],
  ["billing: { markup: 0 }", "billing", 1, "is not a known key"],
  ["backup: {}", "backup", 1, "is not a known key"],
  ["temporal: { address: evil:7233 }", "temporal", 1, "is not a known key"],
  ["database: { url: x }", "database", 1, "is not a known key"],
  ["http: { slots_per_tenant: 999 }", "http", 1, "is not a known key"],
  ["telemetry: {}", "telemetry", 1, "is not a known key"],
  ["markup: 0", "markup", 1, "is not a known key"],
  ["tenants: {}", "tenants", 1, "is not a known key"],
  ["plugins: []", "plugins", 1, "is not a known key"],
  ["env: { PATH: /tmp }", "env", 1, "is not a known key"],
  // nested
  ["api:\n  mode: agent\n  key: sk-1", "api.key", 3, "is not a known key"],
  ["session: { quotas: {} }", "session.quotas", 1, "is not a known key"],
  ["memory: { provider: x }", "memory.provider", 1, "is not a known key"],
  ["channels:\n  whatsapp:\n    token: abc", "channels.whatsapp.token", 3, "is not a known key"],
  ["channels: { endpoints: { telegram: http://evil } }", "channels.endpoints", 1, "is not a known key"],
  ["channels: { api: {} }", "channels.api", 1, "is not a known key"],
  ["channels: { web: {} }", "channels.web", 1, "is not a known key"],
  ["channels: { cron: {} }", "channels.cron", 1, "is not a known key"],
  ["channels: { icq: {} }", "channels.icq", 1, "is not a known key"],
  ["heartbeat: { api_key: x }", "heartbeat.api_key", 1, "is not a known key"],
  ["cron: { jobs: [] }", "cron.jobs", 1, "is not a known key"],
  ["tts: { api_key: x }", "tts.api_key", 1, "is not a known key"],
  ["sandbox: { tenant_may_allow: ['*.a.b:1'] }", "sandbox.tenant_may_allow", 1, "is not a known key"],
  ["sandbox: { require: any }", "sandbox.require", 1, "is not a known key"],
  ["sandbox: { network: { default: allow } }", "sandbox.network.default", 1, "is not a known key"],
  ["sandbox: { modes: { strict: { runtime: none } } }", "sandbox.modes.strict.runtime", 1, "is not a known key"],
  ["sandbox: { modes: { strict: { seccomp: off } } }", "sandbox.modes.strict.seccomp", 1, "is not a known key"],
  ["sandbox: { modes: { strict: { image: evil } } }", "sandbox.modes.strict.image", 1, "is not a known key"],
  ["skills: { weather: { apiKey: x } }", "skills.weather.apiKey", 1, "is not a known key"],
  // spelt otherwise
  ["Model: small", "Model", 1, "is not a known key"],
  ["MODEL: small", "MODEL", 1, "is not a known key"],
  ["maxTokens: 3", "maxTokens", 1, "is not a known key"],
  ["system-prompt: x", "system-prompt", 1, "is not a known key"],
  ['"rate_card": {}', "rate_card", 1, "is not a known key"],
  ["'quotas': {}", "quotas", 1, "is not a known key"],
  ['"\\x71uotas": {}', "quotas", 1, "is not a known key"],
  ["? quotas\n: {}", "quotas", 1, "is not a known key"],
  ["m\u043edel: small", "m\\u{43e}del", 1, "is not a known key"],
  ["model\u200b: small", "model\\u{200b}", 1, "is not a known key"],
  ['" model": small', " model", 1, "is not a known key"],
  ['"\\e[31mmodel": small', "\\u{1b}[31mmodel", 1, "is not a known key"],
  ["toString: x", "toString", 1, "is not a known key"],
  ["hasOwnProperty: x", "hasOwnProperty", 1, "is not a known key"],
  // what YAML can do besides
  ["__proto__: { model: small }", "__proto__", 1, "is not a known key"],
  ["api: { __proto__: { models: [large] } }", "api.__proto__", 1, "is not a known key"],
  ["constructor: {}", "constructor", 1, "is not a known key"],
  ["prototype: {}", "prototype", 1, "is not a known key"],
  ["<<: { quotas: {} }", "<<", 1, "is not a known key"],
  ["<<: { model: small }\nmodel: large", "<<", 1, "is not a known key"],
  ["aliases: { <<: { a: small } }", "aliases.<<", 1, "is not a known key"],
  ["model: &m small", "model", 1, "anchors are not allowed"],
  ["model: *m", "model", 1, ""],
  ["&a model: small", "", 1, "anchors are not allowed"],
  ["api: &a { mode: agent }\nsession: *a", "api", 1, "anchors are not allowed"],
  ["model: !!str small", "model", 1, "tags are not allowed"],
  ["model: !evil small", "model", 1, "tags are not allowed"],
  ["!!map { model: small }", "", 1, "tags are not allowed"],
  ["!!js/function 'x'", "", 1, "tags are not allowed"],
  ["%YAML 1.2\n---\nmodel: small", "", 1, "directives are not allowed"],
  ["%TAG ! tag:x,2000:\n---\nmodel: small", "", 1, "directives are not allowed"],
  ["model: small\nmodel: large", "model", 2, "stands here twice"],
  ['model: small\n"model": large', "model", 2, "stands here twice"],
  ["api: { mode: agent, mode: gateway }", "api.mode", 1, "stands here twice"],
  ["---\nmodel: small\n---\nmodel: large", "", 1, "more than one YAML document"],
  ["---\n---\n", "", 1, "more than one YAML document"],
  ["null", "", 1, "must be a mapping"],
  ["~", "", 1, "must be a mapping"],
  ["---", "", 1, "must be a mapping"],
  ["--- null\n", "", 1, "must be a mapping"],
  ["[]", "", 1, "must be a mapping"],
  ["- model: small", "", 1, "must be a mapping"],
  ["small", "", 1, "must be a mapping"],
  ["42", "", 1, "must be a mapping"],
  ["? [model]\n: small", "", 1, "every key must be text"],
  ["? { a: b }\n: small", "", 1, "every key must be text"],
  ["? \n: small", "", 1, "every key must be text"],
  ["model: small: large", "", 1, "is not valid YAML"],
  ["model: [small", "", 1, "is not valid YAML"],
  ["api:\n\tmode: agent", "", 2, "is not valid YAML"],
  ['model: "small', "", 1, "is not valid YAML"],
  ["model: sm\u0000all", "", 1, "is not valid YAML"],
  ["model: \u0007", "", 1, "is not valid YAML"],
  // values
  ["model:", "model", 1, "wrong shape"],
  ["model: null", "model", 1, "wrong shape"],
  ["model: [small]", "model", 1, "wrong shape"],
  ["model: { a: b }", "model", 1, "wrong shape"],
  ["model: ../etc", "model", 1, "must be a model id"],
  ["model: gone", "model", 1, '"gone" is not one of the configured models'],
  ["model: free", "model", 1, "has no price"],
  ["model: unconfigured", "model", 1, "is not one of the configured models"],
  ["model: Small", "model", 1, "is not one of the configured models"],
  ["model: toString", "model", 1, "is not one of the configured models"],
  ["fallbacks: small", "fallbacks", 1, "must be a list"],
  ["fallbacks:\n  - small\n  - gone", "fallbacks.1", 3, "is not one of the configured models"],
  ["fallbacks: [free]", "fallbacks.0", 1, "has no price"],
  ["aliases: { fast: gone }", "aliases.fast", 1, "is not one of the configured models"],
  ["aliases: { fast: free }", "aliases.fast", 1, "has no price"],
  ["aliases: { default: small }", "aliases.default", 1, "set model instead"],
  ["aliases: { openclaw: small }", "aliases.openclaw", 1, "set model instead"],
  ["aliases: { large: small }", "aliases.large", 1, "is the id of a configured model"],
  ["aliases: { fast: other, other: small }", "aliases.fast", 1, "is not one of the configured models"],
  ["aliases: []", "aliases", 1, "must be a mapping"],
  ["aliases: { 'a b': small }", "aliases.a b", 1, "must be a model id"],
  ["max_tokens: 0", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: -1", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: 1.5", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: 1e3", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: 0x10", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: all", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: [1]", "max_tokens", 1, "must be a whole number"],
  ["max_tokens: 4001", "max_tokens", 1, "from 1 to 4000"],
  ["model: large\nmax_tokens: 16001", "max_tokens", 2, "from 1 to 16000"],
  ["max_tokens: 99999999999999999999999", "max_tokens", 1, "must be a whole number"],
  ["temperature: 2.1", "temperature", 1, "must be a decimal from 0 to 2"],
  ["temperature: -0.1", "temperature", 1, "must be a decimal"],
  ["temperature: .inf", "temperature", 1, "must be a decimal"],
  ["temperature: hot", "temperature", 1, "must be a decimal"],
  ["system_prompt: [a]", "system_prompt", 1, "must be text"],
  ["system_prompt: null", "system_prompt", 1, "must be text"],
  ["allowed_tools: read", "allowed_tools", 1, "must be a list"],
  ["allowed_tools: [9lives]", "allowed_tools.0", 1, "must be the name of a tool"],
  ["allowed_tools: ['read ']", "allowed_tools.0", 1, "must be the name of a tool"],
  ["allowed_tools: [read, ../exec]", "allowed_tools.1", 1, "must be the name of a tool"],
  ["allowed_tools: [null]", "allowed_tools.0", 1, "must be the name of a tool"],
  [`denied_tools: [${"a".repeat(65)}]`, "denied_tools.0", 1, "must be the name of a tool"],
  ["denied_tools: { exec: true }", "denied_tools", 1, "must be a list"],
  ["timezone: Mars/Olympus", "timezone", 1, "IANA"],
  ["timezone: '+02:00'", "timezone", 1, "IANA"],
  ["timezone: ''", "timezone", 1, "IANA"],
  ["timezone: Europe/../UTC", "timezone", 1, "IANA"],
  ["api: agent", "api", 1, "wrong shape"],
  ["api: { mode: admin }", "api.mode", 1, "must be agent or gateway"],
  ["api: { sessions: all }", "api.sessions", 1, "must be by-user or stateless"],
  ["api: { models: [] }", "api.models", 1, "at least 1"],
  ["api: { models: [gone] }", "api.models.0", 1, "is not one of the configured models"],
  ["api: { models: [free] }", "api.models.0", 1, "has no price"],
  ["model: large\napi: { models: [small] }", "api.models", 2, 'must hold the overlay\'s own model "large"'],
  ["session: { scope: everybody }", "session.scope", 1, "must be main"],
  ["session: { reset: never }", "session.reset", 1, "must be none"],
  ["session: { idle_minutes: 0 }", "session.idle_minutes", 1, "must be a whole number"],
  ["memory: { enabled: yes }", "memory.enabled", 1, "must be true or false"],
  ["memory: { min_score: 1.1 }", "memory.min_score", 1, "must be a decimal"],
  ["channels: { whatsapp: { dm_policy: everybody } }", "channels.whatsapp.dm_policy", 1, "must be pairing"],
  ["channels: { whatsapp: { allow_from: '*' } }", "channels.whatsapp.allow_from", 1, "must be a list"],
  ["channels: { whatsapp: { require_mention: 1 } }", "channels.whatsapp.require_mention", 1, "must be true or false"],
  ["channels: { slack: { group_policy: pairing } }", "channels.slack.group_policy", 1, "must be open"],
  ["heartbeat: { every: often }", "heartbeat.every", 1, "for example 30m"],
  ["heartbeat: { model: gone }", "heartbeat.model", 1, "is not one of the configured models"],
  ["heartbeat: { active_hours: { start: '8', end: '22:00' } }", "heartbeat.active_hours.start", 1, "time of day"],
  ["heartbeat: { active_hours: { start: '08:00' } }", "heartbeat.active_hours.end", 1, "must be text"],
  ["sandbox: { default_mode: loose }", "sandbox.default_mode", 1, "is not one of the administrator's sandbox modes"],
  ["sandbox: { tools: { exec: loose } }", "sandbox.tools.exec", 1, "is not one of the administrator's sandbox modes"],
  ["sandbox: { tools: { '9': strict } }", "sandbox.tools.9", 1, "must be the name of a tool"],
  ["sandbox: { modes: { own: {} } }", "sandbox.modes.own", 1, "is not one of the administrator's sandbox modes"],
  ["sandbox: { modes: { toString: {} } }", "sandbox.modes.toString", 1, "is not one of the administrator's sandbox modes"],
  ["sandbox: { modes: { strict: { memory_limit_mb: 257 } } }", "sandbox.modes.strict.memory_limit_mb", 1, "must not be above"],
  ["sandbox: { modes: { strict: { cpu_quota: 0.6 } } }", "sandbox.modes.strict.cpu_quota", 1, "must not be above"],
  ["sandbox: { modes: { strict: { pids: 10 } } }", "sandbox.modes.strict.pids", 1, "cannot be lowered"],
  ["sandbox: { network: { allow: ['evil.test:443'] } }", "sandbox.network.allow.0", 1, "is not within"],
  ["sandbox: { network: { allow: ['registry.example:80'] } }", "sandbox.network.allow.0", 1, "is not within"],
  ["sandbox: { network: { allow: ['example.com:443'] } }", "sandbox.network.allow.0", 1, "is not within"],
  ["sandbox:\n  network:\n    allow:\n      - registry.example:443\n      - '*:443'", "sandbox.network.allow.1", 5, "whole first label"],
  ["sandbox: { network: { allow: ['*.com:443'] } }", "sandbox.network.allow.0", 1, "at least two labels"],
  ["sandbox: { network: { allow: [registry.example] } }", "sandbox.network.allow.0", 1, "must be host:port"],
  ["sandbox: { network: { allow_private: ['10.0.0.0/8'] } }", "sandbox.network.allow_private", 1, "is not a known key"],
  ["sandbox: { network: { max_up_mb: 9 } }", "sandbox.network.max_up_mb", 1, "is not a known key"],
  ["tts: { auto: sometimes }", "tts.auto", 1, "must be off"],
  ["skills: { '../up': {} }", "skills.../up", 1, "must be a name"],
  ["skills: { weather: { env: { 'A B': x } } }", "skills.weather.env.A B", 1, "must be the name of an environment variable"],
  ["skills: { weather: { env: { A: [1] } } }", "skills.weather.env.A", 1, "must be text"],
  ["skills: { weather: { env: { A: null } } }", "skills.weather.env.A", 1, "must be text"],
  ["skills: []", "skills", 1, "must be a mapping"],
];

describe(`an overlay is refused (${refused.length} ways)`, () => {
  test.each(refused)("%j", (text, param, line, says) => {
    const refusal = refusalOf(text);

    expect(refusal.param ?? "").toBe(param);
    expect(refusal.message).toContain(`overlay line ${line}: `);
    expect(refusal.message).toContain(says);
    if (param !== "") expect(refusal.message).toContain(`${param}: `);
  });

  test("when it is too large, or no text at all", () => {
    const comment = (size: number) => `#${"x".repeat(size - 1)}`;

    expect(someOverlay(comment(65_536))).toMatchObject({ model: undefined });
    expect(refusalOf(comment(65_537)).message).toContain("is larger than 65536 bytes");
    expect(refusalOf(`#${"€".repeat(21_900)}`).message).toContain("is larger than 65536 bytes");
    expect(() => decodeOverlay(Buffer.from([0x6d, 0xff, 0x3a]))).toThrow(expect.objectContaining({ code: "overlay_refused" }));
    expect(() => decodeOverlay(Buffer.alloc(65_537, 0x20))).toThrow(expect.objectContaining({ code: "overlay_refused" }));
  });

  test("with a key that is far too long, in a short sentence", () => {
    const { message, param } = refusalOf(`${"k".repeat(1_000)}: 1`);

    expect(param).toHaveLength(65);
    expect(message.length).toBeLessThan(200);
  });
});

/** Texts that are cheap to write and could be dear to read. */
const bombs: Readonly<Record<string, string>> = {
  "flow nesting": `a: ${"[".repeat(20_000)}`,
  "closed flow nesting": `a: ${"[".repeat(20_000)}${"]".repeat(20_000)}`,
  "nested mappings": `a: ${"{b: ".repeat(15_000)}`,
  "block nesting": "- ".repeat(30_000),
  "nested keys": "? ".repeat(30_000),
  "many keys": Array.from({ length: 6_500 }, (_, index) => `k${index}: 1`).join("\n"),
  "many keys of a record": `aliases: {${Array.from({ length: 5_000 }, (_, index) => `k${index}: x`).join(",")}}`,
  "many keys in a flow": `{${"a,".repeat(30_000)}}`,
  "the same key again and again": "a: 1\n".repeat(12_000),
  "a billion laughs": `a: &a [x]\n${Array.from({ length: 500 }, (_, n) => `b${n}: &b${n} [*a,*a,*a,*a,*a,*a]`).join("\n")}`,
  "aliases in a row": `a: [&x y${", *x".repeat(15_000)}]`,
  documents: "---\n".repeat(16_000),
  directives: "%YAML 1.2\n".repeat(6_000),
  tags: "!a ".repeat(20_000),
  "an open quote": `"${"x\n".repeat(30_000)}`,
  "escapes in a key": `"${"\\x41".repeat(16_000)}": 1`,
  "merge keys": "<<: {a: 1}\n".repeat(5_000),
};

describe("a bomb is refused before it can hurt", () => {
  test.each(Object.entries(bombs))("%s", (_name, text) => {
    const before = process.cpuUsage();

    refusalOf(text);

    const { user } = process.cpuUsage(before);
    expect(user / 1_000).toBeLessThan(1_000); // CPU time of this process, in milliseconds: a busy machine does not add to it
  });
});

/** Words that belong to the administrator, nested ones by their path. */
const adminKeys = [
  "providers",
  "default_model",
  "models",
  "billing",
  "billing.rate_card",
  "billing.markup",
  "rate_card",
  "quotas",
  "quotas.default",
  "backup",
  "backup.s3",
  "s3_credentials",
  "temporal",
  "database",
  "http",
  "telemetry",
  "api_key",
  "anthropic_api_key",
  "openai_api_key",
  "sandbox.require",
  "sandbox.tenant_may_allow",
  "channels.endpoints",
  "admin_keys",
  "tokens",
  "markup",
] as const;

const fullWidth = (text: string): string =>
  text.replaceAll(/[a-z]/g, (letter) => String.fromCodePoint((letter.codePointAt(0) ?? 0) - 0x61 + 0xff41));
const lookAlikes: Readonly<Record<string, string>> = {
  a: "\u0430",
  e: "\u0435",
  o: "\u043e",
  p: "\u0440",
  c: "\u0441",
  s: "\u0455",
  i: "\u0456",
};
const lookAlike = (text: string): string => text.replaceAll(/[aeopcsi]/g, (letter) => lookAlikes[letter] ?? letter);
const plain = (key: string): string => (/^[A-Za-z_][\w-]*$/.test(key) ? key : JSON.stringify(key));

/** How one key may be written; each writes the same or nearly the same name. */
const spellings: readonly ((key: string) => string)[] = [
  plain,
  (key) => JSON.stringify(key),
  (key) => `'${key}'`,
  (key) => `? ${plain(key)}\n`,
  (key) => `"${key.replaceAll(/./gu, (letter) => `\\u${(letter.codePointAt(0) ?? 0).toString(16).padStart(4, "0")}`)}"`,
  (key) => plain(key.toUpperCase()),
  (key) => plain(key.charAt(0).toUpperCase() + key.slice(1)),
  (key) => plain(key.replaceAll(/_(.)/g, (_match, letter: string) => letter.toUpperCase())),
  (key) => plain(key.replaceAll("_", "-")),
  (key) => JSON.stringify(fullWidth(key)),
  (key) => JSON.stringify(lookAlike(key)),
  (key) => JSON.stringify(`${key} `),
  (key) => JSON.stringify(`\u200b${key}`),
  (key) => JSON.stringify(`${key}\u0000`),
];

const inFlow = (path: readonly string[], spell: (key: string) => string, value: string): string =>
  path.reduceRight((inner, key) => `{${spell(key)}: ${inner}}`, value);

/** Where the key is put. */
const wrappings: readonly ((written: string) => string)[] = [
  (written) => written,
  (written) => `<<: ${written}`,
  (written) => `<<: [${written}]`,
  (written) => `api: ${written}`,
  (written) => `session: ${written}`,
  (written) => `sandbox: ${written}`,
  (written) => `memory: ${written}`,
  (written) => `channels: { whatsapp: ${written} }`,
  (written) => `skills: { x: ${written} }`,
  (written) => `x: &a ${written}\n<<: *a`,
  (written) => `!!map ${written}`,
  (written) => `--- ${written}\n...\n---\nmodel: small`,
];

test("whatever key of the administrator's is written in whatever spelling and place, it is refused and nothing of the administrator's changes", () => {
  const before = JSON.stringify(someGround, (_key, value: unknown) =>
    value instanceof Map ? [...value] : typeof value === "bigint" ? `${value}` : value,
  );
  const value = fc.constantFrom("x", "{}", "[]", "null", "{ a: b }", "0", "{ input: 0, output: 0 }");

  fc.assert(
    fc.property(
      fc.constantFrom(...adminKeys),
      fc.constantFrom(...spellings),
      fc.constantFrom(...wrappings),
      value,
      (key, spell, wrap, held) => {
        const text = wrap(inFlow(key.split("."), spell, held));

        expect(() => someOverlay(text)).toThrow(expect.objectContaining({ code: "overlay_refused" }));
      },
    ),
    { numRuns: 3_000 },
  );

  const after = JSON.stringify(someGround, (_key, held: unknown) =>
    held instanceof Map ? [...held] : typeof held === "bigint" ? `${held}` : held,
  );
  expect(after).toBe(before);
  expect(parseAdminConfig(adminConfigText)).toEqual(someGround);
  expect(({} as Record<string, unknown>)["model"]).toBeUndefined();
});

test("any text whatever is read or refused with the overlay's own error", () => {
  const line = fc.oneof(
    fc.constantFrom(
      "model: small",
      "api: {",
      "}",
      "- x",
      "? ",
      ": ",
      "&a ",
      "*a",
      "!!str",
      "---",
      "...",
      "%YAML 1.2",
      "# x",
      "<<: {}",
      "|",
      ">-",
      "'",
      '"',
    ),
    fc.string({ unit: "binary", maxLength: 12 }),
  );

  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), fc.constantFrom("\n", " ", "\r\n", "\n  "), (lines, joint) => {
      try {
        someOverlay(lines.join(joint));
      } catch (error) {
        expect(error).toMatchObject({ code: "overlay_refused" });
      }
    }),
    { numRuns: 2_000 },
  );
});

describe("a tenant's name for a model", () => {
  const resolve = (overlay: string, requested: string): string => resolveTenantModel(someGround, someOverlay(overlay), requested).id;

  test("is a configured model, an alias, or the default one's", () => {
    expect(resolve("", "default")).toBe("small");
    expect(resolve("model: large", "default")).toBe("large");
    expect(resolve("model: large", "openclaw")).toBe("large");
    expect(resolve("aliases: { gpt-4: large }", "gpt-4")).toBe("large");
    expect(resolve("model: large", "small")).toBe("small");
  });

  test.each([
    ["", "gone", "model_not_found"],
    ["", "free", "model_not_priced"],
    ["", "gpt-4", "model_not_found"],
    ["api: { models: [small] }", "large", "model_not_found"],
    ["api: { models: [small] }", "gone", "model_not_found"],
    ["api: { models: [small] }\naliases: { fast: large }", "fast", "model_not_found"],
    ["api: { models: [large] }", "default", "model_not_found"],
    ["aliases: { a: small }", "__proto__", "model_not_found"],
  ])("%j refuses %s as %s", (overlay, requested, code) => {
    expect(() => resolve(overlay, requested)).toThrow(
      expect.objectContaining({ code, client: expect.objectContaining({ param: "model" }) }),
    );
  });

  test("is in its list of models: what it may call, and its aliases of that", () => {
    const listed = (overlay: string) => modelsOfTenant(someGround, someOverlay(overlay)).map(({ id }) => id);

    expect(listed("")).toEqual(["small", "large", "vectors"]);
    expect(listed("api: { models: [large] }\naliases: { big: large, fast: small }")).toEqual(["large", "big"]);
  });
});

test("a tool is allowed unless it is denied or others are listed, and denied when both", () => {
  const allowed = (overlay: string) => ["read", "exec"].filter((tool) => isToolAllowed(someOverlay(overlay), tool));

  expect(allowed("")).toEqual(["read", "exec"]);
  expect(allowed("allowed_tools: [read]")).toEqual(["read"]);
  expect(allowed("denied_tools: [read]")).toEqual(["exec"]);
  expect(allowed("allowed_tools: [read, exec]\ndenied_tools: [exec]")).toEqual(["read"]);
  expect(allowed("allowed_tools: []")).toEqual([]);
});

test("an overlay that was good is refused by another configuration of the administrator's", () => {
  const without = parseAdminConfig(adminConfigText.replace("  large: { provider", "  other: { provider"));

  expect(() => parseOverlay("system_prompt: x\nmodel: large", without)).toThrow(
    expect.objectContaining({ code: "overlay_refused", message: expect.stringContaining("overlay line 2: model: ") }),
  );
});
