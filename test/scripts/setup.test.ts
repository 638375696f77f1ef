import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";

const repository = join(import.meta.dirname, "..", "..");
const goodVersion = "temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)";
const oldVersion = "temporal version 1.1.0 (Server 1.25.0, UI 2.30.0)";
/** Nobody listens there, so the download fails at once and the test asks nothing of the world. */
const nowhere = "http://127.0.0.1:9";

async function newDirectory(): Promise<string> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), "openclaw-setup-")));
  onTestFinished(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** A checkout as small as can be: our set-up, one local npm package, and a PATH with little on it. */
async function newCheckout({ isInstalled = true, programs = ["bwrap", "setpriv", "prlimit"] } = {}) {
  const root = await newDirectory();
  for (const folder of ["scripts", "temporal-dev"]) await cp(join(repository, folder), join(root, folder), { recursive: true });
  const packages = {
    "": { dependencies: { local: "file:local" } },
    local: { version: "1.0.0" },
    "node_modules/local": { resolved: "local", link: true },
  };
  const lockfile = JSON.stringify({ name: "checkout", lockfileVersion: 3, requires: true, packages });
  await writeFile(
    join(root, "package.json"),
    JSON.stringify({ name: "checkout", private: true, type: "module", dependencies: { local: "file:local" } }),
  );
  await writeFile(join(root, "package-lock.json"), lockfile);
  await mkdir(join(root, "local"));
  await writeFile(join(root, "local", "package.json"), JSON.stringify({ name: "local", version: "1.0.0" }));
  if (isInstalled) {
    await mkdir(join(root, "node_modules"));
    await writeFile(join(root, "node_modules", ".package-lock.json"), lockfile);
  }

  const bin = join(root, "bin");
  await mkdir(bin);
  await symlink(process.execPath, join(bin, "node"));
  for (const program of ["sh", "tar", "gzip", "id", "true", "npm"]) await symlink(pathOf(program), join(bin, program));
  for (const program of programs) await writeProgram(join(bin, program), "exit 0");

  const cacheHome = join(root, "cache");
  const env = {
    PATH: bin,
    HOME: root,
    XDG_CACHE_HOME: cacheHome,
    DATABASE_URL: "postgres://unused",
    OPENCLAW_TEMPORAL_DOWNLOAD_URL: nowhere,
  };
  return { root, bin, env, cacheDir: join(cacheHome, "openclaw", "temporal-cli", "1.5.1") };
}

function pathOf(program: string): string {
  return spawnSync("/bin/sh", ["-c", `command -v ${program}`], { encoding: "utf8" }).stdout.trim();
}

async function writeProgram(path: string, script: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, `#!/bin/sh\n${script}\n`);
  await chmod(path, 0o755);
}

type Checkout = Awaited<ReturnType<typeof newCheckout>>;

async function runSetup({ root, env }: Checkout, more: Record<string, string | undefined> = {}, args: readonly string[] = []) {
  const child = spawn(process.execPath, [join(root, "scripts", "setup.mjs"), ...args], {
    cwd: root,
    env: { ...env, ...more },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  const [code] = (await once(child, "close")) as [number];
  const lines = output.split("\n").filter((line) => line !== "" && !line.startsWith("…"));
  return { code, lines, problems: lines.filter((line) => line.startsWith("✗")), output };
}

/** Stands for Temporal's download site. */
async function startDownloadSite(answer: (archive: Buffer) => RequestListener, version = goodVersion) {
  const directory = await newDirectory();
  await writeProgram(join(directory, "temporal"), `echo '${version}'`);
  spawnSync("tar", ["-czf", "archive.tar.gz", "temporal"], { cwd: directory });
  const asked: string[] = [];
  const listener = answer(await readFile(join(directory, "archive.tar.gz")));
  const site = createServer((request, response) => {
    asked.push(request.url ?? "");
    if (!request.url?.startsWith("/cli/")) return listener(request, response);
    response.end(JSON.stringify({ archiveUrl: `${url}/archive.tar.gz`, fileToExtract: "temporal" }));
  });
  site.listen(0, "127.0.0.1");
  await once(site, "listening");
  onTestFinished(() => void site.close());
  const url = `http://127.0.0.1:${(site.address() as AddressInfo).port}`;
  return { url, asked };
}

test("without a Temporal CLI, a network or a Go, one line says what to install", async () => {
  const checkout = await newCheckout();

  const { code, lines } = await runSetup(checkout);

  expect(code).toBe(1);
  expect(lines.filter((line) => !line.startsWith("✓"))).toHaveLength(1);
  expect(lines.join()).toMatch(/✗ The Temporal CLI is missing: install it .* or Go 1\.21 or newer .*TEMPORAL_CLI_PATH/);
});

test("with everything there it says so once, and then is silent", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);

  const first = await runSetup(checkout);
  const second = await runSetup(checkout, {}, ["--dev"]);

  expect(first).toMatchObject({ code: 0, problems: [] });
  expect(first.output).toContain("✓ Temporal CLI 1.5.1");
  expect(second).toMatchObject({ code: 0, output: "" });
});

