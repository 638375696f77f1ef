import { AppError } from "../domain/app-error.ts";
import type { Command } from "../domain/audit.ts";
import type { MarkupPpm } from "../domain/money.ts";
import type { RateCard } from "../domain/rate-card.ts";
import type { ControlTx } from "../storage/database.ts";
import { storeRateCard } from "./rate-cards.ts";

/** What calls are priced with, beside a tenant's own markup. */
export type PriceTerms = { readonly hash: string; readonly markupPpm: number };

/** A write that was noted longer ago is nobody's but its own gateway's. */
export const intendedSeconds = 60;

/** The channel that tells every process to look at its `config.yaml`. */
export const rateCardChannel = "openclaw_rate_card";

export const haveSameTerms = (a: PriceTerms, b: PriceTerms): boolean => a.hash === b.hash && a.markupPpm === b.markupPpm;

/** Of the first start on a database there is no change to tell: what its file says is in force. */
export async function beginInForce(tx: ControlTx, card: RateCard, markupPpm: MarkupPpm): Promise<void> {
  await storeRateCard(tx, card);
  await tx.execute("insert into control.rate_card_in_force (hash, markup_ppm) values ($1, $2) on conflict do nothing", [
    card.hash,
    markupPpm,
  ]);
}

/** The terms of the last audited change of them. */
export async function readInForce(tx: ControlTx): Promise<PriceTerms> {
  const [row] = await tx.query<{ hash: string; markup_ppm: bigint }>("select hash, markup_ppm from control.rate_card_in_force");
  if (row === undefined) throw new AppError("internal", { reason: "no rate card is in force" });
  return { hash: row.hash, markupPpm: Number(row.markup_ppm) };
}

/**
 * The terms in force, and whether a gateway is about to write them into a file that still holds `fileHash`. One statement, so that
 * both are of one moment.
 */
export async function readInForceBeside(
  tx: ControlTx,
  fileHash: string,
): Promise<PriceTerms & { readonly version: number; readonly isBeingWritten: boolean }> {
  const [row] = await tx.query<{ version: bigint; hash: string; markup_ppm: bigint; being_written: boolean }>(
    `select version, hash, markup_ppm,
            exists (select from control.rate_card_write write where write.hash = standing.hash and write.from_hash = $1
                    and write.created_at > now() - interval '${intendedSeconds} seconds') as being_written
     from control.rate_card_in_force standing`,
    [fileHash],
  );
  if (row === undefined) throw new AppError("internal", { reason: "no rate card is in force" });
  return { version: Number(row.version), hash: row.hash, markupPpm: Number(row.markup_ppm), isBeingWritten: row.being_written };
}

/** Since when a card may price calls: its last change, or where another one is in force elsewhere, when it was first seen. */
export async function readValidFrom(tx: ControlTx, hash: string): Promise<Date | undefined> {
  const [row] = await tx.query<{ at: Date | null }>(
    `select coalesce((select changed_at from control.rate_card_in_force where hash = $1),
                     (select valid_from from control.rate_card where hash = $1)) as at`,
    [hash],
  );
  return row?.at ?? undefined;
}

/** @throws {AppError} `conflict` when the card is not stored */
export async function putCardInForce(
  tx: ControlTx,
  { hash, markupPpm }: Extract<Command, { readonly type: "rate-card.update" }>,
): Promise<void> {
  if ((await tx.query("select from control.rate_card where hash = $1", [hash])).length === 0)
    throw new AppError("conflict", { client: { message: "The rate card's text is not kept: send it again." } });
  await tx.execute(
    `insert into control.rate_card_in_force as standing (hash, markup_ppm) values ($1, coalesce($2, 0))
     on conflict (only_row) do update set version = standing.version + 1, hash = excluded.hash,
       markup_ppm = coalesce($2, standing.markup_ppm), changed_at = clock_timestamp()`,
    [hash, markupPpm ?? null],
  );
  await tx.query("select pg_notify($1, '')", [rateCardChannel]);
}

/** A file that is about to be written, or was when its gateway died. */
export type IntendedWrite = { readonly hash: string; readonly fromHash: string; readonly ageMs: number };

export async function intendWrite(tx: ControlTx, place: string, { hash, fromHash }: Omit<IntendedWrite, "ageMs">): Promise<void> {
  await tx.execute(
    `insert into control.rate_card_write (place, hash, from_hash) values ($1, $2, $3)
     on conflict (place) do update set hash = excluded.hash, from_hash = excluded.from_hash, created_at = now()`,
    [place, hash, fromHash],
  );
}

export async function readIntendedWrite(tx: ControlTx, place: string): Promise<IntendedWrite | undefined> {
  const [row] = await tx.query<IntendedWrite>(
    `select hash, from_hash as "fromHash", (extract(epoch from now() - created_at) * 1000)::float8 as "ageMs"
     from control.rate_card_write where place = $1`,
    [place],
  );
  return row;
}

export async function endIntendedWrite(tx: ControlTx, place: string): Promise<void> {
  await tx.execute("delete from control.rate_card_write where place = $1", [place]);
}
