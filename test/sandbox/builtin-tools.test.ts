import { chmod, link, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createBuiltinTools } from "../../sandbox/builtin-tools.ts";
import type { SandboxDriver } from "../../sandbox/sandbox-driver.ts";
import type { Tool, ToolOutcome } from "../../sandbox/tool.ts";
import { isRoot, limits, missing, type Stage, setStage, variants } from "./sandbox-stage.ts";

const never = new AbortController().signal;
const unreachable: SandboxDriver = {
  name: "none",
  enforcement: () => undefined,
  probe: async () => undefined,
  prepare: () => undefined,
  run: async () => expect.fail("the sandbox was reached"),
  drop: async () => undefined,
  dispose: async () => undefined,
};

describe("arguments of a model", () => {
  const tools = createBuiltinTools({ driver: unreachable });

  test.each([
    ["exec", "{nope", "not JSON"],
    ["exec", "", "command"],
    ["exec", "[]", "expected object"],
    ["exec", '{"command":5}', "command"],
    ["exec", '{"command":"true","shell":"zsh"}', "shell"],
    ["exec", '{"command":"echo \\u0000"}', "NUL"],
    ["exec", JSON.stringify({ command: "x".repeat(200_000) }), "write a script"],
    ["read", '{"path":"../x"}', "outside the work directory"],
    ["read", '{"path":"/etc/passwd"}', "outside the work directory"],
    ["read", '{"path":"/work/../etc/passwd"}', "outside the work directory"],
    ["read", '{"path":"/workshop/x"}', "outside the work directory"],
    ["read", '{"path":"a\\u0000b"}', "NUL"],
    ["read", '{"path":""}', "path"],
    ["read", '{"path":"a","offset":0}', "offset"],
    ["write", JSON.stringify({ path: "a", content: "é".repeat(600_000) }), "1048576 bytes"],
    ["edit", '{"path":"a","old_text":"","new_text":"x"}', "old_text"],
    ["edit", '{"path":"a","old_text":"x","new_text":"x"}', "the same"],
    ["list", '{"path":"../.."}', "outside the work directory"],
    ["list", '{"constructor":1,"__proto__":{}}', "nrecognized key"],
  ])("%s refuses %.60s with a sentence", async (name, json, sentence) => {
    const outcome = await (tools.get(name) as Tool).run({ workDirectory: "/nowhere", uid: 1, limits }, json, never);

    expect(outcome.failed).toBe(true);
    expect(outcome.content).toContain(sentence);
  });

  test("only reading tools may run twice, and each tool tells its arguments", () => {
    expect([...tools].map(([name, { idempotent }]) => `${name} ${idempotent}`)).toEqual([
      "exec false",
      "read true",
      "write false",
      "edit false",
      "list true",
    ]);
    for (const { definition } of tools.values()) {
      expect(definition.description?.length).toBeGreaterThan(80);
      expect(definition.parameters).toMatchObject({ type: "object", additionalProperties: false });
    }
    expect(tools.get("edit")?.definition.parameters?.["required"]).toEqual(["path", "old_text", "new_text"]);
  });
});

