/**
 * A token count of a provider: null where it says nothing, `NaN` where what it says is not a count (contract §6: only
 * non-negative integers up to `most` are billed as given). A `NaN` spoils every sum it enters, so one look at the end is enough.
 */
export function readCount(value: unknown, most: number): number | null {
  if (value === undefined || value === null) return null;
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value <= most ? value : Number.NaN;
}
