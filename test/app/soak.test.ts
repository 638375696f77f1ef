import { chmodSync, mkdtempSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { soak } from "../../bench/soak-run.ts";

const seconds = 60;
const turnsPerSecond = 15;
/** Of a run; the server warns at 10,240 and refuses at 51,200. */
const mostEvents = 10_000;

// An hour of it at half load is `node bench/soak.ts`. V8 has a heap in which a leak of some kilobytes a turn would show as its end.
test(
  "a minute of steady load: every turn has its answer, one model call and one billing row, and histories stay short",
  { timeout: 180_000 },
  async () => {
    const home = mkdtempSync(join(realpathSync(tmpdir()), "openclaw-soak-"));
    chmodSync(home, 0o711); // Postgres runs as another user and has to reach its directory
    onTestFinished(() => rmSync(home, { recursive: true, force: true }));

    const result = await soak({ home, seconds, turnsPerSecond, tenants: 10, heapMb: 192, onSample() {} });

    expect(result.failures).toEqual([]);
    expect(result.turns).toBe(seconds * turnsPerSecond);
    expect([result.providerCalls, result.billingRows]).toEqual([result.turns, result.turns]);
    expect(result.longestHistory.events).toBeLessThan(mostEvents);
  },
);
