import type { Finding } from "../control-plane/doctor-finding.ts";
import type { PlacementReport } from "../storage/placement-report.ts";

/** The live processes of the database, and whether each tenant has a worker that may serve it. */
export function checkProcesses({ processes, placements, strandedTenants }: PlacementReport): Finding {
  const check = "processes";
  if (processes.length === 0) return { check, state: "ok", says: "none runs on this database" };
  const live = processes.map(({ role, state, count }) => `${count} ${role}${state === "draining" ? " (draining)" : ""}`).join(", ");
  const says = `${live}; ${placements} tenants and system queues served now`;
  if (strandedTenants === 0) return { check, state: "ok", says };
  return {
    check,
    state: "failed",
    says: `${says}; the directories of ${strandedTenants} tenants are in a home that no live worker has`,
    mend: "start a worker on that home, or mount its volume where the workers run (docs/scaling.md)",
  };
}
