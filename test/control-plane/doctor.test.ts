import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmodSync, mkdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { Connection } from "@temporalio/client";
import { expect, inject, onTestFinished, test } from "vitest";
import { mintAdminKey } from "../../control-plane/credentials.ts";
import { openSigningKey } from "../../control-plane/audit-signing-key.ts";
import { openDatabase } from "../../storage/database.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { startEmbeddedPostgres } from "../../storage/embedded-postgres.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { missing as noSandbox } from "../sandbox/sandbox-stage.ts";
import { freshDatabase, quiet, runSql, temporaryHome } from "../storage/fresh-database.ts";
import { binPath, fakeGateway, openclaw, run, type Respond } from "./cli-stage.ts";
import { emptyHome } from "./control-stage.ts";

type Finding = { readonly check: string; readonly state: string; readonly says: string; readonly mend?: string };
type Diagnosis = { readonly code: number; readonly text: string; of(check: string): Finding | undefined };

/** What a person's shell has; nothing else of ours. */
const shell = { PATH: process.env["PATH"] ?? "", HOME: process.env["HOME"] ?? "" };

function diagnosisOf({ code, stdout }: { readonly code: number; readonly stdout: string }): Diagnosis {
  const { findings } = JSON.parse(stdout) as { findings: Finding[] };
  return { code, text: stdout, of: (check) => findings.find((finding) => finding.check === check) };
}

async function doctor(variables: Readonly<Record<string, string>>): Promise<Diagnosis> {
  return diagnosisOf(await openclaw(["doctor", "--json"], { ...shell, OPENCLAW_HOME: emptyHome(), ...variables }));
}

/** The command on this machine with something taken away: bubblewrap covers what `words` say. */
async function doctorBehind(words: readonly string[], variables: Readonly<Record<string, string>>): Promise<Diagnosis> {
  const command = ["--dev-bind", "/", "/", ...words, "--", process.execPath, binPath, "doctor", "--json"];
  return diagnosisOf(await run("bwrap", command, { ...shell, ...variables }));
}

const configWith = (provider: string): string => `
default_model: m
providers:
  local: ${provider}
models:
  m: { provider: local, context_window: 1000, max_output_tokens: 100 }
billing: { rate_card: { m: { input: 1, output: 2 } } }
`;

/** A home whose one provider answers as `respond` does. */
async function homeWithProvider(respond: Respond): Promise<string> {
  const { url } = await fakeGateway(respond);
  const home = emptyHome();
  writeFileSync(join(home, "config.yaml"), configWith(`{ kind: openai-compatible, base_url: "${url}/v1", api_key_env: LOCAL_KEY }`));
  return home;
}

