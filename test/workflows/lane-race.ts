/** Lanes that close after 50 ms and move after 7 turns: far livelier than in production, so that every seam is met often. */
export const raceLane = { windowMs: 50, turnsPerRun: 7 } as const;
