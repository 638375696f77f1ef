import { z } from "zod";

/** What `doctor` found out about one thing that a gateway needs. `warning`: works, but somebody should look. */
const findingSchema = z.strictObject({
  check: z.string(),
  state: z.enum(["ok", "warning", "failed"]),
  says: z.string(),
  /** What to do about it: a command or a sentence. */
  mend: z.string().optional(),
});
export type Finding = z.infer<typeof findingSchema>;

/** Another machine's clock, as it was read over the network. */
const clockReadingSchema = z.strictObject({
  /** Whose clock. */
  of: z.string(),
  /** How far it is ahead of ours; negative: behind. */
  aheadMs: z.number(),
  /** What the reading may be wrong by: its resolution and the time that the answer took. */
  uncertainMs: z.number(),
});
export type ClockReading = z.infer<typeof clockReadingSchema>;

/** What `app/host-report.ts` prints. */
export const hostReportSchema = z.strictObject({ findings: z.array(findingSchema), clocks: z.array(clockReadingSchema) });
export type HostReport = z.infer<typeof hostReportSchema>;

/** What one check found out; some ask another machine and read its clock by the way. */
export type Checked = { readonly finding: Finding; readonly clock?: ClockReading };

type ClockAnswer = { readonly atMs: number; readonly askedAtMs: number; readonly answeredAtMs: number };

/** @param resolutionMs how coarse the other clock was told, to either side */
export function readingOf(of: string, { atMs, askedAtMs, answeredAtMs }: ClockAnswer, resolutionMs: number): ClockReading {
  const halfway = (askedAtMs + answeredAtMs) / 2;
  return { of, aheadMs: Math.round(atMs - halfway), uncertainMs: Math.ceil(resolutionMs + (answeredAtMs - askedAtMs) / 2) };
}

export const oneLine = (text: string): string => text.replaceAll(/\s+/g, " ").trim().slice(0, 300);
