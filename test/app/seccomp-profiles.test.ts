import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createSeccompProfiles } from "../../app/seccomp-profiles.ts";
import { builtInProfile } from "../../sandbox/seccomp-profile.ts";

let home: string;
beforeEach(() => {
  home = mkdtempSync(join(realpathSync(tmpdir()), "openclaw-profiles-"));
  mkdirSync(join(home, "profiles"));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

const write = (name: string, text: string): void => writeFileSync(join(home, "profiles", name), text);
const of = async (...names: string[]) => await createSeccompProfiles({ home }).of(names);

test("a file below the home is a profile, alone and together with another", async () => {
  write("build.json", '{ "extends": "default", "allow": ["shmget"], "deny": ["symlink"] }');

  const build = await of("./profiles/build.json");
  const both = await of("./profiles/build.json", "strict");

  expect(build).toMatchObject({ ipSockets: true, denied: "refuse", allowed: expect.arrayContaining(["shmget"]) });
  expect(build).toMatchObject({ allowed: expect.not.arrayContaining(["symlink"]) });
  expect(both).toMatchObject({ ipSockets: false, allowed: expect.not.arrayContaining(["shmget"]) });
  expect(await of("default")).toBe(builtInProfile("default"));
});

test("what is not a plain file of the administrator's is refused with the reason", async () => {
  const secret = join(home, "..", `openclaw-outside-${process.pid}.json`);
  writeFileSync(secret, '{ "extends": "default" }');
  symlinkSync(secret, join(home, "profiles/link.json"));
  symlinkSync("/etc", join(home, "elsewhere"));
  execFileSync("mkfifo", [join(home, "profiles/fifo.json")]);
  mkdirSync(join(home, "profiles/directory.json"));
  mkdirSync(join(home, "tenants/acme/sandbox"), { recursive: true });
  writeFileSync(join(home, "tenants/acme/sandbox/mine.json"), '{ "extends": "default" }');
  write("large.json", " ".repeat(70_000));
  write("bad.json", '{ "extends": "default", "allow": ["mount"] }');
  write("empty.json", "");

  for (const [name, reason] of [
    ["mine", 'no seccomp profile "mine"'],
    ["toString", 'no seccomp profile "toString"'],
    ["/etc/profile.json", "no seccomp profile"],
    ["./profiles/absent.json", "there is no such file"],
    ["./profiles/link.json", "link"],
    ["./elsewhere/passwd", "./elsewhere/passwd cannot be used"],
    ["./profiles/fifo.json", "./profiles/fifo.json cannot be used"],
    ["./profiles/directory.json", "./profiles/directory.json cannot be used"],
    ["./../outside.json", "./../outside.json cannot be used"],
    [`.//etc/profile.json`, "absolute"],
    ["./tenants/acme/sandbox/mine.json", "among the tenants' files"],
    ["./profiles/large.json", "longer than"],
    ["./profiles/bad.json", "no profile may allow mount"],
    ["./profiles/empty.json", "not JSON"],
  ] as const) {
    expect([name, await of(name)]).toEqual([name, expect.stringContaining(reason)]);
    expect([name, await of("default", name)]).toEqual([name, expect.stringContaining(reason)]);
  }
  rmSync(secret);
});
