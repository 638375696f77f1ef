import { join } from "node:path";
import { type Logger, pino } from "pino";

/** Secrets in the shapes that they have: our credentials, providers' keys, bearer headers. The first hex digits of no token are shown. */
const secretPattern =
  /\b(tk_[a-z0-9-]{1,32}|ak_[a-z0-9]{1,16})_[0-9a-f]{32}\b|\bsk-[A-Za-z0-9_-]{16,}|(?<=[Bb]earer\s)[^\s"']+|(?<=:\/\/[^:@/\s]*:)[^@/\s]+(?=@)/g;

const scrub = (text: string): string =>
  text.replaceAll(secretPattern, (_match, prefix: string | undefined) => (prefix === undefined ? "[redacted]" : `${prefix}_…`));

/** `<home>/gateway.log`: one line of JSON per entry, written at once when the process ends, with every secret scrubbed from the line. */
export function createLog(home: string): Logger {
  const destination = pino.destination({ dest: join(home, "gateway.log"), append: true, sync: false, minLength: 0, mkdir: true });
  return pino(
    { level: "info", base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime, serializers: { err: pino.stdSerializers.err } },
    {
      write: (line: string) => void destination.write(scrub(line)),
    },
  );
}

/** The form that the rooms below take a logger in. */
export type Log = (message: string, fields?: Record<string, unknown>) => void;

export const asLog =
  (logger: Logger): Log =>
  (message, fields = {}) =>
    logger.info(fields, message);
