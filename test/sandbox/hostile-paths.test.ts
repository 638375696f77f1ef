import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createBuiltinTools } from "../../sandbox/builtin-tools.ts";
import type { Tool, ToolOutcome } from "../../sandbox/tool.ts";
import { canary, hostilePaths, plantedLinks } from "../storage/hostile-paths.ts";
import { isRoot, limits, missing, type Stage, setStage, variants } from "./sandbox-stage.ts";

const never = new AbortController().signal;

/** The attacks of `storage/confined-path.ts` through the tools that a model calls, in the real sandbox. */
describe.skipIf(missing !== undefined).each(variants.slice(0, 1))("the file tools, $name", (variant) => {
  let stage: Stage;
  let tools: ReadonlyMap<string, Tool>;
  let outside: string;
  beforeAll(async () => {
    stage = await setStage(variant);
    tools = createBuiltinTools({ driver: stage.driver });
    outside = join(stage.base, "outside");
    mkdirSync(outside);
    for (const directory of [stage.base, outside]) writeFileSync(join(directory, "secret.txt"), canary);
    // Nothing but the tools and the sandbox keeps anybody from this.
    execFileSync("chmod", ["-R", "a+rwX", outside, join(stage.base, "secret.txt")]);
  });
  afterAll(() => stage.tearDown());

  /** A fresh work directory, all of it the tenant's. */
  const work = (): string => {
    const { workDirectory, uid } = stage.acme;
    for (const name of readdirSync(workDirectory)) rmSync(join(workDirectory, name), { recursive: true, force: true });
    mkdirSync(join(workDirectory, "inner/deep"), { recursive: true });
    writeFileSync(join(workDirectory, "notes.md"), "notes");
    writeFileSync(join(workDirectory, "inner/file.txt"), "inner file");
    if (uid !== undefined && isRoot) execFileSync("chown", ["-R", `${uid}:${uid}`, workDirectory]);
    return workDirectory;
  };

  const attempts = (path: string): readonly (readonly [tool: string, args: Record<string, unknown>])[] => [
    ["read", { path }],
    ["list", { path, recursive: true }],
    ["edit", { path, old_text: "secret", new_text: "BROKEN" }],
    ["write", { path, content: "BROKEN" }],
  ];

  const tryAll = async (path: string): Promise<readonly ToolOutcome[]> => {
    const outcomes: ToolOutcome[] = [];
    for (const [name, args] of attempts(path))
      outcomes.push(await (tools.get(name) as Tool).run({ ...stage.acme, limits }, JSON.stringify(args), never));
    return outcomes;
  };

  const expectNothingReached = (what: string, outcomes: readonly ToolOutcome[]): void => {
    for (const { content, facts } of outcomes)
      expect(JSON.stringify([content, facts]), what).not.toMatch(/another tenant|root:x:|\[fonts\]/);
    for (const directory of [stage.base, outside]) expect(readFileSync(join(directory, "secret.txt"), "utf8"), what).toBe(canary);
    expect(readdirSync(stage.base).toSorted(), what).toEqual(["acme", "globex", "outside", "secret.txt"]);
    expect(
      readdirSync(outside).filter((name) => name !== "fifo"),
      what,
    ).toEqual(["secret.txt"]);
  };

  test("no hostile path reads or writes anything outside", { timeout: 240_000 }, async () => {
    work();
    for (const [what, path] of hostilePaths.filter(([, hostile]) => hostile.length < 5_000)) expectNothingReached(what, await tryAll(path));
  });

  test("no planted link leads outside", { timeout: 240_000 }, async () => {
    // A program in the sandbox can give no second name to what lies on another mount.
    for (const [what, plant, path] of plantedLinks.filter(([name]) => !name.startsWith("a second name"))) {
      await plant({ root: work(), outside, base: stage.base });
      const outcomes = await tryAll(path);
      expectNothingReached(what, outcomes);
      rmSync(join(outside, "fifo"), { force: true });
    }
  });
});
