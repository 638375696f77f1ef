import { execFileSync } from "node:child_process";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { parseTenantId } from "../../domain/tenant.ts";
import { NotPlainFile, readPlainFile } from "../../storage/plain-file.ts";
import { readPromptFiles } from "../../storage/prompt-files.ts";
import { quiet, temporaryHome } from "./fresh-database.ts";

function someDirectory(): string {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  return home;
}

test("a plain file is read, up to what is asked for", () => {
  const directory = someDirectory();
  writeFileSync(join(directory, "a"), "hello");
  writeFileSync(join(directory, "empty"), "");

  expect(readPlainFile(directory, "a", 5)).toEqual({ bytes: Buffer.from("hello"), isCut: false });
  expect(readPlainFile(directory, "a", 4)).toEqual({ bytes: Buffer.from("hell"), isCut: true });
  expect(readPlainFile(directory, "empty", 4)).toEqual({ bytes: Buffer.from(""), isCut: false });
  expect(readPlainFile(directory, "none", 4)).toBeUndefined();
  expect(readPlainFile(join(directory, "nowhere"), "a", 4)).toBeUndefined();
});

test("anything else is not opened, and nobody waits for it", async () => {
  const directory = someDirectory();
  writeFileSync(join(directory, "secret"), "secret");
  symlinkSync(join(directory, "secret"), join(directory, "link"));
  symlinkSync("nowhere", join(directory, "dangling"));
  mkdirSync(join(directory, "directory"));
  symlinkSync(join(directory, "directory"), join(directory, "linked-directory"));
  execFileSync("mkfifo", [join(directory, "queue")]);
  const server = createServer().listen(join(directory, "socket"));
  await once(server, "listening");
  onTestFinished(() => void server.close());

  for (const name of ["link", "dangling", "directory", "queue", "socket"])
    expect(() => readPlainFile(directory, name, 10), name).toThrow(NotPlainFile);
  for (const place of ["linked-directory", "secret"])
    expect(() => readPlainFile(join(directory, place), "a", 10), place).toThrow(NotPlainFile);
});

test("the files of a tenant's memory come in their order, cut, and without what is empty or no file", () => {
  const home = someDirectory();
  const tenantId = parseTenantId("acme");
  const memory = join(home, "tenants", tenantId, "memory");
  expect(readPromptFiles(home, tenantId, quiet)).toEqual([]);

  mkdirSync(memory, { recursive: true });
  writeFileSync(join(memory, "MEMORY.md"), "é".repeat(19_999) + "\u{1f600}".repeat(10));
  writeFileSync(join(memory, "AGENTS.md"), "Rules.");
  writeFileSync(join(memory, "USER.md"), "Not shown.");
  writeFileSync(join(memory, "SOUL.md"), " \n");
  const files = readPromptFiles(home, tenantId, quiet);

  expect(files.map(({ name }) => name)).toEqual(["AGENTS.md", "MEMORY.md"]);
  expect(files[0]?.text).toBe("Rules.");
  expect(files[1]?.text).toBe(`${"é".repeat(19_999)}\uFFFD\n[The file is longer; the rest is not shown here.]`);
});