/** A port that accepts and says nothing. */
async function silentPort(): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => void sockets.add(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

test("a machine in order passes, and every check says what it saw", async () => {
  const home = await homeWithProvider(({ authorization, path }, response) =>
    response.writeHead(authorization === "Bearer the-key" && path === "/v1/models" ? 200 : 401).end(),
  );

  const { code, of } = await doctor({
    OPENCLAW_HOME: home,
    LOCAL_KEY: "the-key",
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  });

  expect(code).toBe(0);
  expect(of("temporal")?.says).toMatch(/^Temporal \d+\.\d+\.\d+ at .*, namespace test-/);
  expect(of("postgres")?.says).toMatch(/^the server at .* is Postgres 17\.\d+ with pgvector$/);
  expect(of("provider local")).toEqual({ check: "provider local", state: "ok", says: "answers" });
  expect(of("clock")?.says).toBe("agrees with the database's clock, the clock of the provider local");
  expect(of("disk")?.says).toMatch(/^\d+(\.\d)? [MG]iB are free on the disk of /);
});

test("a person reads what to do on the line below", async () => {
  const { code, stdout, stderr } = await openclaw(["doctor"], { ...shell, OPENCLAW_HOME: emptyHome(), TEMPORAL_ADDRESS: "127.0.0.1:1" });

  expect(code).toBe(1);
  expect(stdout).toMatch(
    /^failed {3}temporal +no Temporal server answers at 127\.0\.0\.1:1 .*\n +→ start that server, or correct TEMPORAL_ADDRESS/m,
  );
  expect(stderr).toMatch(/1 of \d+ checks failed: temporal\./);
});

test("a server that is not Temporal, and one without the namespace, its search attributes or its retention", async () => {
  const address = inject("temporalAddress");
  const { url } = await fakeGateway((_request, response) => response.end("hello"));
  const bare = `bare-${randomBytes(6).toString("hex")}`;
  const connection = await Connection.connect({ address });
  onTestFinished(() => connection.close());
  const dayS = 24 * 60 * 60;
  await connection.workflowService.registerNamespace({
    namespace: bare,
    workflowExecutionRetentionPeriod: { seconds: (2 * dayS) as never },
  });
  const short = await freshNamespace(address);
  await connection.workflowService.updateNamespace({
    namespace: short,
    config: { workflowExecutionRetentionTtl: { seconds: (2 * dayS) as never } },
  });
  const ask = async (at: string, namespace: string) =>
    (await doctor({ TEMPORAL_ADDRESS: at, TEMPORAL_NAMESPACE: namespace })).of("temporal");

  const notTemporal = await ask(new URL(url).host, "default");
  const noNamespace = await ask(address, "nobody-made-this");
  const noAttributes = await ask(address, bare);
  const forgetful = await ask(address, short);

  expect(notTemporal).toMatchObject({ state: "failed", says: expect.stringContaining("no Temporal server answers at 127.0.0.1:") });
  expect(noNamespace).toMatchObject({
    state: "failed",
    says: `the server at ${address} has no namespace nobody-made-this`,
    mend: `temporal operator namespace create --address ${address} --namespace nobody-made-this --retention 720h`,
  });
  expect(noAttributes).toMatchObject({ state: "failed", says: expect.stringContaining("lacks the search attributes TenantId, Channel") });
  expect(noAttributes?.mend).toContain("--name SessionId --type KeywordList");
  expect(forgetful).toMatchObject({ state: "warning", says: expect.stringContaining("keeps histories for 2 days") });
});

test("the command that doctor gives for a namespace makes it suit", async () => {
  const TEMPORAL_ADDRESS = inject("temporalAddress");
  const TEMPORAL_NAMESPACE = `mended-${randomBytes(6).toString("hex")}`;
  const mend = async (): Promise<Finding | undefined> => (await doctor({ TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE })).of("temporal");
  const binary = /^(\S+) /.exec((await doctor({})).of("temporal")?.says ?? "")?.[1] ?? "temporal";
  const obey = ({ mend: words = "" }: Finding) => spawnSync(binary, words.split(" ").slice(1), { encoding: "utf8" });

  const first = (await mend()) as Finding;
  const made = obey(first);
  await expect.poll(async () => (await mend())?.says, { timeout: 30_000, interval: 200 }).toContain("lacks the search attributes");
  const added = obey((await mend()) as Finding);

  expect({ made: made.status, added: added.status }, made.stderr + added.stderr).toEqual({ made: 0, added: 0 });
  await expect.poll(async () => (await mend())?.state, { timeout: 30_000, interval: 200 }).toBe("ok");
});

test("a TEMPORAL_CLI_PATH that does not run is named with its reason", async () => {
  const home = emptyHome();
  const wrong = join(home, "temporal");
  writeFileSync(wrong, "#!/bin/sh\necho nonsense\n", { mode: 0o755 });
  mkdirSync(join(home, "empty"));

  const alone = await doctor({ TEMPORAL_CLI_PATH: wrong, PATH: join(home, "empty"), HOME: home });
  const beside = await doctor({ TEMPORAL_CLI_PATH: wrong });

  expect(alone.of("temporal")).toMatchObject({ state: "failed", says: expect.stringContaining(`${wrong}: it does not tell its version`) });
  expect(beside.of("temporal")).toMatchObject({ state: "warning", says: expect.stringContaining(`is used instead of ${wrong}`) });
});

test("a database with another password, without the database, pgvector or the rights, and none at all", async () => {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  const server = await startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet });
  let runs = true;
  onTestFinished(() => (runs ? server.stop() : undefined));
  const as = (user: string, url: string): string => {
    const changed = new URL(url);
    changed.username = user;
    changed.password = "planted-secret";
    return changed.href;
  };
  for (const [name, right] of [
    ["customer", "createrole"],
    ["guest", "createrole"],
    ["nobody", "nocreaterole"],
  ])
    await runSql(server.ownerUrl, `create role ${name} login ${right} password 'planted-secret'`);
  const owned = await freshDatabase(server.ownerUrl, "customer");
  const withVector = await freshDatabase(server.ownerUrl, "customer");
  await runSql(withVector, "create schema extensions; create extension vector schema extensions");
  const ask = async (url: string): Promise<Finding | undefined> => {
    const diagnosis = await doctor({ DATABASE_URL: url });
    expect(diagnosis.text).not.toContain("planted-secret");
    return diagnosis.of("postgres");
  };
  const gone = new URL(server.ownerUrl);
  gone.pathname = "/gone";
  const nameless = new URL(server.ownerUrl);
  nameless.password = "";

  const answers = {
    password: await ask(as("postgres", server.ownerUrl)),
    unnamed: await ask(nameless.href),
    database: await ask(gone.href),
    vector: await ask(as("customer", owned)),
    suits: await ask(as("customer", withVector)),
    schemas: await ask(as("guest", withVector)),
    roles: await ask(as("nobody", withVector)),
  };
  await server.stop();
  runs = false;
  const stopped = await ask(server.ownerUrl);

  expect(answers.password).toMatchObject({ state: "failed", says: expect.stringContaining("refuses the user or the password") });
  expect(answers.unnamed).toMatchObject({ state: "failed", says: expect.stringContaining("must hold the owner's password") });
  expect(answers.database).toMatchObject({ state: "failed", says: expect.stringContaining("has no such database") });
  expect(answers.vector).toMatchObject({ state: "failed", mend: expect.stringContaining("create extension vector schema extensions") });
  expect(answers.suits).toMatchObject({ state: "ok" });
  expect(answers.schemas).toMatchObject({ state: "failed", mend: expect.stringContaining("grant create on database") });
  expect(answers.roles).toMatchObject({ state: "failed", mend: "as a superuser: alter role <user> createrole" });
  expect(stopped).toMatchObject({ state: "failed", says: expect.stringContaining("nothing answers there (ECONNREFUSED)") });
});

