import { z } from "zod";
import { parsePeriod } from "../../control-plane/billing-period.ts";
import type { BillingReports } from "../../control-plane/billing-reports.ts";
import type { Overlays } from "../../control-plane/overlays.ts";
import type { Tenants } from "../../control-plane/tenants.ts";
import { quotaFieldsOf } from "../../domain/tenant-quota.ts";
import { type ReadinessCheck, readinessOf } from "../health-routes.ts";
import { rpcMethod, type RpcMethod } from "./rpc-method.ts";

export type AccountMethodDeps = {
  readonly checks: Readonly<Record<string, ReadinessCheck>>;
  readonly reports: Pick<BillingReports, "usage">;
  readonly tenants: Pick<Tenants, "get">;
  readonly overlays: Pick<Overlays, "textOf" | "write">;
};

export const createAccountMethods = ({ checks, reports, tenants, overlays }: AccountMethodDeps): readonly RpcMethod[] => [
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
  rpcMethod({
    name: "quota.get",
    params: z.strictObject({}),
    /** As `GET /v1/tenants/{tenant}/quota`. */
    result: z.object({
      tokens_per_day: z.number().nullable(),
      cost_per_day_usd: z.string().nullable(),
      requests_per_minute: z.number().nullable(),
    }),
    run: async ({ context }) => quotaFieldsOf((await tenants.get(context.tenantId)).quota),
  }),
  rpcMethod({
    name: "config.get",
    params: z.strictObject({}),
    /** The overlay's own text: what the administrator configured is not in it. `fault`: why turns are refused, or null. */
    result: z.object({ text: z.string(), fault: z.string().nullable() }),
    run: async ({ context }) => {
      const { text, fault } = await overlays.textOf(context.tenantId);
      return { text, fault: fault ?? null };
    },
  }),
  rpcMethod({
    name: "config.set",
    params: z.strictObject({ text: z.string() }),
    result: z.object({ text: z.string() }),
    run: async ({ context, actor, idempotencyKey }, { text }) => {
      const idempotency = idempotencyKey === undefined ? undefined : { key: idempotencyKey, request: ["config.set", text] };
      await overlays.write(context.tenantId, text, { actor, requestId: context.requestId, idempotency });
      return { text };
    },
  }),
];
