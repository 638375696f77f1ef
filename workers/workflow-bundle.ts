import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { promisify } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));

/**
 * The workflow bundle, built once per state of the sources and kept in `cacheDirectory`: bundling costs seconds, reading it a
 * few milliseconds. The same bundle serves every Worker of the process.
 * @returns the path of the bundle and its build id
 */
export async function workflowBundle(cacheDirectory: string): Promise<{ codePath: string; buildId: string }> {
  const buildId = await sourceDigest();
  const codePath = join(cacheDirectory, `workflows-${buildId}.js`);
  const isBuilt = await readFile(codePath).then(
    () => true,
    () => false,
  );
  if (!isBuilt) {
    // In a process of its own: the bundler's 100 MB would stay with ours for its whole life.
    await promisify(execFile)(process.execPath, [fileURLToPath(new URL("build-workflow-bundle.ts", import.meta.url)), codePath]);
  }
  return { codePath, buildId };
}

/** Digest of all that the bundle is made from: our workflow and domain sources and the SDK's version. */
async function sourceDigest(): Promise<string> {
  const hash = createHash("sha256").update(createRequire(import.meta.url)("@temporalio/workflow/package.json").version);
  for (const folder of ["workflows", "domain"]) {
    for (const name of (await readdir(join(root, folder))).filter((file) => file.endsWith(".ts")).sort()) {
      hash.update(`${folder}/${name}\0`).update(await readFile(join(root, folder, name)));
    }
  }
  return hash.digest("hex").slice(0, 16);
}