test("the server and the database of config.yaml are looked at too, and an older data directory is refused", async () => {
  const home = emptyHome();
  const servers = `temporal: { address: "127.0.0.1:1" }\ndatabase: { url: "postgres://u:planted-secret@127.0.0.1:1/x" }\n`;
  writeFileSync(join(home, "config.yaml"), configWith("{ kind: demo }") + servers);
  const old = emptyHome();
  mkdirSync(join(old, "postgres", "data"), { recursive: true });
  writeFileSync(join(old, "postgres", "data", "PG_VERSION"), "15\n");

  const configured = await doctor({ OPENCLAW_HOME: home });
  const outdated = await doctor({ OPENCLAW_HOME: old });

  expect(configured.of("temporal")?.state).toBe("failed");
  expect(configured.of("postgres")?.says).toBe("the server at 127.0.0.1:1/x: nothing answers there (ECONNREFUSED)");
  expect(configured.text).not.toContain("planted-secret");
  expect(outdated.of("postgres")).toMatchObject({ state: "failed", says: expect.stringContaining("was made by Postgres 15") });
});

test.each<[string, Respond, { state: string; says: string }]>([
  [
    "refuses the key",
    (_request, response) => response.writeHead(401).end("planted-secret"),
    { state: "failed", says: "refuses the key (401)" },
  ],
  ["is broken", (_request, response) => response.writeHead(500).end(), { state: "warning", says: "answers 500" }],
  ["sends elsewhere", (_request, response) => response.writeHead(302, { location: "/" }).end(), { state: "warning", says: "answers 302" }],
  [
    "hangs up",
    (_request, response) => void response.destroy(),
    { state: "failed", says: expect.stringMatching(/^cannot be reached \(\w+\)$/) as string },
  ],
  ["has no list of models", (_request, response) => response.writeHead(404).end(), { state: "ok", says: "answers" }],
])("a provider that %s", async (_name, respond, expected) => {
  const diagnosis = await doctor({ OPENCLAW_HOME: await homeWithProvider(respond), LOCAL_KEY: "planted-secret" });

  expect(diagnosis.of("provider local")).toMatchObject(expected);
  expect(diagnosis.text).not.toContain("planted-secret");
});

