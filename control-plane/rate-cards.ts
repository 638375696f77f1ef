import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { parseRates, type RateCard, type RateCardHash, type RateCardText, type RateText } from "../domain/rate-card.ts";
import type { ControlTx } from "../storage/database.ts";
import { canonicalJson } from "../domain/canonical-json.ts";

/**
 * The rate card of a configuration's text, named by its own content: the order of models and classes, quotes and zeros behind the
 * last decimal make no other card.
 * @throws {AppError} `invalid_rate` naming the key path of the first bad rate.
 */
export function createRateCard(text: RateCardText): RateCard {
  const rates = new Map(Object.entries(text).map(([model, rateText]) => [model, parseRates(model, rateText)]));
  const shortest = mapRates(text, (rate) => (rate.includes(".") ? rate.replace(/\.?0+$/, "") : rate));
  return { hash: hashOf(shortest), rates, text: shortest };
}

const hashOf = (text: RateCardText): RateCardHash => createHash("sha256").update(canonicalJson(text)).digest("hex") as RateCardHash;

const mapRates = (card: RateCardText, map: (rate: string) => string): RateCardText =>
  Object.fromEntries(
    Object.entries(card).map(([model, rates]) => [
      model,
      Object.fromEntries(Object.entries(rates).flatMap(([name, rate]) => (rate === undefined ? [] : [[name, map(rate)]]))) as RateText,
    ]),
  );

/** Keeps the card for ever; a card that is known keeps the moment it was first seen. @returns whether it is new. */
export async function storeRateCard(tx: ControlTx, card: RateCard): Promise<boolean> {
  const stored = await tx.execute("insert into control.rate_card (hash, body) values ($1, $2) on conflict (hash) do nothing", [
    card.hash,
    JSON.stringify(card.text),
  ]);
  return stored === 1;
}

/**
 * The card that a billing row was priced with.
 * @throws {AppError} `internal` when it is not stored, or when what is stored has another hash.
 */
export async function loadRateCard(tx: ControlTx, hash: string): Promise<RateCard> {
  const [row] = await tx.query<{ body: RateCardText }>("select body from control.rate_card where hash = $1", [hash]);
  if (row === undefined) throw new AppError("internal", { reason: "the rate card is not stored", hash });
  const found = hashOf(row.body);
  if (found !== hash) throw new AppError("internal", { reason: "the stored rate card was changed", hash, found });
  return { ...createRateCard(row.body), hash: found }; // earlier versions kept the zeros behind the last decimal
}
