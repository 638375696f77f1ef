import { openSync } from "node:fs";
import { join } from "node:path";
import { type Logger, pino } from "pino";
import { scrubLine } from "./log-scrubber.ts";

/** `<home>/gateway.log`: one line of JSON per entry, written at once when the process ends, scrubbed of secrets and controls. */
export function createLog(home: string): Logger {
  // Opened here and now: pino cannot flush a file that is still being opened, and a start may end at once.
  const destination = pino.destination({ dest: openSync(join(home, "gateway.log"), "a", 0o600), sync: false, minLength: 0 });
  return pino(
    { level: "info", base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime, serializers: { err: pino.stdSerializers.err } },
    {
      write: (line: string) => void destination.write(scrubLine(line)),
    },
  );
}

/** The form that the rooms below take a logger in. */
export type Log = (message: string, fields?: Record<string, unknown>) => void;

export const asLog =
  (logger: Logger): Log =>
  (message, fields = {}) =>
    logger.info(fields, message);
