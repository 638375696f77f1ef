import { type NanoUsd, parseUsdAmount } from "../domain/money.ts";
import type { ControlTx } from "../storage/database.ts";
import { recordPlatformFee } from "../storage/platform-fee-repository.ts";
import type { AdminConfig } from "./admin-config.ts";

/** Makes the configured fee the one of months that fall due from today on. */
export async function storePlatformFee(tx: ControlTx, { platformFeeUsdPerMonth = "0" }: AdminConfig["billing"]): Promise<void> {
  await recordPlatformFee(tx, feeOf(platformFeeUsdPerMonth));
}

const feeOf = (text: string): NanoUsd => parseUsdAmount(text, "billing.platform_fee_usd_per_month");
