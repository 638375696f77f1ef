import { join } from "node:path";
import { expect, test } from "vitest";
import { defaultHome, packageRoot, readEnvironment } from "../../control-plane/environment.ts";

const key = `ak_ops_${"0".repeat(32)}`;

test("an empty environment has the documented defaults", () => {
  expect(readEnvironment({})).toMatchObject({
    home: join(packageRoot, "data"),
    host: "127.0.0.1",
    port: undefined,
    databaseUrl: undefined,
  });
});

test("an empty value counts as absent", () => {
  expect(readEnvironment({ OPENCLAW_PORT: "", DATABASE_URL: "", OPENCLAW_HOST: "" })).toMatchObject({
    port: undefined,
    databaseUrl: undefined,
    host: "127.0.0.1",
  });
});

test("given values are checked and converted", () => {
  expect(
    readEnvironment({ OPENCLAW_HOME: "/srv/home", OPENCLAW_PORT: "8080", OPENCLAW_ADMIN_KEY: key, TEMPORAL_ADDRESS: "[::1]:7233" }),
  ).toMatchObject({
    home: "/srv/home",
    port: 8080,
    adminKey: key,
    temporalAddress: "[::1]:7233",
  });
});

test.each([
  ["OPENCLAW_PORT", "70000"],
  ["OPENCLAW_PORT", "80a"],
  ["OPENCLAW_ADMIN_KEY", "hunter2"],
  ["OPENCLAW_TOKEN", "sk-secret"],
  ["OPENCLAW_KEK", "c2hvcnQ="],
  ["OPENCLAW_URL", "localhost:18789"],
  ["DATABASE_URL", "mysql://x"],
  ["TEMPORAL_ADDRESS", "http://x:1"],
])("a malformed %s is named without its value", (name, value) => {
  expect(() => readEnvironment({ [name]: value })).toThrow(
    expect.objectContaining({ code: "invalid_configuration", message: expect.stringMatching(new RegExp(`^${name} `)) }),
  );
  expect(() => readEnvironment({ [name]: value })).not.toThrow(value);
});

test("an installed package keeps its data in the user's home, root's in /var/lib", () => {
  const root = "/usr/lib/node_modules/openclaw";

  expect(defaultHome({ root, uid: 1000, userHome: "/home/jane" })).toBe("/home/jane/.openclaw");
  expect(defaultHome({ root, uid: 0, userHome: "/root" })).toBe("/var/lib/openclaw");
  expect(defaultHome({ root: packageRoot, uid: 0, userHome: "/root" })).toBe(join(packageRoot, "data"));
});
