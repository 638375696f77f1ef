import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { readFile, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, onTestFinished, test } from "vitest";
import { archiveEntryPath, parseRelativePath, PathRefused } from "../../domain/relative-path.ts";
import {
  listConfined,
  makeConfinedDirectory,
  readConfined,
  removeConfined,
  statConfined,
  writeConfined,
} from "../../storage/confined-path.ts";
import { canary, hostilePaths, plainPaths, plantedLinks } from "./hostile-paths.ts";

const maxBytes = 1_000;

/** A directory with files, next to a secret that nothing may reach. */
function place(): { readonly base: string; readonly root: string; readonly outside: string } {
  const base = realpathSync(mkdtempSync(join(tmpdir(), "openclaw-confined-")));
  onTestFinished(() => rmSync(base, { recursive: true, force: true }));
  const [root, outside] = [join(base, "root"), join(base, "outside")];
  mkdirSync(join(root, "inner", "deep"), { recursive: true });
  mkdirSync(outside);
  writeFileSync(join(root, "notes.md"), "notes");
  writeFileSync(join(root, "inner", "file.txt"), "inner file");
  writeFileSync(join(base, "secret.txt"), canary);
  writeFileSync(join(outside, "secret.txt"), canary);
  return { base, root, outside };
}

/** Everything that can be asked of a path. */
const operations = (root: string): Readonly<Record<string, (path: string) => Promise<unknown>>> => ({
  read: (path) => readConfined(root, path, { maxBytes }),
  write: (path) => writeConfined(root, path, "overwritten"),
  mkdir: (path) => makeConfinedDirectory(root, path),
  list: (path) => listConfined(root, path),
  stat: (path) => statConfined(root, path),
  remove: (path) => removeConfined(root, path),
});

const treeOf = (directory: string): string =>
  execFileSync("find", [directory, "-printf", "%P %y %m %s %l\\n"], { encoding: "utf8" }).split("\n").toSorted().join("\n");

describe("paths that are refused by their text", () => {
  test.each(hostilePaths)("%s", async (_what, path) => {
    const { base, root } = place();
    const before = treeOf(base);

    expect(() => parseRelativePath(path)).toThrow(PathRefused);
    for (const operation of Object.values(operations(root))) await expect(operation(path)).rejects.toThrow(PathRefused);

    expect(treeOf(base)).toBe(before);
  });

  test("the sentence names no path, and the log has it cut", () => {
    const error = (() => {
      try {
        return parseRelativePath(`../${"x".repeat(4_000)}`);
      } catch (refused) {
        return refused as PathRefused;
      }
    })() as PathRefused;

    expect(error.message).toBe("The path climbs.");
    expect(error.code).toBe("invalid_request");
    expect(String(error.details["path"])).toHaveLength(256);
  });

  test.each(plainPaths)("%.60s is a plain name", (path) => {
    expect(parseRelativePath(path).join("/")).toBe(path);
  });

  test("an entry of an archive may end in one slash, and in no other way differ", () => {
    expect(archiveEntryPath("inner/deep/").join("/")).toBe("inner/deep");
    for (const path of ["/", "inner//", "../", "./", "", "inner/../x/"]) expect(() => archiveEntryPath(path), path).toThrow(PathRefused);
    for (const [, path] of hostilePaths.filter(([, hostile]) => !hostile.endsWith("/")))
      expect(() => archiveEntryPath(path), path.slice(0, 40)).toThrow(PathRefused);
  });

  test("whatever is parsed stays below its root, and parses again to itself", () => {
    const component = fc.oneof(
      fc.constantFrom("..", ".", "", "a", "..a", "%2e", "~", "inner"),
      fc.string({ unit: "binary", maxLength: 6 }),
      fc.string({ unit: "grapheme", maxLength: 4 }),
    );
    fc.assert(
      fc.property(fc.array(component, { maxLength: 6 }), (components) => {
        const raw = components.join("/");
        let parsed: readonly string[];
        try {
          parsed = parseRelativePath(raw);
        } catch (error) {
          expect(error).toBeInstanceOf(PathRefused);
          return;
        }
        expect(new URL(parsed.map(encodeURIComponent).join("/"), "file:///root/below/").pathname).toMatch(/^\/root\/below\/./);
        expect(join("/root/below", ...parsed)).toBe(`/root/below/${raw}`);
        expect(parseRelativePath(parsed.join("/"))).toEqual(parsed);
      }),
      { numRuns: 500 },
    );
  });
});