test("a provider without its key, with a key that no header can hold, that nobody knows, and one that is silent", async () => {
  const at = async (baseUrl: string, key: string | undefined): Promise<Finding | undefined> => {
    const home = emptyHome();
    writeFileSync(join(home, "config.yaml"), configWith(`{ kind: openai-compatible, base_url: "${baseUrl}", api_key_env: LOCAL_KEY }`));
    const diagnosis = await doctor({ OPENCLAW_HOME: home, ...(key === undefined ? {} : { LOCAL_KEY: key }) });
    expect(diagnosis.text).not.toContain("planted");
    return diagnosis.of("provider local");
  };

  const [keyless, garbled, unknown, silent] = [
    await at("http://127.0.0.1:1/v1", undefined),
    await at("http://127.0.0.1:1/v1", "planted\u{1F511}"),
    await at("http://provider.invalid/v1", "planted"),
    await at(`http://127.0.0.1:${await silentPort()}/v1`, "planted"),
  ];

  expect(keyless).toMatchObject({ state: "failed", says: "has no key: LOCAL_KEY is not set here" });
  expect(garbled).toMatchObject({ state: "failed", says: expect.stringContaining("cannot stand in an HTTP header") });
  expect(unknown).toMatchObject({ state: "failed", says: expect.stringMatching(/^cannot be reached \((ENOTFOUND|EAI_AGAIN)\)$/) });
  expect(silent).toMatchObject({ state: "failed", says: "gave no answer within 5 s" });
});

test.each([
  [-3_600, "failed", /^this clock is 3(599|600|601) s ahead of the clock of the provider local: /],
  [3_600, "failed", /^this clock is 3(599|600|601) s behind the clock of the provider local: /],
  [-15, "warning", /^this clock is 1[456] s ahead of/],
  [1, "ok", /^agrees with/],
])("a clock that others see %i s away", async (seconds, state, says) => {
  const home = await homeWithProvider((_request, response) =>
    response.writeHead(200, { date: new Date(Date.now() + seconds * 1_000).toUTCString() }).end(),
  );

  const { of } = await doctor({ OPENCLAW_HOME: home, LOCAL_KEY: "x" });

  expect(of("clock")).toMatchObject({ state, says: expect.stringMatching(says) });
});

test("a clock that was set back since this home was written", async () => {
  const home = emptyHome();
  writeFileSync(join(home, "audit.jsonl"), "");
  const later = Date.now() / 1_000 + 600;
  utimesSync(join(home, "audit.jsonl"), later, later);

  expect((await doctor({ OPENCLAW_HOME: home })).of("clock")).toMatchObject({
    state: "warning",
    says: expect.stringContaining("set back"),
  });
});

test.each<[string, (home: string) => void, RegExp, string]>([
  ["others may read", (home) => chmodSync(keyIn(home), 0o644), /admin-key can be read or written by others$/, "chmod go= "],
  ["is a link", (home) => symlinkSync("/etc/hostname", join(home, "kek")), /kek is not a regular file$/, "put the file itself there"],
  ["holds something else", (home) => writeFileSync(keyIn(home), "hello\n"), /admin-key does not hold what it is for$/, "put the key back"],
  [
    "is writable",
    (home) => writeFileSync(join(home, "kek"), seed(), { mode: 0o600 }),
    /kek has the mode 0600, and a start takes 0400 only$/,
    "chmod 400 ",
  ],
  [
    "signs for all",
    (home) => writeFileSync(join(home, "audit-signing-key"), seed(), { mode: 0o644 }),
    /signing-key can be read/,
    "chmod go= ",
  ],
  ["was cut short", (home) => writeFileSync(join(home, "kek"), "c2hvcnQ=\n", { mode: 0o400 }), /kek does not hold/, "put the key back"],
])("a file of keys that %s", async (_name, spoil, says, mend) => {
  const home = emptyHome();
  spoil(home);

  expect((await doctor({ OPENCLAW_HOME: home })).of("keys")).toMatchObject({
    state: "failed",
    says: expect.stringMatching(says),
    mend: expect.stringContaining(mend),
  });
});

/** A key-encryption or signing key in its file's form. */
const seed = (): string => `${randomBytes(32).toString("base64")}\n`;

