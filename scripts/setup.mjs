/**
 * Makes this checkout ready to run: npm packages, Node, Temporal, Postgres, sandbox. Runs before `npm start` and, with `--dev`,
 * before `npm test`. Plain JavaScript without dependencies, because it runs first and on the system's own Node (20 or newer).
 * A run with nothing to do prints nothing and costs less than 300 ms.
 */
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { prepareBubblewrap } from "./setup/bubblewrap.mjs";
import { prepareNode, preparePackages } from "./setup/packages.mjs";
import { preparePostgres } from "./setup/postgres.mjs";
import { Report } from "./setup/report.mjs";
import { Stamp } from "./setup/stamp.mjs";
import { prepareTemporalCli } from "./setup/temporal-cli.mjs";

const minBootstrapNode = 20;

const isDev = process.argv.includes("--dev");
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const report = new Report();
const { env } = process;

if (Number(process.versions.node.split(".")[0]) < minBootstrapNode) {
  report.problem(`Node ${process.versions.node} is too old: install Node ${minBootstrapNode} or newer.`);
} else {
  const stamp = new Stamp(root);
  const setup = { root, env, report, stamp };
  if (await preparePackages(setup)) {
    await prepareNode(setup);
    // With a cluster of one's own only the tests need a Temporal here.
    if (isDev || !env["TEMPORAL_ADDRESS"]) await prepareTemporalCli(setup);
    await preparePostgres(setup);
    await prepareBubblewrap(setup);
  }
  stamp.save();
}
process.exitCode = report.problems > 0 ? 1 : 0;