describe("what a tenant's program may have left", () => {
  test.each([...plantedLinks])("%s", async (_what, plant, path, harmless = []) => {
    const here = place();
    await plant(here);
    const before = treeOf(here.outside);

    for (const [name, operation] of Object.entries(operations(here.root))) {
      if (harmless.includes(name)) await operation(path).catch((error: unknown) => expect(error).toBeInstanceOf(PathRefused));
      else await expect(operation(path), name).rejects.toThrow(PathRefused);
    }

    expect(treeOf(here.outside)).toBe(before);
    expect(readFileSync(join(here.base, "secret.txt"), "utf8")).toBe(canary);
  });

  test.runIf(process.getuid?.() === 0)("a device is not opened", async () => {
    const { root } = place();
    execFileSync("mknod", [join(root, "x"), "c", "1", "5"]);

    await expect(readConfined(root, "x", { maxBytes })).rejects.toThrow(PathRefused);
    await expect(writeConfined(root, "x", "text")).rejects.toThrow(PathRefused);
  });

  test("a root that is a link is refused, one that is not there holds nothing", async () => {
    const { base, root, outside } = place();
    symlinkSync(outside, join(base, "other"));

    await expect(readConfined(join(base, "other"), "secret.txt", { maxBytes })).rejects.toThrow(PathRefused);
    await expect(writeConfined(join(base, "other"), "secret.txt", "text")).rejects.toThrow(PathRefused);
    expect(await readConfined(join(root, "missing"), "secret.txt", { maxBytes })).toBeUndefined();
  });
});

describe("in a plain tree", () => {
  test("what is written is read, listed, measured and removed", async () => {
    const { root } = place();

    await makeConfinedDirectory(root, "made/below");
    await makeConfinedDirectory(root, "made/below");
    await writeConfined(root, "made/below/file.txt", "first", 0o640);
    await writeConfined(root, "made/below/file.txt", "second", 0o640);

    expect(await readConfined(root, "made/below/file.txt", { maxBytes })).toEqual({ bytes: Buffer.from("second"), isCut: false });
    expect(await readConfined(root, "made/below/file.txt", { maxBytes: 3 })).toEqual({ bytes: Buffer.from("sec"), isCut: true });
    expect(await readConfined(root, "made/below/file.txt", { maxBytes: 6 })).toMatchObject({ isCut: false });
    expect(await statConfined(root, "made/below/file.txt")).toMatchObject({ kind: "file", sizeBytes: 6, mode: 0o640 });
    expect(statSync(join(root, "made")).mode & 0o777).toBe(0o700);
    expect(await listConfined(root, "made/below")).toEqual([{ name: "file.txt", kind: "file" }]);
    expect((await listConfined(root))?.map(({ name, kind }) => `${name} ${kind}`)).toEqual([
      "inner directory",
      "made directory",
      "notes.md file",
    ]);
    expect(await removeConfined(root, "made")).toBe(true);
    expect(await removeConfined(root, "made")).toBe(false);
    expect(await statConfined(root, "made")).toBeUndefined();
    expect(await readConfined(root, "made/below/file.txt", { maxBytes })).toBeUndefined();
    expect(await listConfined(root, "made")).toBeUndefined();
  });

  test("a file whose directory is missing, or that is a directory, is not written, and nothing is left behind", async () => {
    const { root } = place();
    const before = treeOf(root);

    await expect(writeConfined(root, "missing/file.txt", "text")).rejects.toThrow("does not exist");
    await expect(writeConfined(root, "inner", "text")).rejects.toThrow("is a directory");
    await expect(readConfined(root, "inner", { maxBytes })).rejects.toThrow("is a directory");

    expect(treeOf(root)).toBe(before);
  });

  test.runIf(process.getuid?.() === 0)("what root makes belongs to the owner of the directory", async () => {
    const { root } = place();
    execFileSync("chown", ["200123:200123", root]);

    await writeConfined(root, "file.txt", "text");
    await makeConfinedDirectory(root, "one/two");

    for (const path of ["file.txt", "one", "one/two"])
      expect(statSync(join(root, path)), path).toMatchObject({ uid: 200_123, gid: 200_123 });
  });

  test("removing a tree follows no link, and takes names that are not text and any depth", async () => {
    const { root, outside, base } = place();
    symlinkSync(outside, join(root, "inner", "link"));
    symlinkSync(base, join(root, "inner", "deep", "up"));
    execFileSync("python3", [
      "-c",
      "import os,sys\nos.chdir(sys.argv[1])\nopen(b'\\xff\\xfe','w').close()\nfor i in range(1500):\n os.mkdir('d'); os.chdir('d')",
      join(root, "inner"),
    ]);
    const before = treeOf(outside);

    expect(await removeConfined(root, "inner")).toBe(true);

    expect((await listConfined(root))?.map(({ name }) => name)).toEqual(["notes.md"]);
    expect(treeOf(outside)).toBe(before);
  });
});

