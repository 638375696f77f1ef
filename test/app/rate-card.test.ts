import { randomBytes } from "node:crypto";
import { lstatSync, mkdirSync, readFileSync, readlinkSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test } from "vitest";
import { parseAdminConfig } from "../../control-plane/admin-config.ts";
import { binPath, run } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** A gateway and a worker as processes of their own on one home: what changes in its config.yaml has to bite in both. */
let model: ModelServer;
let gateway: RunningProduct;
let worker: RunningProduct;
let env: Record<string, string>;

const configOf = (url: string): string => `# the operator's own words
default_model: test-model
providers:
  local: { kind: openai-compatible, base_url: "${url}" }
models:
  test-model: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  other-model: { provider: local, context_window: 100000, max_output_tokens: 4000 }
billing:
  markup: 0     # nobody pays more
  rate_card:    # as of today
    test-model: { input: 15.5, output: 75 }
    other-model: { input: 1, output: 1 }
# the last line
`;

beforeAll(async () => {
  model = await startModelServer();
  env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  gateway = await startProduct({ config: configOf(model.url), env, role: "gateway" });
  worker = await startProduct({ env, role: "worker", home: gateway.home });
}, 120_000);
afterAll(async () => {
  await worker?.stop();
  await gateway?.stop();
  await model?.close();
});

type Answer = { readonly status: number; readonly json: Record<string, unknown>; readonly headers: Headers };
type Rates = Record<string, { readonly input: string; readonly output: string }>;

