import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rename, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { bundleWorkflowCode } from "@temporalio/worker";

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
    const { code } = await bundleWorkflowCode({
      workflowsPath: join(root, "workflows/index.ts"),
      workflowInterceptorModules: [join(root, "workflows/tenant-guard.ts")],
      logger: quiet,
    });
    await mkdir(cacheDirectory, { recursive: true });
    await writeFile(`${codePath}.${process.pid}`, code);
    await rename(`${codePath}.${process.pid}`, codePath);
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

const ignore = (): void => {};
const quiet = { log: ignore, trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore };
