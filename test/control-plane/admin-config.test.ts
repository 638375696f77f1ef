import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import {
  configurationWarnings,
  loadAdminConfig,
  parseAdminConfig,
  hasKey,
  missingKey,
  providerKeysOf,
  resolveModel,
} from "../../control-plane/admin-config.ts";
import { defaultConfigText, readShippedCard, writeDefaultConfig } from "../../control-plane/default-config.ts";
import { AppError } from "../../domain/app-error.ts";
import { type RateText, parseRates } from "../../domain/rate-card.ts";
import { emptyHome } from "./control-stage.ts";

const minimal = `default_model: small
providers:
  main: { kind: openai, api_key_env: SOME_KEY }
  local: { kind: openai-compatible, base_url: "http://127.0.0.1:11434/v1" }
models:
  small: { provider: main, context_window: 128_000, max_output_tokens: 4096, fallbacks: [spare] }
  spare: { provider: local, context_window: 8192, max_output_tokens: 2048 }
  free: { provider: local, context_window: 8192, max_output_tokens: 2048 }
billing:
  markup: 0.10
  rate_card:
    small: { input: 15.00, output: 75.00, cache_read: 1.50, cache_write: 18.75, reasoning: 75.00 }
    spare: { input: 0.000001, output: 1000000 }
`;