test("a Temporal CLI that is too old is passed over with the reason, and the cached one is taken", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "temporal"), `echo '${oldVersion}'`);
  await writeProgram(join(checkout.cacheDir, "temporal"), `echo '${goodVersion}'`);

  const { code, output } = await runSetup(checkout);

  expect(code).toBe(0);
  expect(output).toMatch(/! Not using the Temporal CLI at .*bin\/temporal: it is too old/);
  expect(output).toContain("✓ Temporal CLI 1.5.1 (cache)");
});

test("a TEMPORAL_CLI_PATH that does not run is named, and a changed one is looked at again", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);
  await runSetup(checkout);

  const { code, output } = await runSetup(checkout, { TEMPORAL_CLI_PATH: "/nowhere/temporal" });

  expect(code).toBe(0);
  expect(output).toContain("! Not using the Temporal CLI at /nowhere/temporal: it does not run");
});

test("the Temporal CLI is downloaded, tried and kept outside the checkout", async () => {
  const checkout = await newCheckout();
  const site = await startDownloadSite((archive) => (_, response) => void response.end(archive));

  const { code, output } = await runSetup(checkout, { OPENCLAW_TEMPORAL_DOWNLOAD_URL: site.url });

  expect({ code, output }).toMatchObject({ code: 0, output: expect.stringContaining("✓ Temporal CLI 1.5.1 (downloaded, kept in ") });
  expect(site.asked[0]).toMatch(/^\/cli\/v1\.5\.1\?arch=(amd64|arm64)&platform=\w+&format=tar.gz$/);
  expect(await readdir(checkout.cacheDir)).toEqual(["temporal"]);
});

test("a download that breaks off, or brings something too old, is not kept", async () => {
  const checkout = await newCheckout();
  const broken = await startDownloadSite((archive) => (_, response) => {
    response.writeHead(200, { "content-length": archive.length });
    response.write(archive.subarray(0, 40), () => response.destroy());
  });
  const outdated = await startDownloadSite((archive) => (_, response) => void response.end(archive), oldVersion);

  const runs = [
    await runSetup(checkout, { OPENCLAW_TEMPORAL_DOWNLOAD_URL: broken.url }),
    await runSetup(checkout, { OPENCLAW_TEMPORAL_DOWNLOAD_URL: outdated.url }),
  ];

  for (const { code, problems } of runs) {
    expect(code).toBe(1);
    expect(problems).toEqual([expect.stringContaining("The Temporal CLI is missing")]);
  }
  expect(await readdir(checkout.cacheDir)).toEqual([]);
});

test("of two set-ups at once, one downloads and the other waits for it", async () => {
  const checkout = await newCheckout();
  const site = await startDownloadSite((archive) => (_, response) => void setTimeout(() => response.end(archive), 700));
  const more = { OPENCLAW_TEMPORAL_DOWNLOAD_URL: site.url };

  const runs = await Promise.all([runSetup(checkout, more), runSetup(checkout, more)]);

  expect(runs.map(({ code }) => code)).toEqual([0, 0]);
  expect(site.asked.filter((path) => path === "/archive.tar.gz")).toHaveLength(1);
  expect(runs.some(({ output }) => output.includes("which is getting the Temporal CLI"))).toBe(true);
});

test("what a killed set-up left, its lock and half a binary, does not stand in the way", async () => {
  const checkout = await newCheckout();
  await mkdir(join(checkout.cacheDir, "partial-abc"), { recursive: true });
  await writeFile(join(checkout.cacheDir, "partial-abc", "temporal"), "half");
  await writeFile(`${checkout.cacheDir}.lock`, JSON.stringify({ pid: process.pid, startTime: "another life" }));
  const site = await startDownloadSite((archive) => (_, response) => void response.end(archive));

  const { code } = await runSetup(checkout, { OPENCLAW_TEMPORAL_DOWNLOAD_URL: site.url });

  expect(code).toBe(0);
  expect(await readdir(checkout.cacheDir)).toEqual(["temporal"]);
  expect(existsSync(`${checkout.cacheDir}.lock`)).toBe(false);
});

