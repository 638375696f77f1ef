import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { machineOf, syscallTables } from "../../sandbox/seccomp-filter.ts";
import { builtInProfile, parseSeccompProfile, type SeccompProfile } from "../../sandbox/seccomp-profile.ts";
import { isRoot, limits, MiB, missing, type Stage, setStage, text, variants } from "./sandbox-stage.ts";

const numbers = syscallTables[machineOf(process.arch) ?? "x86_64"];
const never = new AbortController().signal;

/** Real programs under real filters, in the kernel. */
describe.skipIf(missing !== undefined).each(variants.filter(({ options }) => options.enforcer === undefined))(
  "seccomp, $name",
  (variant) => {
    let stage: Stage;
    beforeAll(async () => {
      stage = await setStage(variant);
    });
    afterAll(() => stage.tearDown());

    const run = async (seccomp: SeccompProfile | string | undefined, script: string) => {
      if (typeof seccomp === "string" || seccomp === undefined) expect.fail(seccomp ?? "there is no such profile");
      const own = { ...limits, memoryBytes: 512 * MiB, fileBytes: 64 * MiB };
      const result = await stage.driver.run(
        { ...stage.acme, seccomp, argv: ["/bin/bash", "-c", script], stdin: "", limits: { ...own, wallMs: 60_000 } },
        never,
      );
      return { ...result, out: text(result.stdout), err: text(result.stderr) };
    };
    /** The call's error, 0 for none. */
    const call = (name: string, args: string): string => `perl -e 'print syscall(${numbers[name]}, ${args}) == -1 ? $! + 0 : 0, " "'`;

    test("strict runs what people run, and opens nothing but UNIX sockets", async () => {
      const strict = builtInProfile("strict");
      const everyday = await run(
        strict,
        `set -e; x=$(echo hi | tr h H); for i in 1 2 3; do sleep 0.01 & done; wait; echo $x
      git init -q r; cd r; git config user.email a@b.c; git config user.name a; echo x > f; git add f; git commit -qm one; git log --format=%s
      cp -a ../r ../copy; tar cf ../r.tar f; sed -i s/x/y/ f; cat f; find .. -name f | wc -l
      if command -v python3 > /dev/null; then python3 -u -c 'import subprocess, threading; t = threading.Thread(target=print, args=("thread",)); t.start(); t.join(); subprocess.run(["echo", "child"])'; else echo thread; echo child; fi`,
      );
      expect(everyday, everyday.err).toMatchObject({ reason: "ok", exitCode: 0, out: "Hi\none\ny\n2\nthread\nchild\n" });

      const sockets = await run(
        strict,
        `${call("socket", "1, 1, 0")}; ${call("socket", "2, 1, 0")}; ${call("socket", "10, 2, 0")}; ${call("memfd_create", '$n = "m", 0')}`,
      );
      expect(sockets.out.trim().split(" ")).toEqual(["0", "97", "97", "1"]);
    });

    test.runIf(process.arch === "x64")("a program that speaks another machine's calls is ended, and the result says denied", async () => {
      expect(await run(builtInProfile("default"), "exec perl -e 'syscall(0x40000000 + 39); print 1'")).toMatchObject({
        reason: "denied",
        exitCode: 159,
        out: "",
      });
    });

    test("a profile from a file lets through what it allows and refuses what it denies", async () => {
      const profile = parseSeccompProfile('{ "extends": "default", "allow": ["semget"], "deny": ["symlink", "symlinkat", "socket"] }');
      const probes = `${call("semget", "0, 1, 0x380")}; ${call("socket", "1, 1, 0")}; ${call("shmget", "0, 4096, 0x380")}; ln -s a b 2> /dev/null || echo refused`;

      expect((await run(profile, probes)).out.split(/\s+/).slice(0, 4)).toEqual(["0", "1", "1", "refused"]);
      expect((await run(builtInProfile("default"), `${probes}; test -L b && echo linked; rm b`)).out.split(/\s+/).slice(0, 4)).toEqual([
        "1",
        "0",
        "1",
        "linked",
      ]);
    });

    test("log lets it happen, and the kernel's log tells of it", async () => {
      const { out } = await run(builtInProfile("log"), call("keyctl", "0, -3, 0"));
      expect(out.trim()).toBe("0");

      if (!isRoot || !/(^|\s)log(\s|$)/.test(readFileSync("/proc/sys/kernel/seccomp/actions_logged", "utf8"))) return;
      // An audit daemon, where there is one, takes the lines away from here.
      const uid = variant.asUser ? "" : `uid=${stage.acme.uid} `;
      const lines = execFileSync("/usr/bin/dmesg", { encoding: "utf8", maxBuffer: 64 * MiB }).split("\n");
      const told = lines.filter(
        (line) => line.includes("type=1326") && line.includes(uid) && line.includes(`syscall=${numbers["keyctl"]} `),
      );
      if (told.length === 0) console.info("the kernel's log does not show seccomp lines on this host");
      else expect(told.at(-1)).toContain("code=0x7ffc0000");
    });
  },
);
