import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { bootstrapAdminKey } from "../../control-plane/admin-keys.ts";
import { createAuthentication } from "../../control-plane/authentication.ts";
import { adminKeyPath, mintAdminKey } from "../../control-plane/credentials.ts";
import { quiet } from "../storage/fresh-database.ts";
import { controlStage } from "./control-stage.ts";

test("the first start makes a key with every scope, and the next one finds it", async () => {
  const stage = await controlStage();

  expect(await bootstrapAdminKey(stage)).toEqual({ path: adminKeyPath(stage.home), state: "created" });
  expect(await bootstrapAdminKey(stage)).toEqual({ path: adminKeyPath(stage.home), state: "existing" });

  const key = readFileSync(adminKeyPath(stage.home), "utf8").trim();
  const authentication = createAuthentication({ database: stage.database, log: quiet });
  expect(await authentication.authenticate(`Bearer ${key}`)).toEqual({ kind: "admin", keyId: "root", scopes: ["all"] });
  expect(statSync(adminKeyPath(stage.home)).mode & 0o777).toBe(0o600);
  await authentication.close();
});

test("a crash between the file and the row is mended by the next start", async () => {
  const stage = await controlStage();
  writeFileSync(adminKeyPath(stage.home), `${mintAdminKey("root").key}\n`, { mode: 0o600 });

  expect(await bootstrapAdminKey(stage)).toMatchObject({ state: "existing" });
});

test("a database that has keys gets no second first key", async () => {
  const stage = await controlStage();
  await bootstrapAdminKey(stage);
  rmSync(adminKeyPath(stage.home));

  expect(await bootstrapAdminKey(stage)).toMatchObject({ state: "elsewhere" });
});

test("a revoked key is not brought back by its file", async () => {
  const stage = await controlStage();
  await bootstrapAdminKey(stage);
  await stage.database.withControl((tx) => tx.execute("update control.admin_key set revoked_at = now()"));

  expect(await bootstrapAdminKey(stage)).toMatchObject({ state: "stale" });
});

test("a file with something else is refused, not overwritten", async () => {
  const stage = await controlStage();
  writeFileSync(adminKeyPath(stage.home), "hunter2\n");

  await expect(bootstrapAdminKey(stage)).rejects.toMatchObject({
    code: "invalid_configuration",
    message: expect.not.stringContaining("hunter2"),
  });
  expect(readFileSync(adminKeyPath(stage.home), "utf8")).toBe("hunter2\n");
});

test("ten starts at once make one key", async () => {
  const stage = await controlStage();

  const outcomes = await Promise.all(Array.from({ length: 10 }, () => bootstrapAdminKey(stage)));

  expect(outcomes.filter(({ state }) => state === "created")).toHaveLength(1);
  const keys = await stage.database.withControl((tx) => tx.query("select from control.admin_key"));
  expect(keys).toHaveLength(1);
});
