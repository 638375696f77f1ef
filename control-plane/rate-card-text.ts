import { AppError } from "../domain/app-error.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import type { RateCardText, RateText } from "../domain/rate-card.ts";
import { adminConfigMaxBytes, parseAdminConfig } from "./admin-config.ts";
import { type ConfigurationPlace, type ConfigurationText, type KeyPath, readConfigurationText } from "./configuration-text.ts";
import { createRateCard } from "./rate-cards.ts";

const cardPath = ["billing", "rate_card"] as const;
const readOptions = { file: "config.yaml", maxBytes: adminConfigMaxBytes };

type Edit = { readonly start: number; readonly end: number; readonly text: string };

/**
 * `config.yaml` with another rate card: what is not of `billing.rate_card` keeps every byte, and so does every line of a model
 * whose rates stay.
 * @throws {AppError} `conflict` where the text cannot be rewritten like that; `invalid_configuration` when it is not valid before
 */
export function withRateCard(text: string, card: RateCardText): string {
  const { rateCard } = parseAdminConfig(text);
  const wanted = createRateCard(card);
  if (rateCard.hash === wanted.hash) return text;
  const source = readConfigurationText(text, readOptions);
  const edits = editsFor(text, source, { from: rateCard.text, to: wanted.text });
  const rewritten = edits
    .toSorted((a, b) => b.start - a.start)
    .reduce((whole, { start, end, text: put }) => whole.slice(0, start) + put + whole.slice(end), text);
  if (!isTheSameBut(rewritten, text, wanted.hash)) throw unwritable();
  return rewritten;
}

const unwritable = (): AppError =>
  new AppError("conflict", {
    client: {
      message:
        "The rate card is written in config.yaml in a way that cannot be changed in place. Edit the file, or write one line per model, " +
        "as in a new home's config.yaml.",
    },
  });

/** The proof of every rewrite: another card, and nothing else that a reader of the file could tell. */
function isTheSameBut(rewritten: string, text: string, hash: string): boolean {
  try {
    return parseAdminConfig(rewritten).rateCard.hash === hash && restOf(rewritten) === restOf(text);
  } catch (error) {
    if (error instanceof AppError) return false;
    throw error;
  }
}

function restOf(text: string): string {
  const { billing, ...rest } = readConfigurationText(text, readOptions).value;
  const { rate_card: _card, ...others } = (billing ?? {}) as { readonly [key: string]: unknown };
  return canonicalJson({ ...rest, ...(Object.keys(others).length === 0 ? {} : { billing: others }) });
}

function editsFor(
  text: string,
  { placeOf }: ConfigurationText,
  { from, to }: { readonly from: RateCardText; readonly to: RateCardText },
): readonly Edit[] {
  const card = placeOf(cardPath);
  const eol = text.includes("\r\n") ? "\r\n" : "\n";
  if (card?.style === "block") return entryEdits(text, { card, placeOf, eol, from, to });
  const billing = placeOf(["billing"]);
  if (card !== undefined && billing?.style === "block") {
    const indent = indentOf(text, card) + indentStep;
    return [{ start: colonAfter(text, card.keyEnd) + 1, end: card.end, text: `${eol}${linesOf(to, indent).join(eol)}` }];
  }
  if (card !== undefined) return [{ start: card.start, end: card.end, text: flowCard(to) }];
  if (billing === undefined) return [insertion(text, placeOf([]), { key: "billing", eol, to, isCardItself: false })];
  return [insertion(text, billing, { key: "rate_card", eol, to, isCardItself: true, indent: indentStep + indentOf(text, billing) })];
}

const indentStep = "  ";

/** A mapping gets one more key: at its end, or where it stands in braces, behind the opening one. */
function insertion(
  text: string,
  mapping: ConfigurationPlace | undefined,
  {
    key,
    eol,
    to,
    isCardItself,
    indent = "",
  }: { readonly key: string; readonly eol: string; readonly to: RateCardText; readonly isCardItself: boolean; readonly indent?: string },
): Edit {
  if (mapping === undefined) throw unwritable();
  if (mapping.style === "flow") {
    const value = isCardItself ? flowCard(to) : `{ "rate_card": ${flowCard(to)} }`;
    const isEmpty = /^\{\s*\}$/.test(text.slice(mapping.start, mapping.end));
    return { start: mapping.start + 1, end: mapping.start + 1, text: ` ${JSON.stringify(key)}: ${value}${isEmpty ? " " : ","}` };
  }
  const inner = isCardItself ? ownIndentOf(text, mapping, indent) : indent;
  const below = inner + indentStep;
  const lines = isCardItself
    ? [`${inner}rate_card:`, ...linesOf(to, below)]
    : [`${inner}billing:`, `${below}rate_card:`, ...linesOf(to, below + indentStep)];
  return linesBehind(text, mapping.end, lines, eol);
}

