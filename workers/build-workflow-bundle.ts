/** Builds the workflow bundle: `node workers/build-workflow-bundle.ts <path>`. Two that build at once write the same file. */
import { mkdir, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { bundleWorkflowCode } from "@temporalio/worker";

const root = fileURLToPath(new URL("..", import.meta.url));
const codePath = process.argv[2] ?? "";
const ignore = (): void => {};

const { code } = await bundleWorkflowCode({
  workflowsPath: join(root, "workflows/index.ts"),
  failureConverterPath: join(root, "workflows/failure-converter.ts"),
  workflowInterceptorModules: [join(root, "workflows/tenant-guard.ts")],
  logger: { log: ignore, trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore },
});
await mkdir(dirname(codePath), { recursive: true });
await writeFile(`${codePath}.${process.pid}`, code);
await rename(`${codePath}.${process.pid}`, codePath);
