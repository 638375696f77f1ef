import type { QueryResultRow } from "pg";

/** The live processes and what they serve, for operators. */
export type PlacementReport = {
  readonly processes: readonly { readonly role: string; readonly state: "live" | "draining"; readonly count: number }[];
  /** Tenants, and the system, that some worker serves now; an idle one is served by nobody. */
  readonly placements: number;
  /** Tenants whose directory is in a home that no live worker has. */
  readonly strandedTenants: number;
};

type Reader = { query<Row extends QueryResultRow>(text: string): Promise<Row[]> };

export async function readPlacementReport(reader: Reader): Promise<PlacementReport> {
  const processes = await reader.query<PlacementReport["processes"][number]>(
    `SELECT role, CASE WHEN draining THEN 'draining' ELSE 'live' END AS state, count(*)::int AS count
     FROM control.process WHERE expires_at > clock_timestamp() GROUP BY 1, 2 ORDER BY 1, 2`,
  );
  const [counts] = await reader.query<{ placements: number; stranded: number }>(
    `SELECT (SELECT count(*)::int FROM control.placement) AS placements,
       (SELECT count(*)::int FROM control.tenant WHERE state <> 'deleted' AND home_id IS NOT NULL AND NOT EXISTS (
         SELECT FROM control.process WHERE process.home_id = tenant.home_id AND role <> 'gateway' AND expires_at > clock_timestamp())) AS stranded`,
  );
  return { processes, placements: counts?.placements ?? 0, strandedTenants: counts?.stranded ?? 0 };
}
