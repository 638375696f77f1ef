import { z } from "zod";
import { parsePeriod } from "../../control-plane/billing-period.ts";
import type { BillingReports } from "../../control-plane/billing-reports.ts";
import { type ReadinessCheck, readinessOf } from "../health-routes.ts";
import { rpcMethod, type RpcMethod } from "./rpc-method.ts";

export type AccountMethodDeps = {
  readonly checks: Readonly<Record<string, ReadinessCheck>>;
  readonly reports: Pick<BillingReports, "usage">;
};

export const createAccountMethods = ({ checks, reports }: AccountMethodDeps): readonly RpcMethod[] => [
  rpcMethod({
    name: "health",
    params: z.strictObject({}),
    result: z.object({ status: z.enum(["ok", "unavailable"]), checks: z.record(z.string(), z.enum(["ok", "failed"])) }),
    run: async () => await readinessOf(checks),
  }),
  rpcMethod({
    name: "usage.get",
    params: z.strictObject({ period: z.string().default("current-month") }),
    /** As `GET /v1/tenants/{tenant}/usage`. */
    result: z.looseObject({ tenant: z.string(), period: z.string() }),
    run: async ({ context }, { period }) => ({ ...(await reports.usage(context.tenantId, parsePeriod(period, Date.now()))) }),
  }),
];
