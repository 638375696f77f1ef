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
  return `concat_ws(',', ${cells.map((cell) => (texts.includes(cell) ? textSql(cell) : cell)).join(", ")}) || E'\\n'`;
}

const [lineFeed, comma] = [10, 44];

/**
 * Whether lines that Postgres' COPY wrote, with commas between the cells, are what `csvLine` makes of the same cells: COPY marks what it
 * would break with a backslash, so without one there is no comma or line end in a cell, and what is left are quotes and formulas.
 */
export const isPlainCsv = (lines: Buffer): boolean =>
  !lines.includes("\\") && !lines.includes('"') && !["=", "+", "-", "@"].some((sign) => beginsCell(lines, sign));

function beginsCell(lines: Buffer, sign: string): boolean {
  for (let at = lines.indexOf(sign); at >= 0; at = lines.indexOf(sign, at + 1)) {
    const before = at === 0 ? lineFeed : lines[at - 1];
    if (before === comma || before === lineFeed) return true;
  }
  return false;
}

const textSql = (cell: string): string => String.raw`case
  when ${cell} ~ E'[",\r\n]' then '"' || case when ${cell} ~ E'^[=+@\t\r-]' then E'\'' else '' end || replace(${cell}, '"', '""') || '"'
  when ${cell} ~ E'^[=+@\t-]' then E'\'' || ${cell}
  else coalesce(${cell}, '') end`;
