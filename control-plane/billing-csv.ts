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