describe.skipIf(missing !== undefined).each(variants)("tools, $name", (variant) => {
  let stage: Stage;
  let work: string;
  let tools: ReadonlyMap<string, Tool>;
  beforeAll(async () => {
    stage = await setStage(variant);
    work = stage.acme.workDirectory;
    tools = createBuiltinTools({ driver: stage.driver });
    await writeFile(join(stage.base, "host.txt"), "host text");
    await chmod(stage.base, 0o777);
  });
  afterAll(() => stage.tearDown());

  const call = (name: string, args: Record<string, unknown>, signal = never): Promise<ToolOutcome> =>
    (tools.get(name) as Tool).run({ ...stage.acme, limits }, JSON.stringify(args), signal);
  /** A file as the tenant's own program would have left it. */
  const put = async (path: string, text: string | Uint8Array): Promise<void> => {
    await writeFile(join(work, path), text);
    await chmod(join(work, path), 0o666);
  };

  test("exec gives output and exit code", async () => {
    expect(await call("exec", { command: "echo hello" })).toMatchObject({
      content: "hello\nexit code 0",
      failed: false,
      facts: { exitCode: 0, reason: "ok" },
    });
    expect(await call("exec", { command: "echo out; echo oops >&2; exit 3" })).toMatchObject({
      content: "stdout:\nout\n\nstderr:\noops\n\nexit code 3",
      failed: true,
    });
    expect((await call("exec", { command: "kill -SEGV $$" })).content).toBe("(no output)\nexit code 139 (SIGSEGV)");
    expect((await call("exec", { command: "printf '%s' \"$0 $HOME $PWD\"" })).content).toContain("/work /work");
  });

  test("exec says what ended it, and keeps both ends of a long output", async () => {
    expect((await call("exec", { command: "echo begun; sleep 60", timeout_seconds: 0.4 })).content).toBe(
      "begun\nIt was ended after 0.4 s, the time it was given.",
    );
    const { content, facts } = await call("exec", { command: "echo first; seq 100000; echo last" });
    expect(Buffer.byteLength(content)).toBeLessThanOrEqual(64 * 1024);
    expect(content).toMatch(/^first\n1\n2\n/);
    expect(content).toContain("bytes left out");
    expect(facts["truncated"]).toBe(true);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 200);
    expect(await call("exec", { command: "sleep 60" }, controller.signal)).toMatchObject({
      content: "(no output)\nIt was cancelled.",
      failed: true,
    });
  });

  test("write makes directories, replaces at once, keeps the mode, and says what it did", async () => {
    expect((await call("write", { path: "deep/er/new.txt", content: "héllo\n" })).content).toBe("deep/er/new.txt: created, 7 bytes.");
    expect(await readFile(join(work, "deep/er/new.txt"), "utf8")).toBe("héllo\n");
    await call("exec", { command: "printf '#!/bin/sh\\n' > run.sh; chmod 755 run.sh" });
    expect((await call("write", { path: "/work/run.sh", content: "#!/bin/sh\necho hi\n" })).content).toBe("run.sh: replaced, 18 bytes.");
    expect((await stat(join(work, "run.sh"))).mode & 0o777).toBe(0o755);
    expect((await call("exec", { command: "./run.sh" })).content).toBe("hi\nexit code 0");
    const big = "x".repeat(1024 * 1024);
    expect((await call("write", { path: "big", content: big })).failed).toBe(false);
    expect(await readFile(join(work, "big"), "utf8")).toBe(big);
    expect((await call("write", { path: "empty", content: "" })).content).toBe("empty: created, 0 bytes.");
    expect((await call("write", { path: "deep", content: "x" })).content).toBe("deep: is a directory.");
    expect((await readdir(work)).filter((name) => name.startsWith(".openclaw"))).toEqual([]);
  });

  test("names are data: newline, quote, dollar, leading dash, tilde", async () => {
    for (const path of ["a\nb", "$(touch hacked)", "-rf", "'; touch hacked; '", "@{[`touch hacked`]}", " both ", ">b|"]) {
      expect((await call("write", { path, content: path })).failed).toBe(false);
      expect((await call("read", { path })).content).toBe(path);
      expect((await call("edit", { path, old_text: path, new_text: "edited" })).failed).toBe(false);
      expect(await readFile(join(work, path), "utf8")).toBe("edited");
    }
    expect((await call("read", { path: "~/-rf" })).content).toBe("edited");
    expect(await readdir(work)).not.toContain("hacked");
    expect((await call("list", {})).content).toContain('"a\\nb"  6 bytes');
  });

  test("read gives lines, tells when there are more, and knows binary files", async () => {
    await put("lines", Array.from({ length: 5000 }, (_, index) => `line ${index + 1}\n`).join(""));
    await put("wide", "w".repeat(200_000));
    await put("binary", Buffer.from([1, 2, 0, 3]));
    await put("three", "a\nb\nc");

    expect((await call("read", { path: "three" })).content).toBe("a\nb\nc");
    expect((await call("read", { path: "three", offset: 2, limit: 1, line_numbers: true })).content).toBe(
      "     2\tb\n[More follows: read on with offset 3.]",
    );
    expect((await call("read", { path: "three", offset: 4 })).content).toBe("three has fewer than 4 lines.");
    const first = await call("read", { path: "lines" });
    expect(first.content).toMatch(/^line 1\n/);
    expect(first.content).toMatch(/line 2000\n\[More follows: read on with offset 2001\.\]$/);
    expect((await call("read", { path: "lines", offset: 4999 })).content).toBe("line 4999\nline 5000\n");
    const wide = await call("read", { path: "wide" });
    expect(wide.content).toContain("[Line 1 is longer");
    expect(Buffer.byteLength(wide.content)).toBeLessThanOrEqual(64 * 1024);
    const numbered = await call("read", { path: "lines", limit: 20_000, line_numbers: true });
    expect(Buffer.byteLength(numbered.content)).toBeLessThanOrEqual(64 * 1024);
    const next = Number(/offset (\d+)/.exec(numbered.content)?.[1]);
    expect(numbered.content).toContain(`${next - 1}\tline ${next - 1}\n[More`);
    expect((await call("read", { path: "binary" })).content).toBe("binary is a binary file of 4 bytes; it is not shown.");
    expect((await call("read", { path: "absent" })).content).toBe("absent: does not exist.");
  });

  test("read walks a file from end to end without losing a line", async () => {
    const lines = Array.from({ length: 9000 }, (_, index) => `${index} ${"é".repeat(index % 37)}`);
    await put("walk", `${lines.join("\n")}\n`);
    let seen = "";
    for (let offset = 1; offset > 0;) {
      const { content, failed } = await call("read", { path: "walk", offset, limit: 20_000 });
      expect(failed).toBe(false);
      const more = /\n\[More follows: read on with offset (\d+)\.\]$/.exec(content);
      seen += more ? `${content.slice(0, more.index)}\n` : content;
      offset = Number(more?.[1] ?? 0);
    }
    expect(seen).toBe(`${lines.join("\n")}\n`);
  });

  test("edit needs the text exactly once, or replace_all", async () => {
    await put("code", "one two two three\nfour\n");

    expect((await call("edit", { path: "code", old_text: "two", new_text: "2" })).content).toContain("2 times");
    expect((await call("edit", { path: "code", old_text: "five", new_text: "5" })).content).toContain("not in the file");
    expect(await readFile(join(work, "code"), "utf8")).toBe("one two two three\nfour\n");
    expect((await call("edit", { path: "code", old_text: "three\nfour", new_text: ".*$1\\n" })).content).toBe("code: replaced at line 1.");
    expect((await call("edit", { path: "code", old_text: "two", new_text: "", replace_all: true })).content).toBe(
      "code: replaced in 2 places, the first at line 1.",
    );
    expect(await readFile(join(work, "code"), "utf8")).toBe("one   .*$1\\n\n");
  });

  test("list is bounded, sorted, and shows kinds", async () => {
    await call("exec", {
      command:
        "mkdir -p tree/sub; echo x > tree/sub/f; ln -s / tree/root; mkfifo tree/pipe; mkdir many; cd many; seq -f 'f%05g' 1500 | xargs touch",
    });
    expect((await call("list", { path: "tree", recursive: true })).content).toBe(
      "pipe (neither file nor directory)\nroot@\nsub/\nsub/f  2 bytes",
    );
    const many = await call("list", { path: "many" });
    expect(many.content.split("\n")).toHaveLength(1001);
    expect(many.content).toMatch(/^f00001 {2}0 bytes\n[^]*f01000 {2}0 bytes\n\[There are more than 1000 entries/);
    expect((await call("list", { path: "tree/sub/f" })).content).toBe("tree/sub/f: not a directory.");
    expect((await call("list", { path: "gone" })).content).toBe("gone: does not exist.");
  });

  test("links that lead out are refused, links inside are followed", async () => {
    await symlink(join(stage.base, "host.txt"), join(work, "leak"));
    await symlink("/etc/passwd", join(work, "passwd"));
    await symlink(stage.base, join(work, "out"));
    await symlink("/tmp", join(work, "tmp"));
    await put("real", "text");
    await symlink("real", join(work, "alias"));

    for (const path of ["leak", "passwd", "out/host.txt", "out/new", "tmp/new"]) {
      const outcomes = [
        await call("read", { path }),
        await call("write", { path, content: "BROKEN" }),
        await call("edit", { path, old_text: "t", new_text: "BROKEN" }),
      ];
      expect(outcomes.map(({ failed }) => failed)).toEqual([true, true, true]);
      expect(outcomes.map(({ content }) => content).join()).not.toMatch(/host text|root:/);
    }
    for (const path of ["out", "tmp"]) expect((await call("list", { path })).failed).toBe(true);
    expect(await readFile(join(stage.base, "host.txt"), "utf8")).toBe("host text");
    expect(await readdir(stage.base)).not.toContain("new");
    expect((await call("edit", { path: "alias", old_text: "text", new_text: "changed" })).failed).toBe(false);
    expect([await readFile(join(work, "real"), "utf8"), (await call("read", { path: "alias" })).content]).toEqual(["changed", "changed"]);
  });

  test("a race of a program that swaps a directory for a link is lost by the program", async () => {
    await mkdir(join(stage.base, "target"), { recursive: true });
    await chmod(join(stage.base, "target"), 0o777);
    const swap = `perl -e 'mkdir "swap"; $end = time + 2; while (time < $end) { rename "swap", "was"; symlink "${stage.base}/target", "swap"; unlink "swap"; rename "was", "swap" }'`;
    const swapping = call("exec", { command: swap, timeout_seconds: 6 });
    for (let index = 0; index < 15; index += 1) await call("write", { path: `swap/f${index}`, content: "x" });
    await swapping;

    expect(await readdir(join(stage.base, "target"))).toEqual([]);
  });

  test("FIFOs, sockets and directories neither hang nor are read", async () => {
    await call("exec", {
      command: 'mkfifo fifo; perl -e \'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack("S a*", AF_UNIX, "sock"))\'; mkdir dir',
    });
    for (const path of ["fifo", "sock", "dir"]) {
      const startedAt = Date.now();
      for (const [name, args] of [
        ["read", {}],
        ["write", { content: "x" }],
        ["edit", { old_text: "a", new_text: "b" }],
      ] as const) {
        expect([path, name, (await call(name, { path, ...args })).content]).toEqual([
          path,
          name,
          `${path}: ${path === "dir" ? "is a directory" : "is not an ordinary file"}.`,
        ]);
      }
      expect(Date.now() - startedAt).toBeLessThan(3000);
    }
  });

  test("a huge file is read in part and not edited", async () => {
    await call("exec", { command: "truncate -s 15M sparse; yes line | head -c 15000000 > long" });
    expect((await call("read", { path: "sparse" })).content).toContain("binary file of 15728640 bytes");
    expect((await call("read", { path: "long", offset: 2_999_999 })).content).toBe("line\nline\n");
    expect((await call("edit", { path: "long", old_text: "line", new_text: "x" })).content).toBe("long: is larger than 8388608 bytes.");
  });

  test.runIf(isRoot)("a hard link to a file of another owner is not written through", async () => {
    await writeFile(join(stage.base, "owned"), "root's", { mode: 0o644 });
    await link(join(stage.base, "owned"), join(work, "hard"));
    await call("write", { path: "hard", content: "mine" });
    expect(await readFile(join(stage.base, "owned"), "utf8")).toBe("root's");
  });

  test("a sandbox that cannot start is no sentence about the command", async () => {
    const outcome = await (tools.get("exec") as Tool).run(
      { ...stage.acme, limits, workDirectory: join(stage.base, "absent") },
      '{"command":"true"}',
      never,
    );
    expect(outcome).toMatchObject({ failed: true, facts: { reason: "failed_to_start" } });
    expect(outcome.content).toContain("could not be started");
    expect(outcome.content).not.toContain(stage.base);
    const read = await (tools.get("read") as Tool).run(
      { ...stage.acme, limits, workDirectory: join(stage.base, "absent") },
      '{"path":"x"}',
      never,
    );
    expect(read.content).not.toContain(stage.base);
  });
});
