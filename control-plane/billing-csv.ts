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
  const lineOf = (textOf: (cell: string) => string): string =>
    `concat_ws(',', ${cells.map((cell) => (texts.includes(cell) ? textOf(cell) : cell)).join(", ")}) || E'\\n'`;
  // One look tells of nearly every row that nothing in it is special.
  const isSpecial = String.raw`concat_ws(E'\x1f', ${texts.join(", ")}) ~ E'[",\r\n]|(^|\x1f)[=+@\t-]'`;
  return `case when ${isSpecial} then ${lineOf(textSql)} else ${lineOf((cell) => `coalesce(${cell}, '')`)} end`;
}

const textSql = (cell: string): string => String.raw`case
  when ${cell} ~ E'[",\r\n]' then '"' || case when ${cell} ~ E'^[=+@\t\r-]' then E'\'' else '' end || replace(${cell}, '"', '""') || '"'
  when ${cell} ~ E'^[=+@\t-]' then E'\'' || ${cell}
  else coalesce(${cell}, '') end`;
