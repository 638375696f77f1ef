import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, inject, test } from "vitest";
import { emptyHome } from "../control-plane/control-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { missing as noSandbox } from "../sandbox/sandbox-stage.ts";
import { freshDatabase } from "../storage/fresh-database.ts";

const program = fileURLToPath(new URL("../../app/main.ts", import.meta.url));

test.skipIf(noSandbox !== undefined)(
  "sandbox.require: cgroup is not waived where no cgroup can be made",
  async () => {
    const home = emptyHome();
    const config = `
default_model: demo
providers: { demo: { kind: demo } }
models: { demo: { provider: demo, context_window: 1000, max_output_tokens: 100 } }
billing: { rate_card: { demo: { input: 1, output: 2 } } }
sandbox: { require: cgroup }
`;
    writeFileSync(join(home, "config.yaml"), config);
    const env = {
      ...process.env,
      OPENCLAW_HOME: home,
      OPENCLAW_PORT: "0",
      DATABASE_URL: await freshDatabase(),
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    };
    const uncovered = ["--dev-bind", "/", "/", "--ro-bind", "/sys/fs/cgroup", "/sys/fs/cgroup", "--"];

    const { status, stderr } = spawnSync("bwrap", [...uncovered, process.execPath, program, "start"], { env, encoding: "utf8" });

    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(
        /^openclaw: sandbox\.require is cgroup, and that cannot be had here: .*may not make one \(systemd: Delegate=yes\)\.\n$/,
      ),
    ]);
  },
  60_000,
);
