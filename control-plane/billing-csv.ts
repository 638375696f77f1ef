/** CSV as contract §6 fixes it: UTF-8 without BOM, LF line ends, a header always, cells that no spreadsheet runs. */

export type CsvCell = string | number | bigint | boolean | null;

/** One line with its LF. Text that starts with `= + - @`, tab or CR gets a `'` in front, so that it stays text. */
export const csvLine = (cells: readonly CsvCell[]): string => `${cells.map(csvCell).join(",")}\n`;

function csvCell(cell: CsvCell): string {
  if (cell === null) return "";
  if (typeof cell !== "string") return String(cell);
  const neutral = /^[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell;
  return /[",\r\n]/.test(neutral) ? `"${neutral.replaceAll('"', '""')}"` : neutral;
}

/**
 * A line as SQL, to the byte what `csvLine` makes of the same values. `texts` names the cells that hold free text, NULL among them; the
 * others are never NULL and never need quotes.
 */
export function csvLineSql(cells: readonly string[], texts: readonly string[]): string {
  return lineSql(cells.map((cell) => (texts.includes(cell) ? textSql(cell) : cell)));
}

/** The same where nothing in the texts needs care, which nobody looked at: `isPlainCsv` must. */
export const plainCsvLineSql = (cells: readonly string[], texts: readonly string[]): string =>
  lineSql(cells.map((cell) => (texts.includes(cell) ? `coalesce(${cell}, '')` : cell)));

const lineSql = (cells: readonly string[]): string => `concat_ws(',', ${cells.join(", ")}) || E'\\n'`;

/**
 * Whether lines that `plainCsvLineSql` made are what `csvLineSql` would have made. As many line ends as rows: no text holds one. Then as
 * many commas as these rows have: no text holds one either. And nothing that would be quoted, and no cell that begins a formula.
 */
export const isPlainCsv = (text: string, { rows, columns }: { readonly rows: number; readonly columns: number }): boolean =>
  countOf(text, "\n") === rows && countOf(text, ",") === rows * (columns - 1) && !/["\r]|(?:^|[,\n])[=+\-@\t]/.test(text);

function countOf(text: string, character: string): number {
  let count = 0;
  for (let at = text.indexOf(character); at >= 0; at = text.indexOf(character, at + 1)) count++;
  return count;
}

const textSql = (cell: string): string => String.raw`case
  when ${cell} ~ E'[",\r\n]' then '"' || case when ${cell} ~ E'^[=+@\t\r-]' then E'\'' else '' end || replace(${cell}, '"', '""') || '"'
  when ${cell} ~ E'^[=+@\t-]' then E'\'' || ${cell}
  else coalesce(${cell}, '') end`;
