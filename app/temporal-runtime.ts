import { type MetricsBuffer, makeTelemetryFilterString, Runtime, type LogEntry } from "@temporalio/worker";
import type { Log } from "./log.ts";

/** The SDK's own runtime: its log goes into ours, and it leaves the process's signals alone (it would stop Workers and never exit). */
export function installTemporalRuntime(log: Log, metrics?: MetricsBuffer): void {
  const write = (level: string) => (message: string, meta?: Record<string, unknown>) =>
    log(`temporal: ${message}`, { level, ...readable(meta) });
  const drop = (): void => {};
  Runtime.install({
    shutdownSignals: [],
    logger: {
      log: (level, message, meta) => (level === "WARN" || level === "ERROR" ? write(level)(message, meta) : undefined),
      trace: drop,
      debug: drop,
      info: drop,
      warn: write("WARN"),
      error: write("ERROR"),
    },
    telemetryOptions: {
      logging: { forward: {}, filter: makeTelemetryFilterString({ core: "WARN", other: "ERROR" }) },
      ...(metrics === undefined ? {} : { metrics: { buffer: metrics } }),
    },
  });
}

function readable(meta: LogEntry["meta"]): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(meta ?? {}).map(([key, value]) => [
      key,
      value instanceof Error ? value.message : typeof value === "bigint" ? String(value) : value,
    ]),
  );
}
