import { AppError } from "../domain/app-error.ts";
import type { RateCardText } from "../domain/rate-card.ts";
import { rateCardShape } from "./admin-config-schema.ts";
import { issueToTell } from "./configuration-issue.ts";
import { configurationError, readConfigurationText } from "./configuration-text.ts";

/** A card of thousands of models is still smaller. */
export const rateCardMaxBytes = 1024 * 1024;

const file = "rate card";

/**
 * A rate card as somebody sends it, in YAML or JSON: `rate_card` as in `config.yaml`, or its content alone. Decimals stay the text
 * that was sent: a JSON number too is never a float here.
 * @throws {AppError} `invalid_configuration` naming line and key path
 */
export function parseRateCardRequest(text: string): RateCardText {
  const { value, lineOf } = readConfigurationText(text, { file, maxBytes: rateCardMaxBytes });
  const isWrapped = Object.hasOwn(value, "rate_card");
  const stray = isWrapped ? Object.keys(value).find((key) => key !== "rate_card") : undefined;
  if (stray !== undefined) throw configurationError(file, lineOf([stray]), [stray], "is not a known key beside rate_card");
  const above = isWrapped ? ["rate_card"] : [];
  const parsed = rateCardShape.safeParse(isWrapped ? value["rate_card"] : value);
  if (!parsed.success) {
    const { path, says } = issueToTell(parsed.error.issues);
    throw configurationError(file, lineOf([...above, ...path]), [...above, ...path], says);
  }
  return parsed.data as RateCardText;
}

/** @throws {AppError} `invalid_json` */
export function requireJson(text: string): void {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new AppError("invalid_json", {}, { cause: error });
  }
}