test("Go builds the Temporal CLI into the cache with the toolchain it needs", async () => {
  const checkout = await newCheckout();
  await writeProgram(
    join(checkout.bin, "go"),
    `if [ "$1" = version ]; then echo 'go version go1.22.1 linux/amd64'; exit; fi
echo "$GOTOOLCHAIN $*" > "$HOME/asked"
printf '#!/bin/sh\\necho "${goodVersion}"\\n' > "$GOBIN/temporal"
/bin/chmod 755 "$GOBIN/temporal"`,
  );

  const { code, output } = await runSetup(checkout);

  expect({ code, output }).toMatchObject({ code: 0, output: expect.stringContaining("✓ Temporal CLI 1.5.1 (built with Go") });
  expect(await readFile(join(checkout.root, "asked"), "utf8")).toMatch(
    /^auto install .*github\.com\/temporalio\/cli\/cmd\/temporal@v1\.5\.1$/m,
  );
});

test("a Go that is too old is said to be", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "go"), "echo 'go version go1.19.8 linux/amd64'");

  const { problems } = await runSetup(checkout);

  expect(problems).toEqual([expect.stringContaining("the Go on PATH is 1.19")]);
});

test("a cache that cannot be written is named in one line", async () => {
  const checkout = await newCheckout();
  const file = join(checkout.root, "a-file");
  await writeFile(file, "");

  const { code, problems } = await runSetup(checkout, { XDG_CACHE_HOME: file });

  expect(code).toBe(1);
  expect(problems).toEqual([expect.stringMatching(/The cache .*a-file.* is not writable/)]);
});

test("with a Temporal cluster of one's own the CLI is needed for the tests only", async () => {
  const checkout = await newCheckout();
  const more = { TEMPORAL_ADDRESS: "temporal.example:7233" };

  expect((await runSetup(checkout, more)).code).toBe(0);
  expect((await runSetup(checkout, more, ["--dev"])).code).toBe(1);
});

test("packages are installed when they are missing or belong to another lock file, and left alone when they agree", async () => {
  const checkout = await newCheckout({ isInstalled: false });
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);

  const first = await runSetup(checkout);
  const lockfile = join(checkout.root, "package-lock.json");
  await writeFile(lockfile, (await readFile(lockfile, "utf8")).replaceAll("1.0.0", "1.0.1"));
  await writeFile(join(checkout.root, "local", "package.json"), JSON.stringify({ name: "local", version: "1.0.1" }));
  const changed = await runSetup(checkout);
  await writeFile(lockfile, `${await readFile(lockfile, "utf8")}\n`);
  const sameContent = await runSetup(checkout);

  expect(first).toMatchObject({ code: 0, output: expect.stringContaining("✓ npm packages installed") });
  expect(changed).toMatchObject({ code: 0, output: expect.stringContaining("✓ npm packages installed") });
  expect(sameContent).toMatchObject({ code: 0, output: "" });
});

test("without bubblewrap it goes on and says that tools are off and what to type", async () => {
  const checkout = await newCheckout({ programs: ["setpriv", "prlimit", "dnf"] });
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);

  const { code, lines } = await runSetup(checkout, {}, ["--dev"]);

  expect(code).toBe(0);
  expect(lines.filter((line) => line.startsWith("!"))).toEqual([
    expect.stringMatching(/bubblewrap is missing: run `(sudo )?dnf install -y bubblewrap`; tools .* are off/),
  ]);
});

test("a bubblewrap that the kernel refuses is a warning with the kernel's reason", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);
  await writeProgram(join(checkout.bin, "bwrap"), "echo 'bwrap: No permissions to create new namespace' >&2; exit 1");

  const { code, output } = await runSetup(checkout);

  expect(code).toBe(0);
  expect(output).toContain("! bubblewrap is here but may not make a sandbox (bwrap: No permissions to create new namespace)");
});

test("a platform without an embedded Postgres is told about DATABASE_URL and Docker", async () => {
  const checkout = await newCheckout();
  await writeProgram(join(checkout.bin, "temporal"), `echo '${goodVersion}'`);

  const { code, problems } = await runSetup(checkout, { DATABASE_URL: undefined });

  expect(code).toBe(1);
  expect(problems).toEqual([expect.stringMatching(/No embedded Postgres .* set DATABASE_URL .* or use Docker/)]);
});