/** A home's admin key in order. */
function keyIn(home: string): string {
  const path = join(home, "admin-key");
  writeFileSync(path, `${mintAdminKey("root").key}\n`, { mode: 0o600 });
  return path;
}

test("files of keys in order", async () => {
  const home = emptyHome();
  keyIn(home);
  writeFileSync(join(home, "kek"), `${randomBytes(32).toString("base64")}\n`, { mode: 0o400 });

  expect((await doctor({ OPENCLAW_HOME: home })).of("keys")).toMatchObject({
    state: "ok",
    says: expect.stringContaining("admin-key, kek"),
  });
});

test.skipIf(noSandbox !== undefined)("a sandbox that cannot start, for want of bubblewrap, of Perl or of namespaces", async () => {
  const OPENCLAW_HOME = emptyHome();
  const without = async (...words: string[]) => (await doctorBehind(words, { OPENCLAW_HOME })).of("bwrap");

  const [whole, noBubblewrap, noPerl, noNamespaces] = [
    await without(),
    await without("--ro-bind", "/dev/null", "/usr/bin/bwrap"),
    await without("--ro-bind", "/dev/null", "/usr/bin/perl"),
    await without("--unshare-user", "--disable-userns"),
  ];

  expect(whole).toEqual({ check: "bwrap", state: "ok", says: "a sandbox starts" });
  expect(noBubblewrap).toMatchObject({ state: "failed", says: "bubblewrap is missing: apt-get install -y bubblewrap" });
  expect(noPerl).toMatchObject({ state: "failed", says: expect.stringContaining("/usr/bin/perl") });
  for (const { mend } of [noBubblewrap, noPerl, noNamespaces] as Finding[]) expect(mend).toContain("apt-get install -y bubblewrap perl");
  expect(noNamespaces?.state).toBe("failed");
});

test.skipIf(noSandbox !== undefined)("no cgroup to be had is a warning, or a failure where the configuration requires one", async () => {
  const strict = emptyHome();
  writeFileSync(join(strict, "config.yaml"), `${configWith("{ kind: demo }")}sandbox: { require: cgroup }\n`);
  const covered = ["--ro-bind", "/sys/fs/cgroup", "/sys/fs/cgroup"];

  const lax = await doctorBehind(covered, { OPENCLAW_HOME: emptyHome() });
  const required = await doctorBehind(covered, { OPENCLAW_HOME: strict });

  expect(lax.of("cgroup")).toMatchObject({ state: "warning", mend: expect.stringContaining("Delegate=yes") });
  expect(required).toMatchObject({ code: 1 });
  expect(required.of("cgroup")).toMatchObject({ state: "failed", says: expect.stringContaining("sandbox.require is cgroup") });
});

test.skipIf(noSandbox !== undefined)("a disk that is nearly full, or small", async () => {
  const home = emptyHome();
  const on = async (sizeBytes: number) =>
    (await doctorBehind(["--size", String(sizeBytes), "--tmpfs", home], { OPENCLAW_HOME: home })).of("disk");

  expect(await on(8 * 1024 * 1024)).toMatchObject({ state: "failed", says: expect.stringContaining("refuses every change") });
  expect(await on(100 * 1024 * 1024)).toMatchObject({ state: "warning", says: expect.stringMatching(/^only \d+ MiB are free/) });
});

test("an address that is not this machine's is not mistaken for a taken port", async () => {
  const { of } = await doctor({ OPENCLAW_HOST: "203.0.113.7", OPENCLAW_PORT: "18789" });

  expect(of("port")).toMatchObject({ state: "failed", says: expect.stringContaining("EADDRNOTAVAIL") });
});

test("an installation that lacks packages is a finding, not a crash", async () => {
  const { of, code } = await doctor({ NODE_OPTIONS: "--conditions=none --import=/no/such/file.mjs" });

  expect(code).toBe(1);
  expect(of("install")).toMatchObject({ state: "failed", mend: expect.stringContaining("install openclaw again") });
});

