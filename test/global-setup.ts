import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { defineSearchAttributeKey } from "@temporalio/common";
import { TestWorkflowEnvironment } from "@temporalio/testing";
import { DefaultLogger, Runtime } from "@temporalio/worker";
import type { TestProject } from "vitest/node";
import { searchAttributeTypes } from "../domain/search-attributes.ts";
import { startEmbeddedPostgres } from "../storage/embedded-postgres.ts";
import { dynamicConfig } from "../temporal-dev/server-settings.ts";
import { findTemporalBinary } from "../temporal-dev/temporal-binary.mjs";
import { workflowBundle } from "../workers/workflow-bundle.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** Of the owner of the run's one Postgres. */
    postgresUrl: string;
    temporalAddress: string;
    /** Where the run's one workflow bundle is kept. */
    bundleDirectory: string;
  }
}

const attributeTypes = { Keyword: "KEYWORD", KeywordList: "KEYWORD_LIST" } as const;

/** One Postgres, one Temporal server and one workflow bundle for the whole run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const home = mkdtempSync(join(tmpdir(), "openclaw-tests-"));
  chmodSync(home, 0o711);
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  const [postgres, temporal] = await Promise.all([
    startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: () => undefined }),
    startTemporal(),
    workflowBundle(join(home, "bundle")),
  ]);
  project.provide("postgresUrl", postgres.ownerUrl);
  project.provide("temporalAddress", temporal.address);
  project.provide("bundleDirectory", join(home, "bundle"));
  return async () => {
    await Promise.all([postgres.stop(), temporal.teardown()]);
    rmSync(home, { recursive: true, force: true });
  };
}

async function startTemporal(): Promise<TestWorkflowEnvironment> {
  const binary = findTemporalBinary({ env: process.env });
  if (binary === undefined) throw new Error("no Temporal CLI: run `node scripts/setup.mjs --dev`");
  return await TestWorkflowEnvironment.createLocal({
    server: {
      executable: { type: "existing-path", path: binary.path },
      log: { format: "json", level: "never" },
      searchAttributes: Object.entries(searchAttributeTypes).map(([name, type]) => defineSearchAttributeKey(name, attributeTypes[type])),
      extraArgs: Object.entries(dynamicConfig).flatMap(([key, value]) => ["--dynamic-config-value", `${key}=${JSON.stringify(value)}`]),
    },
  });
}
