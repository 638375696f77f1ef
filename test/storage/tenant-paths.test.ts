import { execFileSync } from "node:child_process";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";

import { rename, symlink, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { parseTenantId } from "../../domain/tenant.ts";
import { createHome, createTenantDirectory, removeTenantDirectory, tenantDirectory, tenantUidOf } from "../../storage/tenant-paths.ts";
import { someTenant, temporaryHome } from "./fresh-database.ts";

const asRoot = process.getuid?.() === 0;

const newHome = (): string => {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  return createHome(join(home, "home"));
};

test("a tenant's directory has its parts, closed to everybody else", () => {
  const home = newHome();
  const { tenantId } = someTenant("acme");

  const made = createTenantDirectory(home, { tenantId, osUidIndex: 7 });
  createTenantDirectory(home, { tenantId, osUidIndex: 7 });

  expect(made.root).toBe(tenantDirectory(home, tenantId));
  for (const path of Object.values(made)) {
    const { mode, uid } = statSync(path);
    expect(mode & 0o777, path).toBe(0o700);
    if (asRoot) expect(uid).toBe(200_007);
  }
  expect(tenantUidOf(7)).toBe(asRoot ? 200_007 : undefined);
});

test("a planted link in the place of a part is refused", () => {
  const home = newHome();
  const { tenantId } = someTenant("acme");
  mkdirSync(tenantDirectory(home, tenantId), { recursive: true });
  symlinkSync("/etc", join(tenantDirectory(home, tenantId), "sandbox"));

  expect(() => createTenantDirectory(home, { tenantId, osUidIndex: 0 })).toThrow(/is not a directory/);
});

test("the home of an upstream OpenClaw is refused with a pointer to the import", () => {
  const home = newHome();
  writeFileSync(join(home, "openclaw.json"), "{}");

  expect(() => createHome(home)).toThrow(/import-from-upstream/);
});

test.runIf(asRoot)("in a home closed to others, tenants live where their own uid can go, and only there", () => {
  const home = mkdtempSync("/root/openclaw-test-");
  chmodSync(home, 0o700);
  const [acme, globex] = [someTenant("acme"), someTenant("globex")];

  const made = createTenantDirectory(home, { tenantId: acme.tenantId, osUidIndex: 1 });
  const other = createTenantDirectory(home, { tenantId: globex.tenantId, osUidIndex: 2 });
  onTestFinished(() => {
    rmSync(dirname(realpathSync(join(home, "tenants"))), { recursive: true });
    rmSync(home, { recursive: true });
  });
  const asTenant = (script: string): string =>
    execFileSync("setpriv", ["--reuid=200001", "--regid=200001", "--clear-groups", "sh", "-c", script], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });

  expect(lstatSync(join(home, "tenants")).isSymbolicLink()).toBe(true);
  expect(made.sandbox).toMatch(/^\/var\/lib\/openclaw\/[0-9a-f]{16}\/tenants\/acme-/);
  expect(asTenant(`cd ${made.sandbox} && touch file && ls`)).toBe("file\n");
  expect(() => asTenant(`ls ${other.root}`)).toThrow("Command failed");
});

test("removing a tenant's directory meets links, pipes, closed and very deep directories, and leaves nothing; twice is once", async () => {
  const home = newHome();
  const { tenantId } = someTenant("acme");
  const { root, sandbox } = createTenantDirectory(home, { tenantId, osUidIndex: 0 });
  const outside = join(home, "outside");
  mkdirSync(outside);
  writeFileSync(join(outside, "kept"), "kept");
  for (const [name, target] of [
    ["to-directory", outside],
    ["to-file", join(outside, "kept")],
    ["dangling", "/nonexistent"],
    ["loop", "loop"],
  ] as const)
    symlinkSync(target, join(sandbox, name));
  execFileSync("sh", ["-c", `cd ${sandbox} && mkfifo pipe && i=0; while [ $i -lt 1500 ]; do mkdir d && cd d; i=$((i+1)); done`]); // deeper than a path may be long
  mkdirSync(join(root, "memory/closed/inner"), { recursive: true });
  chmodSync(join(root, "memory/closed"), 0o000);

  await removeTenantDirectory(home, tenantId);
  await removeTenantDirectory(home, tenantId);

  expect(lstatSync(root, { throwIfNoEntry: false })).toBeUndefined();
  expect(readdirSync(outside)).toEqual(["kept"]);
});

test("a directory that is swapped for a link while it is removed takes nothing outside with it", async () => {
  const home = newHome();
  const outside = join(home, "outside");
  mkdirSync(outside);
  const kept = Array.from({ length: 20 }, (_, n) => `kept-${n}`).toSorted();
  for (const name of kept) writeFileSync(join(outside, name), "kept");
  for (let round = 0; round < 30; round++) {
    const { tenantId } = someTenant("swap");
    const { sandbox } = createTenantDirectory(home, { tenantId, osUidIndex: 0 });
    const [victim, aside] = [join(sandbox, "victim"), join(sandbox, "aside")];
    mkdirSync(victim);
    for (let n = 0; n < 20; n++) writeFileSync(join(victim, `file-${n}`), "x");
    let isRemoving = true;
    const swapping = (async () => {
      while (isRemoving) {
        await rename(victim, aside).catch(() => undefined);
        await symlink(outside, victim).catch(() => undefined);
        await unlink(victim).catch(() => undefined);
        await rename(aside, victim).catch(() => undefined);
      }
    })();

    await removeTenantDirectory(home, tenantId).catch(() => undefined); // may lose a race, and is then repeated
    isRemoving = false;
    await swapping;
    await removeTenantDirectory(home, tenantId);

    expect(lstatSync(tenantDirectory(home, tenantId), { throwIfNoEntry: false })).toBeUndefined();
    expect(readdirSync(outside).toSorted()).toEqual(kept);
  }
});

test("a tenant may have a name that no path from outside may have", async () => {
  const home = newHome();
  const tenantId = parseTenantId("con");
  const { root } = createTenantDirectory(home, { tenantId, osUidIndex: 7 });

  await removeTenantDirectory(home, tenantId);

  expect(lstatSync(root, { throwIfNoEntry: false })).toBeUndefined();
});