test("in any tree with any links, a file is read exactly when its real path is the path that was asked for", async () => {
  const name = fc.constantFrom("a", "b", "c");
  const path = fc.array(name, { minLength: 1, maxLength: 4 });
  const entry = fc.record({
    path,
    kind: fc.constantFrom("file", "directory", "link" as const),
    target: fc.oneof(
      path.map((parts) => parts.join("/")),
      fc.constantFrom("..", "../..", ".", "/etc/passwd", "../outside", "../../outside/secret.txt"),
    ),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(entry, { maxLength: 14 }), fc.array(path, { minLength: 1, maxLength: 8 }), async (entries, asked) => {
      const base = realpathSync(mkdtempSync(join(tmpdir(), "openclaw-tree-")));
      try {
        const root = join(base, "root");
        mkdirSync(join(base, "outside"));
        mkdirSync(root);
        writeFileSync(join(base, "outside/secret.txt"), canary);
        for (const { path: parts, kind, target } of entries) plantEntry(root, parts, kind, target);
        const before = treeOf(join(base, "outside"));
        for (const parts of [...asked, ...entries.map((made) => made.path)]) {
          const wanted = join(root, ...parts);
          const real = await realpath(wanted).catch(() => undefined);
          const got = await readConfined(root, parts.join("/"), { maxBytes }).catch((error: unknown) => error);
          if (real === wanted && statSync(real).isFile()) expect(got).toEqual({ bytes: readFileSync(real), isCut: false });
          else expect(got === undefined || got instanceof PathRefused, `${wanted} is ${real}`).toBe(true);
          await writeConfined(root, parts.join("/"), "written").catch((error: unknown) => expect(error).toBeInstanceOf(PathRefused));
        }
        expect(readFileSync(join(base, "outside/secret.txt"), "utf8")).toBe(canary);
        expect(treeOf(join(base, "outside"))).toBe(before);
      } finally {
        rmSync(base, { recursive: true, force: true });
      }
    }),
    { numRuns: 40 },
  );
});

/** As far as what is there already allows. */
function plantEntry(root: string, parts: readonly string[], kind: string, target: string): void {
  const parent = join(root, ...parts.slice(0, -1));
  try {
    mkdirSync(parent, { recursive: true });
    if (!realpathSync(parent).startsWith(root)) return;
    const made = join(parent, parts.at(-1) ?? "");
    if (kind === "file") writeFileSync(made, parts.join(" "), { flag: "wx" });
    else if (kind === "directory") mkdirSync(made);
    else symlinkSync(target, made);
  } catch {
    // Something has the name already, or a link stands in the way.
  }
}

describe("a directory and a file that are swapped for links while they are opened", () => {
  /** Puts links in the place of `dir` and `file`, and back, as fast as it can. */
  const swapper = `
    import { renameSync } from "node:fs";
    process.chdir(process.argv[1]);
    process.stdout.write("swapping");
    for (;;) {
      renameSync("dir", "dir-real"); renameSync("dir-link", "dir"); renameSync("file", "file-real"); renameSync("file-link", "file");
      renameSync("dir", "dir-link"); renameSync("dir-real", "dir"); renameSync("file", "file-link"); renameSync("file-real", "file");
    }`;

  const swapped = async () => {
    const { root, outside } = place();
    mkdirSync(join(root, "dir"));
    writeFileSync(join(root, "dir/secret.txt"), "inside");
    writeFileSync(join(root, "file"), "inside");
    symlinkSync(outside, join(root, "dir-link"));
    symlinkSync(join(outside, "secret.txt"), join(root, "file-link"));
    const child = spawn(process.execPath, ["--input-type=module", "-e", swapper, root], { stdio: ["ignore", "pipe", "inherit"] });
    const exited = once(child, "exit");
    onTestFinished(async () => {
      child.kill("SIGKILL");
      await exited;
    });
    await once(child.stdout, "data");
    return { root, outside };
  };

  test("a look at the real path before the use is fooled", async () => {
    const { root } = await swapped();
    const naive = async (path: string): Promise<string> => {
      const real = await realpath(join(root, path));
      return real.startsWith(`${root}/`) ? await readFile(join(root, path), "utf8") : "";
    };

    let read = "";
    while (read !== canary) read = await naive("dir/secret.txt").catch(() => "");

    expect(read).toBe(canary);
  });

  test("the walk by descriptor never is", async () => {
    const { root, outside } = await swapped();
    const before = treeOf(outside);
    const seen = { inside: 0, refused: 0, missing: 0, other: 0 };
    const read = async (path: string): Promise<void> => {
      const got = await readConfined(root, path, { maxBytes }).catch((error: unknown) => error);
      if (got === undefined) seen.missing++;
      else if (got instanceof PathRefused) seen.refused++;
      else if (String((got as { bytes: Buffer }).bytes) === "inside") seen.inside++;
      else seen.other++;
    };

    for (let round = 0; round < 200 || seen.inside < 50 || seen.refused < 50; round++) {
      await Promise.all([read("dir/secret.txt"), read("file")]);
      await Promise.allSettled([
        writeConfined(root, "dir/new.txt", "written"),
        removeConfined(root, "dir/new.txt"),
        statConfined(root, "dir/secret.txt"),
        listConfined(root, "dir"),
      ]);
    }

    expect(seen.other).toBe(0);
    expect(treeOf(outside)).toBe(before);
  });
});