async function call(method: string, path: string, body?: string, headers: Record<string, string> = {}, at = gateway): Promise<Answer> {
  const answer = await fetch(at.url + path, {
    method,
    headers: {
      authorization: `Bearer ${at.adminKey}`,
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    ...(body === undefined ? {} : { body }),
  });
  return { status: answer.status, json: (await answer.json()) as Record<string, unknown>, headers: answer.headers };
}
const put = async (card: unknown, headers: Record<string, string> = {}, at = gateway) =>
  await call("PUT", "/v1/rate-card", JSON.stringify({ rate_card: card }), headers, at);
const get = async (at = gateway) => (await call("GET", "/v1/rate-card", undefined, {}, at)).json;
const errorOf = ({ status, json }: Answer) => ({ status, ...(json["error"] as { code: string; param: string | null; message: string }) });

const configPath = (at = gateway): string => join(at.home, "config.yaml");
const configText = (at = gateway): string => readFileSync(configPath(at), "utf8");
/** As an editor saves: a new file in the old one's place. */
function edit(change: (text: string) => string, at = gateway): void {
  writeFileSync(`${configPath(at)}.new`, change(configText(at)));
  renameSync(`${configPath(at)}.new`, configPath(at));
}
const cardOf = (input: string, more: Rates = { "other-model": { input: "1", output: "1" } }): Rates => ({
  "test-model": { input, output: "75" },
  ...more,
});
let prices = 0;
/** One that was never asked before, as its shortest text. */
const freshPrice = (): string => `${20 + prices++}.5`;

/** Asks again until it is so: every change here is made by another process in its own time. */
async function until<T>(look: () => Promise<T | undefined>): Promise<T> {
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
const inForce = async (input: string, at = gateway) =>
  await until(async () => {
    const card = await get(at);
    return (card["rate_card"] as Rates)["test-model"]?.input === input ? card : undefined;
  });
const ready = async () => {
  const answer = await fetch(`${gateway.url}/readyz`);
  const found = (await answer.json()) as { checks: Record<string, string>; reasons?: Record<string, string> };
  return { ...found, status: answer.status };
};

const newTenant = async (name: string) => {
  const id = `${name}-${randomBytes(4).toString("hex")}`;
  return { id, token: await gateway.createTenant(id) };
};
type Tenant = Awaited<ReturnType<typeof newTenant>>;
const chat = async ({ token }: Tenant, content: string, more: Record<string, string> = {}, headers: Record<string, string> = {}) => {
  const answer = await fetch(`${gateway.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content }], ...more }),
  });
  return { status: answer.status, json: (await answer.json()) as Record<string, unknown>, headers: answer.headers };
};
type Row = { id: string; rate_card_hash: string; markup_ppm: number; cost_nano_usd: string; input_tokens: string; output_tokens: string };
const rowsOf = async ({ id }: Tenant) =>
  (
    await runSql(
      env["DATABASE_URL"] ?? "",
      `select id, rate_card_hash, markup_ppm::int, cost_nano_usd, input_tokens, output_tokens from control.usage_ledger where tenant_id = '${id}' order by "timestamp"`,
    )
  ).rows as Row[];
/** The rows of a call that is made now. */
const billed = async (tenant: Tenant): Promise<Row | undefined> => {
  expect((await chat(tenant, `call ${randomBytes(4).toString("hex")}`)).status).toBe(200);
  return (await rowsOf(tenant)).at(-1);
};
const entries = async () =>
  (
    await runSql(
      env["DATABASE_URL"] ?? "",
      "select seq::int, actor_type, actor_id, target, outcome from control.audit_entry where action = 'rate-card.update' order by seq",
    )
  ).rows as { seq: number; actor_type: string; actor_id: string; target: string; outcome: string }[];
const openclaw = async (words: readonly string[], input?: string) =>
  await run(process.execPath, [binPath, ...words], { OPENCLAW_URL: gateway.url, OPENCLAW_ADMIN_KEY: gateway.adminKey }, input);

describe("a card that is put", () => {
  test("is in force at once, in the file with all its other text, in the audit, and in the worker", async () => {
    const tenant = await newTenant("put");
    const before = await billed(tenant);
    const input = freshPrice();
    const text = configText();

    const answer = await put(cardOf(`${input}0`));

    expect(answer.status).toBe(200);
    expect(answer.json).toMatchObject({ currency: "USD", rate_card: cardOf(input) });
    expect(configText()).toBe(text.replace(/test-model: \{ input: [\d.]+,/, `test-model: { input: ${input},`));
    expect(lstatSync(configPath()).mode & 0o777).toBe(0o600);
    expect(await get()).toMatchObject({ hash: answer.json["hash"], valid_from: expect.any(String), markup_ppm: 0, fault: null });
    expect((await entries()).at(-1)).toMatchObject({
      actor_type: "admin",
      target: `rate-card:${String(answer.json["hash"])}`,
      outcome: "applied",
    });
    const after = await until(async () => {
      const row = await billed(tenant);
      return row?.rate_card_hash === answer.json["hash"] ? row : undefined;
    });
    expect(after.rate_card_hash).not.toBe(before?.rate_card_hash);
    const explained = await call("GET", `/v1/billing/rows/${after.id}/explain`);
    expect(explained.json["lines"]).toContainEqual(
      expect.objectContaining({ class: "input", usd_per_million: expect.stringContaining(input) }),
    );
    const old = await call("GET", `/v1/billing/rows/${before?.id ?? ""}/explain`);
    expect(old.status).toBe(200);
  });

  test.each([
    ["an exponent", `{"rate_card":{"test-model":{"input":1e3,"output":1}}}`, "invalid_rate"],
    ["an exponent as text", `{"rate_card":{"test-model":{"input":"1e3","output":1}}}`, "invalid_rate"],
    ["hexadecimal", `{"rate_card":{"test-model":{"input":"0x10","output":1}}}`, "invalid_rate"],
    ["octal", `{"rate_card":{"test-model":{"input":"017","output":1}}}`, "invalid_rate"],
    ["YAML's octal", `{"rate_card":{"test-model":{"input":"0o17","output":1}}}`, "invalid_rate"],
    ["a negative", `{"rate_card":{"test-model":{"input":-1,"output":1}}}`, "invalid_rate"],
    ["minus nothing", `{"rate_card":{"test-model":{"input":-0,"output":1}}}`, "invalid_rate"],
    ["infinity", `{"rate_card":{"test-model":{"input":".inf","output":1}}}`, "invalid_rate"],
    ["no number", `{"rate_card":{"test-model":{"input":"NaN","output":1}}}`, "invalid_rate"],
    ["a space before", `{"rate_card":{"test-model":{"input":" 1","output":1}}}`, "invalid_rate"],
    ["a line end behind", `{"rate_card":{"test-model":{"input":"1\\n","output":1}}}`, "invalid_rate"],
    ["grouped digits", `{"rate_card":{"test-model":{"input":"1_000","output":1}}}`, "invalid_rate"],
    ["digits of another script", `{"rate_card":{"test-model":{"input":"\\u0663","output":1}}}`, "invalid_rate"],
    ["a seventh decimal", `{"rate_card":{"test-model":{"input":0.1234567,"output":1}}}`, "invalid_rate"],
    ["what a float would round", `{"rate_card":{"test-model":{"input":0.10000000000000000555,"output":1}}}`, "invalid_rate"],
    ["too much", `{"rate_card":{"test-model":{"input":1000000.000001,"output":1}}}`, "invalid_rate"],
    ["nothing", `{"rate_card":{"test-model":{"input":"","output":1}}}`, "invalid_rate"],
    ["true", `{"rate_card":{"test-model":{"input":true,"output":1}}}`, "invalid_rate"],
    ["null", `{"rate_card":{"test-model":{"input":null,"output":1}}}`, "invalid_configuration"],
    ["no output", `{"rate_card":{"test-model":{"input":1}}}`, "invalid_configuration"],
    ["an unknown class", `{"rate_card":{"test-model":{"input":1,"output":1,"images":1}}}`, "invalid_configuration"],
    ["a model twice", `{"rate_card":{"a":{"input":1,"output":1},"a":{"input":2,"output":1}}}`, "invalid_configuration"],
    ["a prototype", `{"rate_card":{"__proto__":{"input":1,"output":1}}}`, "invalid_configuration"],
    ["another key", `{"rate_card":{"a":{"input":1,"output":1}},"markup":1}`, "invalid_configuration"],
    ["a list", `{"rate_card":[]}`, "invalid_configuration"],
    ["no model", `{"rate_card":{}}`, "invalid_request"],
    ["no JSON", `rate_card: {}`, "invalid_json"],
  ])("with %s is refused, and changes nothing", async (_name, body, code) => {
    const before = [configText(), JSON.stringify(await get()), (await entries()).length];

    const answer = await call("PUT", "/v1/rate-card", body);

    expect(errorOf(answer)).toMatchObject({ status: 400, code });
    expect([configText(), JSON.stringify(await get()), (await entries()).length]).toEqual(before);
  });

  test("with the same Idempotency-Key is one change, whatever came in between", async () => {
    const [first, second] = [cardOf(freshPrice()), cardOf(freshPrice())];
    const key = { "idempotency-key": randomBytes(8).toString("hex") };
    const before = (await entries()).length;

    const made = await put(first, key);
    const repeated = await put(first, key);
    const other = await put(second);
    const again = await put(first, key);
    const mismatch = await put(second, key);

    expect([made.status, repeated.status, other.status, again.status]).toEqual([200, 200, 200, 200]);
    expect([repeated.json, again.json]).toEqual([made.json, made.json]);
    expect(errorOf(mismatch)).toMatchObject({ status: 409, code: "idempotency_mismatch" });
    expect((await get())["hash"]).toBe(other.json["hash"]);
    expect(parseAdminConfig(configText()).rateCard.hash).toBe(other.json["hash"]);
    expect(await entries()).toHaveLength(before + 2);
  });

  test("by many at once is put by one after the other: the last entry is what is in force and in the file", async () => {
    const before = (await entries()).length;

    const answers = await Promise.all(Array.from({ length: 12 }, async () => await put(cardOf(freshPrice()))));

    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
    const written = (await entries()).slice(before);
    expect(written.map(({ target }) => target).toSorted()).toEqual(
      answers.map(({ json }) => `rate-card:${String(json["hash"])}`).toSorted(),
    );
    const { hash } = await get();
    expect(written.at(-1)?.target).toBe(`rate-card:${String(hash)}`);
    expect(parseAdminConfig(configText()).rateCard.hash).toBe(hash);
  });

  test("is written through a link, and refused before the audit where the file cannot be written", async () => {
    const elsewhere = join(gateway.home, "elsewhere");
    mkdirSync(elsewhere);
    const long = join(elsewhere, `${"x".repeat(250)}`); // no name is left for a file beside it
    const linkTo = (target: string): void => {
      renameSync(configPath(), `${configPath()}.kept`);
      writeFileSync(target, readFileSync(`${configPath()}.kept`));
      rmSync(`${configPath()}.kept`);
      symlinkSync(target, configPath());
    };
    onTestFinished(() => {
      const text = configText();
      rmSync(configPath());
      writeFileSync(configPath(), text, { mode: 0o600 });
      rmSync(elsewhere, { recursive: true });
    });

    linkTo(join(elsewhere, "real.yaml"));
    const written = await put(cardOf(freshPrice()));
    linkTo(long);
    const before = (await entries()).length;
    const refused = await put(cardOf(freshPrice()));

    expect(written.status).toBe(200);
    expect(dirname(readlinkSync(configPath()))).toBe(elsewhere);
    expect(parseAdminConfig(readFileSync(join(elsewhere, "real.yaml"), "utf8")).rateCard.hash).toBe(written.json["hash"]);
    expect(errorOf(refused)).toMatchObject({ status: 409, code: "conflict", message: expect.stringContaining("cannot be written") });
    expect(await entries()).toHaveLength(before);
    expect((await get())["hash"]).toBe(written.json["hash"]);
  });
});

describe("an edit of config.yaml", () => {
  test("of the card is taken over in every process and is one entry of the system's", async () => {
    const tenant = await newTenant("edited");
    const input = freshPrice();
    const before = (await entries()).length;

    edit((text) => text.replace(/(test-model: \{ input: )[\d.]+/, `$1${input}`));

    const { hash } = await inForce(input);
    const row = await until(async () => {
      const found = await billed(tenant);
      return found?.rate_card_hash === hash ? found : undefined;
    });
    expect(row.markup_ppm).toBe(0);
    expect((await entries()).slice(before)).toEqual([
      {
        seq: expect.any(Number),
        actor_type: "system",
        actor_id: "config",
        target: `rate-card:${String(hash)} markup_ppm:0`,
        outcome: "applied",
      },
    ]);
  });

  test("of words, zeros or order is no change of the card", async () => {
    const { hash } = await get();
    const before = (await entries()).length;
    edit((text) => text.replace("# the last line", "# another last line").replace(/test-model: \{ input: [\d.]+/, (rate) => `${rate}0`));
    const marker = freshPrice();

    // A later edit that is a change tells that the earlier one has been looked at.
    await until(async () => ((await ready()).status === 200 ? true : undefined));
    expect((await get())["hash"]).toBe(hash);
    edit((text) => text.replace(/(test-model: \{ input: )[\d.]+/, `$1${marker}`));
    await inForce(marker);

    expect(await entries()).toHaveLength(before + 1);
  });

  test("of the markup is audited and billed; a tenant's own markup goes before it", async () => {
    const [plain, special] = [await newTenant("plain"), await newTenant("special")];
    expect((await call("PATCH", `/v1/tenants/${special.id}`, JSON.stringify({ markup: "0.5" }))).status).toBe(200);

    edit((text) => text.replace("markup: 0 ", "markup: 0.25 "));
    onTestFinished(async () => {
      edit((text) => text.replace("markup: 0.25 ", "markup: 0 "));
      await until(async () => ((await get())["markup_ppm"] === 0 ? true : undefined));
    });

    await until(async () => ((await get())["markup_ppm"] === 250_000 ? true : undefined));
    await until(async () => ((await billed(plain))?.markup_ppm === 250_000 ? true : undefined));
    expect((await billed(special))?.markup_ppm).toBe(500_000);
    expect((await entries()).at(-1)).toMatchObject({ actor_type: "system", target: expect.stringMatching(/ markup_ppm:250000$/) });
  });

  test("of a tenant's markup is decimal text however it is sent", async () => {
    const { id } = await newTenant("markup");
    const patch = async (json: string) => (await call("PATCH", `/v1/tenants/${id}`, `{"markup":${json}}`)).status;

    for (const bad of ["1e3", "1E-2", "-0", "-1", "0.1000000", "0.10000000000000000555", "1000000.1", '" 1"', '"1e3"', '"0x1"', "true"])
      expect([bad, await patch(bad)]).toEqual([bad, 400]);
    for (const [good, ppm] of [
      ["0.100000", 100_000],
      ['"2.5"', 2_500_000],
      ["1000000", 1_000_000_000_000],
      ["null", null],
    ] as const) {
      expect([good, await patch(good)]).toEqual([good, 200]);
      expect((await call("GET", `/v1/tenants/${id}`)).json["markup_ppm"]).toBe(ppm);
    }
  });

  test("that is bad keeps the old card, fails readyz with key path and line, and is mended by a good one", async () => {
    const tenant = await newTenant("bad");
    const { hash } = await get();
    const good = configText();
    const before = (await entries()).length;
    onTestFinished(() => writeFileSync(configPath(), good));
    const line = good.split("\n").findIndex((text) => text.includes("    test-model:")) + 1;

    edit((text) => text.replace(/(    test-model: \{ input: )[\d.]+/, "$11e3"));
    const failed = await until(async () => {
      const found = await ready();
      return found.status === 503 ? found : undefined;
    });

    expect(failed.checks).toMatchObject({ config: "failed", database: "ok", temporal: "ok" });
    expect(failed.reasons?.["config"]).toContain(`config.yaml line ${line}: billing.rate_card.test-model.input: must be USD per 1M tokens`);
    expect(await get()).toMatchObject({ hash, fault: failed.reasons?.["config"] });
    expect((await billed(tenant))?.rate_card_hash).toBe(hash);
    expect(errorOf(await put(cardOf(freshPrice())))).toMatchObject({ status: 409, message: expect.stringContaining(`line ${line}`) });
    const shown = await fetch(`${gateway.url}/readyz`, { headers: { "x-forwarded-for": "203.0.113.9" } });
    expect(await shown.json()).not.toHaveProperty("reasons");

    writeFileSync(configPath(), "default_modle: x\n");
    await until(async () => ((await ready()).reasons?.["config"]?.includes("default_modle") === true ? true : undefined));
    rmSync(configPath());
    await until(async () => ((await ready()).reasons?.["config"]?.includes("cannot be read") === true ? true : undefined));
    mkdirSync(configPath());
    await until(async () => ((await ready()).reasons?.["config"]?.includes("plain file") === true ? true : undefined));
    rmSync(configPath(), { recursive: true });
    expect(await entries()).toHaveLength(before);

    const input = freshPrice();
    writeFileSync(configPath(), good.replace(/(test-model: \{ input: )[\d.]+/, `$1${input}`), { mode: 0o600 });
    await inForce(input);
    expect(await until(async () => ((await ready()).status === 200 ? await ready() : undefined))).not.toHaveProperty("reasons");
    expect(await entries()).toHaveLength(before + 1);
    writeFileSync(configPath(), good, { mode: 0o600 });
    await until(async () => ((await get())["hash"] === hash ? true : undefined));
  });

  test("that removes a price refuses the model before its provider hears of it, also where a turn waits already", async () => {
    const tenant = await newTenant("unpriced");
    const session = { "x-openclaw-session": "api:waits:default" };
    const held = model.hold("the first in line");
    const first = chat(tenant, "the first in line", { model: "other-model" }, session);
    await held.arrived;
    const second = chat(tenant, "never asked", { model: "other-model" }, session);
    await until(async () => {
      const { rows } = await runSql(env["DATABASE_URL"] ?? "", `select turn_id from control.open_turn where tenant_id = '${tenant.id}'`);
      return rows.length === 2 ? true : undefined;
    });

    const { json } = await put(cardOf(freshPrice(), {}));
    onTestFinished(async () => void (await put(cardOf(freshPrice()))));
    await until(async () => ((await billed(tenant))?.rate_card_hash === json["hash"] ? true : undefined));
    held.release();

    expect((await first).status).toBe(200);
    expect(errorOf(await second)).toMatchObject({ status: 400, code: "model_not_priced" });
    expect(errorOf(await chat(tenant, "never asked", { model: "other-model" }))).toMatchObject({ status: 400, code: "model_not_priced" });
    expect(model.callsOf("never asked")).toBe(0);
  });
});

describe("a call that has begun", () => {
  test("keeps the card and the markup of its admission, also when its worker dies", async () => {
    const tenant = await newTenant("held");
    const before = await until(async () => {
      const row = await billed(tenant);
      return row?.rate_card_hash === (await get())["hash"] ? row : undefined;
    });
    const [answered, retried] = [model.hold("held while the price rises"), model.hold("dies while the price rises")];
    const first = chat(tenant, "held while the price rises");
    const second = chat(tenant, "dies while the price rises");
    await Promise.all([answered.arrived, retried.arrived]);

    const { json } = await put(cardOf(freshPrice()));
    expect((await call("PATCH", `/v1/tenants/${tenant.id}`, JSON.stringify({ markup: "1" }))).status).toBe(200);
    const after = await until(async () => {
      const row = await billed(tenant);
      return row?.rate_card_hash === json["hash"] && row?.markup_ppm === 1_000_000 ? row : undefined;
    });
    answered.release();
    const firstId = (await first).headers.get("x-request-id");
    await worker.kill();
    retried.release();
    await worker.restart();
    const secondId = (await second).headers.get("x-request-id");

    const rows = await rowsOf(tenant);
    for (const id of [firstId, secondId])
      expect(rows.filter((row) => row.id.startsWith(`${id}.`))).toEqual([
        expect.objectContaining({ rate_card_hash: before.rate_card_hash, markup_ppm: 0 }),
      ]);
    expect(after.rate_card_hash).not.toBe(before.rate_card_hash);
    for (const { id } of rows) expect((await call("GET", `/v1/billing/rows/${id}/explain`)).status).toBe(200);
  });
});

test("a gateway that is killed while cards are put leaves a whole file, and starts with what is recorded", async () => {
  for (let round = 0; round < 3; round++) {
    const cards = Array.from({ length: 8 }, () => cardOf(freshPrice()));
    let answered = 0;
    const puts = cards.map(async (card) => {
      await put(card).then(
        () => answered++,
        () => undefined,
      );
    });
    await until(async () => (answered > round ? true : undefined));
    await gateway.kill();
    await Promise.all(puts);

    const left = parseAdminConfig(configText()).rateCard.hash;
    expect(configText()).toContain("# the operator's own words");
    await gateway.restart();
    const { hash } = await until(async () => {
      const card = await get();
      return card["hash"] === parseAdminConfig(configText()).rateCard.hash ? card : undefined;
    });
    expect((await entries()).at(-1)?.target.split(" ")[0]).toBe(`rate-card:${String(hash)}`);
    expect((await entries()).map(({ target }) => target.split(" ")[0])).toContain(`rate-card:${left}`);
  }
  expect((await openclaw(["audit", "verify"])).code).toBe(0);
}, 180_000);

test("a gateway of another home has a card of its own", async () => {
  const second = await startProduct({ config: configOf(model.url), env, role: "gateway", adminKey: gateway.adminKey });
  onTestFinished(async () => void (await second.stop()));
  const own = cardOf(freshPrice());

  const { json } = await put(own, {}, second);

  expect((await get(second))["hash"]).toBe(json["hash"]);
  expect(parseAdminConfig(configText(second)).rateCard.hash).toBe(json["hash"]);
  expect((await get())["hash"]).not.toBe(json["hash"]);
  expect(configText()).not.toBe(configText(second));
});

describe("openclaw billing rates", () => {
  test("gets what it can set, from a file and from standard input", async () => {
    const input = freshPrice();
    const file = join(gateway.home, "card.yaml");

    const got = await openclaw(["billing", "rates", "get"]);
    writeFileSync(file, got.stdout.replace(/("test-model": \{ input: )[\d.]+/, `$1${input}`));
    const set = await openclaw(["billing", "rates", "set", file]);
    const same = await openclaw(["billing", "rates", "set", "--json"], (await openclaw(["billing", "rates", "get"])).stdout);
    const bad = await openclaw(["billing", "rates", "set"], "rate_card:\n  test-model: { input: 1e3, output: 1 }\n");

    expect([got.code, set.code, same.code]).toEqual([0, 0, 0]);
    expect(set.stderr).toContain("is in force");
    expect((JSON.parse(same.stdout) as { rate_card: Rates }).rate_card["test-model"]?.input).toBe(input);
    expect(await get()).toMatchObject({ hash: (JSON.parse(same.stdout) as { hash: string }).hash });
    expect(bad).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("rate_card.test-model.input") });
    expect((await openclaw(["billing", "rates", "get", "--json"])).stdout).toContain(`"input": "${input}"`);
    expect((await openclaw(["billing", "rates", "set", "/no/such/file"])).code).toBe(2);
  });

  test("checks the models in use: configured, in overlays, billed of late", async () => {
    const tenant = await newTenant("checked");
    expect(await openclaw(["billing", "rates", "check"])).toMatchObject({
      code: 0,
      stdout: "",
      stderr: expect.stringContaining("has a price"),
    });
    const overlay = await call("PUT", `/v1/tenants/${tenant.id}/overlay`, "aliases: { quick: other-model }\n", {
      "content-type": "application/yaml",
    }).catch(() => undefined); // the answer is YAML
    expect(overlay).toBeUndefined();
    await runSql(
      env["DATABASE_URL"] ?? "",
      `insert into control.usage_daily (tenant_id, day, model, tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd, calls)
       values ('${tenant.id}', (now() at time zone 'UTC')::date - 31, 'retired-model', 1, 1, 0, 0, 0, 1, 1), ('${tenant.id}', (now() at time zone 'UTC')::date - 32, 'older-model', 1, 1, 0, 0, 0, 1, 1)`,
    );
    await put(cardOf(freshPrice(), {}));
    onTestFinished(async () => void (await put(cardOf(freshPrice()))));

    const plain = await openclaw(["billing", "rates", "check"]);
    const json = await openclaw(["billing", "rates", "check", "--json"]);

    expect([plain.code, json.code]).toEqual([1, 1]);
    const { unpriced } = JSON.parse(json.stdout) as { unpriced: { model: string; used_by: string[]; tenants: string[] }[] };
    expect(unpriced.map(({ model: name }) => name)).toEqual(["other-model", "retired-model"]);
    expect(unpriced[0]?.used_by).toEqual(expect.arrayContaining(["config", "overlay"]));
    expect(unpriced[0]?.tenants).toContain(tenant.id);
    expect(unpriced[1]).toEqual({ model: "retired-model", used_by: ["rows"], tenants: [tenant.id] });
    expect(plain.stdout).toContain("retired-model\trows\t");
    expect(plain.stderr).toContain("2 models in use have no price");
  });
});