test("the key-encryption key is compared with the database: another, none, the environment's, and one that only looks on", async () => {
  const DATABASE_URL = await freshDatabase();
  const [home, other, none] = [emptyHome(), emptyHome(), emptyHome()];
  const kekIn = (place: string): string => {
    writeFileSync(join(place, "kek"), seed(), { mode: 0o400, flag: "w" });
    return readFileSync(join(place, "kek"), "utf8").trim();
  };
  const [kek, strange] = [kekIn(home), kekIn(other)];
  const encryption = async (OPENCLAW_HOME: string, more: Record<string, string> = {}) =>
    (await doctor({ OPENCLAW_HOME, DATABASE_URL, ...more })).of("encryption");
  expect(await encryption(none)).toMatchObject({ state: "ok", says: expect.stringContaining("the first start makes one") });
  const database = await openDatabase({ ownerUrl: DATABASE_URL, log: quiet });
  await (await openDataKeys({ database, home, log: quiet })).close();
  await database.close();

  expect(await encryption(home)).toEqual({ check: "encryption", state: "ok", says: `${home}/kek holds the key of the database` });
  expect(await encryption(other)).toMatchObject({
    state: "failed",
    says: expect.stringMatching(/wrapped by the key [0-9a-f]{16}, which .*kek does not hold$/),
  });
  expect(await encryption(none)).toMatchObject({ state: "failed", says: expect.stringMatching(/the home has no kek$/) });
  expect(await encryption(none, { OPENCLAW_KEK: kek })).toMatchObject({ state: "ok" });
  expect(await encryption(home, { OPENCLAW_KEK: strange })).toMatchObject({
    state: "failed",
    mend: `unset OPENCLAW_KEK: ${home}/kek holds it`,
  });
  expect(await encryption(other, { OPENCLAW_KEK: kek })).toMatchObject({ state: "warning", mend: "move that file away" });
  chmodSync(join(home, "kek"), 0o440);
  expect(await encryption(home)).toMatchObject({ state: "failed", says: expect.stringContaining("chmod 400") });
  expect((await doctor({ OPENCLAW_HOME: other, TEMPORAL_ADDRESS: inject("temporalAddress") })).of("encryption")).toMatchObject({
    state: "ok",
    says: expect.stringContaining("the database was not asked"),
  });
});

test("a Web UI, an audit key and a place for anchors that cannot be used are named; those in order pass", async () => {
  const ui = await fakeGateway(({ path }, response) => response.writeHead(path.startsWith("/temporal/") ? 200 : 404).end());
  const bare = await fakeGateway((_request, response) => response.writeHead(404).end());
  const DATABASE_URL = await freshDatabase();
  const [home, place] = [emptyHome(), emptyHome()];
  const database = await openDatabase({ ownerUrl: DATABASE_URL, log: quiet });
  const [known, stranger] = [seed().trim(), seed().trim()];
  await openSigningKey({ database, home, seed: known, log: quiet });
  await database.close();
  const ask = async (variables: Record<string, string>) => await doctor({ OPENCLAW_HOME: home, DATABASE_URL, ...variables });

  const good = await ask({ TEMPORAL_UI_URL: ui.url, OPENCLAW_AUDIT_KEY: known, OPENCLAW_AUDIT_ANCHORS: join(place, "anchors") });
  const bad = await ask({ TEMPORAL_UI_URL: bare.url, OPENCLAW_AUDIT_KEY: stranger, OPENCLAW_AUDIT_ANCHORS: "/proc/version" });
  const gone = await ask({ TEMPORAL_UI_URL: "http://127.0.0.1:1" });

  for (const check of ["temporal ui", "audit key", "audit anchors"]) expect([check, good.of(check)?.state]).toEqual([check, "ok"]);
  expect(bad.of("temporal ui")).toMatchObject({ state: "warning", mend: expect.stringContaining("TEMPORAL_UI_PUBLIC_PATH=/temporal") });
  expect(bad.of("audit key")).toMatchObject({ state: "warning", says: expect.stringContaining("does not know") });
  expect(bad.of("audit anchors")).toMatchObject({ state: "failed", mend: expect.stringContaining("OPENCLAW_AUDIT_ANCHORS") });
  expect(gone.of("temporal ui")?.says).toBe("the Web UI at http://127.0.0.1:1 does not answer");
  expect(`${good.text}${bad.text}`).not.toContain(stranger);
  expect(`${good.text}${bad.text}`).not.toContain(known);
});
