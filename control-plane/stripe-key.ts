import { AppError } from "../domain/app-error.ts";
import type { KeySource } from "./admin-config.ts";
import type { InvoiceSettings } from "./invoices.ts";

/**
 * Stripe's key. It is read where an event is sent, and nowhere else.
 * @throws {AppError} `invalid_configuration` when it is not set, or is the other mode's: what was told in one is not known in the other
 */
export function requireStripeKey({ apiKeyEnv, mode }: InvoiceSettings, variables: KeySource): string {
  const key = variables[apiKeyEnv];
  if (key === undefined || key === "") throw wrong(`${apiKeyEnv} is not set`);
  const keyMode = /^[sr]k_(live|test)_/.exec(key)?.[1];
  if (keyMode !== mode) throw wrong(`${apiKeyEnv} does not hold a secret or restricted key of the mode "${mode}" (billing.stripe.mode)`);
  return key;
}

const wrong = (says: string): AppError => new AppError("invalid_configuration", { client: { message: `Stripe cannot be told: ${says}.` } });