/** Model by model: what stays is left alone, what goes takes its line with it, what is new comes last. */
function entryEdits(
  text: string,
  {
    card,
    placeOf,
    eol,
    from,
    to,
  }: {
    readonly card: ConfigurationPlace;
    readonly placeOf: (path: KeyPath) => ConfigurationPlace | undefined;
    readonly eol: string;
    readonly from: RateCardText;
    readonly to: RateCardText;
  },
): readonly Edit[] {
  const edits: Edit[] = [];
  const wantedRates = new Map(Object.entries(to));
  let indent = "";
  for (const [model, rates] of Object.entries(from)) {
    const entry = placeOf([...cardPath, model]);
    if (entry === undefined) throw unwritable();
    indent = indentOf(text, entry);
    const wanted = wantedRates.get(model);
    if (wanted === undefined) edits.push({ start: lineStart(text, entry.keyStart), end: lineEnd(text, entry.end), text: "" });
    else if (canonicalJson(wanted) !== canonicalJson(rates))
      edits.push({ start: colonAfter(text, entry.keyEnd) + 1, end: entry.end, text: ` ${flowRates(wanted)}` });
  }
  if (wantedRates.size === 0) return [{ start: colonAfter(text, card.keyEnd) + 1, end: card.end, text: " {}" }];
  const added = Object.fromEntries(Object.entries(to).filter(([model]) => !Object.hasOwn(from, model)));
  return Object.keys(added).length === 0 ? edits : [linesBehind(text, card.end, linesOf(added, indent), eol), ...edits];
}

const linesOf = (card: RateCardText, indent: string): readonly string[] =>
  Object.entries(card).map(([model, rates]) => `${indent}${keyText(model)}: ${flowRates(rates)}`);

const flowRates = (rates: RateText): string =>
  `{ ${Object.entries(rates)
    .map(([name, rate]) => `${name}: ${rate}`)
    .join(", ")} }`;

/** As JSON, which is YAML too: it may stand in a file that is JSON altogether. */
const flowCard = (card: RateCardText): string =>
  `{ ${Object.entries(card)
    .map(([model, rates]) => {
      const pairs = Object.entries(rates).map(([name, rate]) => `"${name}": ${rate}`);
      return `${JSON.stringify(model)}: { ${pairs.join(", ")} }`;
    })
    .join(", ")} }`;

/** In quotes wherever it could be taken for something else. */
const keyText = (model: string): string =>
  /^[A-Za-z][A-Za-z0-9_./-]*$/.test(model) && !/^null$/i.test(model) ? model : JSON.stringify(model);

const lineStart = (text: string, offset: number): number => text.lastIndexOf("\n", offset - 1) + 1;

/** Behind the line break of the line that holds the character before `offset`. */
function lineEnd(text: string, offset: number): number {
  const at = text.indexOf("\n", Math.max(0, offset - 1));
  return at < 0 ? text.length : at + 1;
}

function linesBehind(text: string, offset: number, lines: readonly string[], eol: string): Edit {
  const at = lineEnd(text, offset);
  const isCut = at > 0 && text[at - 1] !== "\n";
  return { start: at, end: at, text: isCut ? eol + lines.join(eol) : lines.join(eol) + eol };
}

/** @throws {AppError} `conflict` unless the key is the first thing on its line */
function indentOf(text: string, { keyStart }: ConfigurationPlace): string {
  const before = text.slice(lineStart(text, keyStart), keyStart);
  if (!/^\ufeff?[ ]*$/.test(before)) throw unwritable();
  return before.replace("\ufeff", "");
}

/** How far the keys of a block mapping stand in. */
function ownIndentOf(text: string, { start }: ConfigurationPlace, otherwise: string): string {
  const before = text.slice(lineStart(text, start), start);
  return /^[ ]*$/.test(before) ? before : otherwise;
}

function colonAfter(text: string, keyEnd: number): number {
  const [spaces = ""] = /^[ \t]*/.exec(text.slice(keyEnd)) ?? [];
  const at = keyEnd + spaces.length;
  if (text[at] !== ":") throw unwritable();
  return at;
}