function refusalOf(text: string): AppError {
  try {
    parseAdminConfig(text);
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error("the configuration was accepted");
}

test("money is read as decimal text, whole numbers as numbers", () => {
  const config = parseAdminConfig(minimal);

  expect(config.billing.markupPpm).toBe(100_000);
  expect(config.rateCard.text["small"]).toEqual({
    input: "15",
    output: "75",
    cache_read: "1.5",
    cache_write: "18.75",
    reasoning: "75",
  });
  expect(config.rateCard.rates.get("spare")).toMatchObject({
    input: 1n,
    output: 1_000_000_000_000n,
    cacheRead: 1n,
    reasoning: 1_000_000_000_000n,
  });
  expect(config.models.get("small")).toEqual({
    id: "small",
    provider: "main",
    kind: "chat",
    contextWindow: 128_000,
    maxOutputTokens: 4096,
    fallbacks: ["spare"],
  });
  expect(config.http.slots_per_tenant).toBe(64);
  expect(config.http).toMatchObject({ trusted_proxies: [], allowed_origins: [] });
});

test("a provider of OpenAI's kinds may speak Responses, and speaks Chat Completions unless it is told to", () => {
  const told = parseAdminConfig(minimal.replace("kind: openai,", "kind: openai, api: responses,"));

  expect(told.providers.get("main")).toMatchObject({ kind: "openai", api: "responses" });
  expect(told.providers.get("local")?.api).toBeUndefined();
});

test("proxies and origins are taken exactly as they will be compared", () => {
  const withHttp = (yaml: string) => parseAdminConfig(`${minimal}http: { ${yaml} }\n`).http;

  expect(withHttp('trusted_proxies: ["10.0.0.0/8", "::1", "192.0.2.7"]').trusted_proxies).toEqual(["10.0.0.0/8", "::1", "192.0.2.7"]);
  expect(withHttp('allowed_origins: ["https://chat.example.com", "http://127.0.0.1:3000"]').allowed_origins).toHaveLength(2);
  for (const proxy of ["true", "*", "10.0.0.0/33", "0.0.0.0/0", "10.0.0.0/8/8", "localhost", "10.1", "::/0", ""])
    expect(() => withHttp(`trusted_proxies: ["${proxy}"]`), proxy).toThrow(/IP address or a network/);
  for (const origin of [
    "*",
    "null",
    "chat.example.com",
    "https://chat.example.com/",
    "https://CHAT.example.com",
    "file://",
    "https://a:443",
    "",
  ])
    expect(() => withHttp(`allowed_origins: ["${origin}"]`), origin).toThrow(/must be an origin/);
});

test("the hash of the card depends on its content, not on its order or comments", () => {
  const turned = minimal.replace("{ input: 0.000001, output: 1000000 }", "{ output: 1000000, input: 0.000001 } # turned");

  const respelt = minimal.replace("{ input: 15.00,", "{ 'input': \"15\", # list price\n     ").replace("1.50", "1.500000");

  expect(parseAdminConfig(turned).rateCard.hash).toBe(parseAdminConfig(minimal).rateCard.hash);
  expect(parseAdminConfig(respelt).rateCard.hash).toBe(parseAdminConfig(minimal).rateCard.hash);
  expect(parseAdminConfig(minimal.replace("18.75", "18.76")).rateCard.hash).not.toBe(parseAdminConfig(minimal).rateCard.hash);
});

test.each([
  ["misspelt at the top", `${minimal}quotes: {}\n`, 14, "quotes", "not a known key"],
  ["misspelt below", minimal.replace("cache_read", "cache_reed"), 12, "billing.rate_card.small.cache_reed", "not a known key"],
  [
    "a provider's key in the file",
    minimal.replace("api_key_env: SOME_KEY", "api_key: sk-123"),
    3,
    "providers.main.api_key",
    "not a known key",
  ],
  ["a duplicate key", `${minimal}default_model: spare\n`, 14, "default_model", "twice"],
  ["a rate with seven places", minimal.replace("15.00", "0.0000001"), 12, "billing.rate_card.small.input", "at most 6 places"],
  ["a rate with an exponent", minimal.replace("15.00", "1e3"), 12, "billing.rate_card.small.input", "decimal"],
  ["a negative rate", minimal.replace("15.00", "-1"), 12, "billing.rate_card.small.input", "decimal"],
  ["a rate too high", minimal.replace("1000000", "1000000.000001"), 13, "billing.rate_card.spare.output", "1,000,000"],
  ["a rate that is nothing", minimal.replace("15.00", "~"), 12, "billing.rate_card.small.input", "decimal"],
  ["a missing output rate", minimal.replace(", output: 1000000", ""), 13, "billing.rate_card.spare.output", "decimal"],
  ["a markup in per cent", minimal.replace("0.10", "10 %"), 10, "billing.markup", "decimal"],
  ["a number that is none", minimal.replace("4096", "4k"), 6, "models.small.max_output_tokens", "whole number"],
  ["more output than context", minimal.replace("4096", "128001"), 6, "models.small.max_output_tokens", "larger than"],
  [
    "a provider that is not there",
    minimal.replace("provider: main", "provider: mian"),
    6,
    "models.small.provider",
    '"mian" is not one of providers',
  ],
  ["a fallback that is not there", minimal.replace("[spare]", "[spare, sapre]"), 6, "models.small.fallbacks.1", '"sapre" is not another'],
  ["an unknown kind of model", minimal.replace("4096,", "4096, kind: vision,"), 6, "models.small.kind", "must be chat, embedding"],
  [
    "a default that is no chat model",
    minimal.replace("4096, fallbacks: [spare]", "4096, kind: embedding"),
    1,
    "default_model",
    "is not a chat model",
  ],
  [
    "a fallback that is no chat model",
    minimal.replace("8192, max_output_tokens: 2048", "8192, kind: moderation, max_output_tokens: 2048"),
    6,
    "models.small.fallbacks.0",
    "is not a chat model",
  ],
  [
    "fallbacks of a model that is no chat model",
    minimal
      .replace("8192, max_output_tokens: 2048", "8192, kind: embedding, fallbacks: [free], max_output_tokens: 2048")
      .replace("[spare]", "[]"),
    7,
    "models.spare.fallbacks",
    "chat models only",
  ],
  [
    "an embedding model of Anthropic's",
    minimal
      .replace("{ kind: openai, ", "{ kind: anthropic, ")
      .replace("4096, fallbacks: [spare]", "4096, kind: embedding")
      .replace("default_model: small", "default_model: free"),
    6,
    "models.small.kind",
    "must be chat",
  ],
  [
    "a transcription model of the demo provider's",
    minimal
      .replace("{ kind: openai, api_key_env: SOME_KEY }", "{ kind: demo }")
      .replace("4096, fallbacks: [spare]", "4096, kind: transcription")
      .replace("default_model: small", "default_model: free"),
    6,
    "models.small.kind",
    "must be chat or embedding",
  ],
  [
    "a default that is not there",
    minimal.replace("default_model: small", "default_model: big"),
    1,
    "default_model",
    '"big" is not one of models',
  ],
  [
    "an api that nobody has",
    minimal.replace("kind: openai,", "kind: openai, api: completions,"),
    3,
    "providers.main.api",
    "chat or responses",
  ],
  [
    "an api of another kind",
    minimal.replace("kind: openai,", "kind: anthropic, api: responses,"),
    3,
    "providers.main.api",
    "belongs to the kinds openai",
  ],
  ["an unknown kind", minimal.replace("kind: openai,", "kind: openia,"), 3, "providers.main.kind", "must be openai"],
  ["no base_url", minimal.replace(', base_url: "http://127.0.0.1:11434/v1"', ""), 4, "providers.local", "needs a base_url"],
  [
    "a file as base_url",
    minimal.replace("http://127.0.0.1:11434/v1", "file:///etc/passwd"),
    4,
    "providers.local.base_url",
    "must be a URL",
  ],
  ["another currency", minimal.replace("markup: 0.10", "currency: EUR"), 10, "billing.currency", "must be USD"],
  ["a list for a mapping", "default_model: a\nproviders: []\nmodels: {}\n", 2, "providers", "wrong shape"],
  ["no models", "default_model: a\nproviders: {}\n", 1, "models", "missing"],
  ["a bad block of a later feature", `${minimal}sandbox: { require: cgroups }\n`, 14, "sandbox.require", "cgroup or any"],
  ["a prototype", `${minimal}__proto__: { x: 1 }\n`, 14, "__proto__", "not a known key"],
])("%s is refused with its line and key path", (_name, text, line, param, says) => {
  const { code, client, message } = refusalOf(text);

  expect(code).toBe("invalid_configuration");
  expect(message).toContain(says);
  expect(message).toContain(`config.yaml line ${line}: ${param}`);
  expect(client.param).toBe(param);
});

test.each([
  ["an anchor", minimal.replace("{ input: 0.000001", "&rate { input: 0.000001"), "anchors"],
  ["an alias", minimal.replace("models:", "x: *small\nmodels:"), "aliases"],
  ["a tag", minimal.replace("15.00", "!!str 15.00"), "tags"],
  ["a merge key", minimal.replace("{ input: 0.000001", "{ <<: {}, input: 0.000001"), "not a known key"],
  ["two documents", `${minimal}---\nx: 1\n`, "more than one"],
  ["a directive", `%YAML 1.2\n---\n${minimal}`, "directives"],
  ["an explicit null document", "---\n~\n", "must be a mapping"],
  ["a list", "- a\n", "must be a mapping"],
  ["broken YAML", "a: [1\nb: 2\n", "not valid YAML"],
  ["a key that is a list", "? [a]\n: b\n", "must be text"],
  ["a deep nest", `x: ${"[".repeat(100)}${"]".repeat(100)}\n`, "not valid YAML"],
  ["a huge file", `# ${"x".repeat(1024 * 1024)}\n`, "larger than"],
])("%s is refused", (_name, text, says) => {
  expect(refusalOf(text).message).toContain(says);
});

const nonDecimals = [
  "1e3",
  "1E-2",
  "0x10",
  "0o17",
  "017",
  "-1",
  "-0",
  "+1",
  ".5",
  "1.",
  ".inf",
  "-.inf",
  "Infinity",
  ".nan",
  "NaN",
  "1_000",
  "1,5",
]
  .concat(['" 1"', '"1 "', '"1\\n"', '""', "true", "~", "[1]", "{}", "0.1234567", "1000000.000001", "1000001", "0.10000000000000000555"])
  .concat(["\u0661", "|\n      1\n"]);
test.each(nonDecimals)("money that is written %j is refused, as a rate and as a markup", (written) => {
  expect(refusalOf(minimal.replace("15.00", written)).client.param).toMatch(/^$|^billing\.rate_card\.small/);
  expect(refusalOf(minimal.replace("0.10", written)).client.param).toMatch(/^$|^billing\.markup/);
});

test("money at its bounds is taken to the digit", () => {
  for (const [written, ppm] of [
    ["0", 0],
    ["0.000001", 1],
    ['"1000000.000000"', 1_000_000_000_000],
  ] as const) {
    expect(parseAdminConfig(minimal.replace("0.10", written)).billing.markupPpm).toBe(ppm);
    expect(parseAdminConfig(minimal.replace("15.00", written)).rateCard.rates.get("small")?.input).toBe(BigInt(ppm));
  }
});

test("a model is found by its id and by the names of the default", () => {
  const config = parseAdminConfig(minimal);

  expect(resolveModel(config, "spare")).toMatchObject({ id: "spare", provider: "local", contextWindow: 8192 });
  expect(resolveModel(config, "default").id).toBe("small");
  expect(resolveModel(config, "openclaw").id).toBe("small");
  expect(() => resolveModel(config, "gpt")).toThrow(expect.objectContaining({ code: "model_not_found" }));
  expect(() => resolveModel(config, "__proto__")).toThrow(expect.objectContaining({ code: "model_not_found" }));
  expect(() => resolveModel(config, "free")).toThrow(expect.objectContaining({ code: "model_not_priced" }));
});

test("a provider without its key is named at start, and refused at a call without telling the client the variable", () => {
  const config = parseAdminConfig(minimal);
  const [main, local] = [...config.providers.values()];
  if (main === undefined || local === undefined) throw new Error("two providers");

  expect(configurationWarnings(config, { SOME_KEY: "" })).toEqual([
    "The provider main cannot be used: SOME_KEY is not set.",
    "The model free cannot be used: it has no price in billing.rate_card.",
  ]);
  expect([hasKey(main, { SOME_KEY: "sk-1" }), hasKey(main, {}), hasKey(local, {})]).toEqual([true, false, true]);
  expect(providerKeysOf(main, { SOME_KEY: "sk-1" })).toEqual([{ name: "SOME_KEY", secret: "sk-1" }]);
  expect(missingKey(main)).toMatchObject({ code: "provider_error", message: expect.not.stringContaining("SOME_KEY") });
});

test("a provider may have several keys, each named once; one that is not set is left out and named", () => {
  const withKeys = (keys: string): string => minimal.replace("api_key_env: SOME_KEY", `api_key_env: ${keys}`);
  const config = parseAdminConfig(withKeys("[SOME_KEY, OTHER_KEY]"));
  const [main] = [...config.providers.values()];
  if (main === undefined) throw new Error("a provider");

  expect(providerKeysOf(main, { OTHER_KEY: "sk-2" })).toEqual([{ name: "OTHER_KEY", secret: "sk-2" }]);
  expect(configurationWarnings(config, { OTHER_KEY: "sk-2" })[0]).toBe(
    "The provider main is used without one of its keys: SOME_KEY is not set.",
  );
  expect(configurationWarnings(config, {})[0]).toBe("The provider main cannot be used: SOME_KEY, OTHER_KEY are not set.");
  for (const wrong of ["[SOME_KEY, SOME_KEY]", "[]", '["not a name"]', "{}"])
    expect(() => parseAdminConfig(withKeys(wrong))).toThrow(expect.objectContaining({ code: "invalid_configuration" }));
});

test("the first start writes a file for the demonstration model, private and once", () => {
  const home = emptyHome();

  expect(writeDefaultConfig(home, {})).toBe(true);
  expect(writeDefaultConfig(home, { OPENAI_API_KEY: "sk-1" })).toBe(false);

  const config = loadAdminConfig(home);
  expect(resolveModel(config, "default")).toMatchObject({ id: "demo", provider: "demo", rates: { input: 1_000_000n, output: 2_000_000n } });
  expect([...config.providers.values()]).toMatchObject([{ kind: "demo" }]);
  expect(configurationWarnings(config, {})).toEqual([]);
  expect(statSync(join(home, "config.yaml")).mode & 0o777).toBe(0o600);
  expect(readdirSync(home)).toEqual(["config.yaml"]);
});

test.each([
  [{ OPENAI_API_KEY: "sk-1" }, ["openai"], "gpt-"],
  [{ ANTHROPIC_API_KEY: "sk-2" }, ["anthropic"], "claude-"],
  [{ OPENAI_API_KEY: "sk-1", ANTHROPIC_API_KEY: "sk-2" }, ["openai", "anthropic"], "gpt-"],
  [{ OPENAI_API_KEY: "", ANTHROPIC_API_KEY: "sk-2" }, ["anthropic"], "claude-"],
])("with %j the first file has the providers %j, priced by the dated card", (variables, providers, start) => {
  const config = parseAdminConfig(defaultConfigText(variables));

  expect([...config.providers.keys()]).toEqual(providers);
  expect(config.defaultModel.startsWith(start)).toBe(true);
  expect(configurationWarnings(config, variables)).toEqual([]);
  for (const id of config.models.keys()) expect(resolveModel(config, id).rates.output).toBeGreaterThan(0n);
});

test("every model of the shipped card is whole, and its rates arrive to the digit", () => {
  const card = readShippedCard();
  const config = parseAdminConfig(defaultConfigText({ OPENAI_API_KEY: "x", ANTHROPIC_API_KEY: "x" }));

  expect(Object.keys(card.sources).toSorted()).toEqual(Object.keys(card.providers).toSorted());
  for (const { default_model, models } of Object.values(card.providers)) {
    expect(models[default_model]).toBeDefined();
    for (const [id, { source, context_window: _window, max_output_tokens: _ceiling, ...rates }] of Object.entries(models)) {
      expect(config.rateCard.rates.get(id)).toEqual(parseRates(id, rates as RateText));
      expect(["developers.openai.com", "platform.claude.com"]).toContain(new URL(source).hostname);
    }
  }
});

test("a file that is missing or broken is named with its path", () => {
  const home = emptyHome();
  expect(() => loadAdminConfig(home)).toThrow(/config\.yaml cannot be read/);

  writeFileSync(join(home, "config.yaml"), "default_modle: x\n");

  expect(() => loadAdminConfig(home)).toThrow(expect.objectContaining({ code: "invalid_configuration" }));
  expect(readFileSync(join(home, "config.yaml"), "utf8")).toBe("default_modle: x\n");
});

const withStripe = (block: string): string => minimal.replace("billing:\n", `billing:\n  stripe: ${block}\n`);

test("billing.stripe maps tenants to Stripe's customers", () => {
  expect(parseAdminConfig(minimal).billing.stripe).toBeUndefined();
  expect(parseAdminConfig(withStripe("{ api_key_env: STRIPE_KEY }")).billing.stripe).toEqual({
    apiKeyEnv: "STRIPE_KEY",
    apiBase: undefined,
    mode: "live",
    eventNames: { usage: "openclaw_usage_nano_usd", platform_fee: "openclaw_platform_fee_nano_usd" },
    firstDay: undefined,
    customers: new Map(),
  });
  const config = parseAdminConfig(
    withStripe(
      '{ api_key_env: K, api_base: "http://127.0.0.1:12111", mode: test, meter_event_names: { usage: u }, first_day: 2026-11-01, customers: { acme: cus_1, 007: cus_2 } }',
    ),
  );
  expect(config.billing.stripe).toMatchObject({ mode: "test", firstDay: "2026-11-01", eventNames: { usage: "u" } });
  expect(Object.fromEntries(config.billing.stripe?.customers ?? [])).toEqual({ "007": "cus_2", acme: "cus_1" });
  expect(configurationWarnings(config, { SOME_KEY: "k" })).toContain("No usage can be told to Stripe: K is not set.");
});

test.each([
  ["{ mode: test }", "billing.stripe.api_key_env"],
  ["{ api_key_env: sk-test-123 }", "billing.stripe.api_key_env"],
  ["{ api_key_env: K, api_key: sk_live_1 }", "billing.stripe.api_key"],
  ["{ api_key_env: K, mode: sandbox }", "billing.stripe.mode"],
  ["{ api_key_env: K, api_base: http://stripe.example.com }", "billing.stripe.api_base"],
  ["{ api_key_env: K, api_base: nonsense }", "billing.stripe.api_base"],
  ["{ api_key_env: K, first_day: 2026-02-30 }", "billing.stripe.first_day"],
  ["{ api_key_env: K, first_day: yesterday }", "billing.stripe.first_day"],
  ["{ api_key_env: K, customers: { acme: sub_1 } }", "billing.stripe.customers.acme"],
  ["{ api_key_env: K, customers: { Not_A_Tenant: cus_1 } }", "billing.stripe.customers.Not_A_Tenant"],
  ["{ api_key_env: K, customers: { acme: cus_1, other: cus_1 } }", "billing.stripe.customers.other"],
  ["{ api_key_env: K, meter_event_names: { usage: same, platform_fee: same } }", "billing.stripe.meter_event_names.platform_fee"],
])("billing.stripe: %s is refused, naming %s", (block, path) => {
  const refused = refusalOf(withStripe(block));

  expect(refused.client.param).toBe(path);
  expect(refused.message).toContain("line 10");
});
