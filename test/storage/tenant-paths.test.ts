import { execFileSync } from "node:child_process";
import { chmodSync, lstatSync, mkdirSync, mkdtempSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { createHome, createTenantDirectory, tenantDirectory, tenantUidOf } from "../../storage/tenant-paths.ts";
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
