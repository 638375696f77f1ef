import { auditChannel, readChain, readChainHeads, readFilePositions, storeFilePositions } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";
import { appendLines, auditFileName, auditFilePath, freeBytes, lineOf, readLines } from "./audit-file.ts";

export type AuditRelayOptions = {
  readonly database: Pick<Database, "withControl" | "listen">;
  readonly home: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How often to look although nobody called; default 1 s. */
  readonly intervalMs?: number;
};

export interface AuditRelay {
  /** Writes what is there. @returns the last entry of each chain that the file holds. @throws when it cannot */
  flush(): Promise<ReadonlyMap<string, number>>;
  /** Why changes must be refused: the file cannot follow. Undefined when all is well. */
  obstacle(): string | undefined;
  stop(): Promise<void>;
}

const entriesAtOnce = 500;
/** Below this the disk is as good as full: Postgres needs the rest. */
export const leastFreeBytes = 16 * 1024 * 1024;
/** How long the file may not be written before changes are refused. */
const patienceMs = 10_000;

/**
 * Brings every committed entry to `<home>/audit.jsonl`, in the order of its chain, with fsync. What the file holds after a crash
 * is not written again; what it is known to have held and lost is not written again either, so that `audit verify` finds the gap.
 */
export async function startAuditRelay({ database, home, log, intervalMs = 1_000 }: AuditRelayOptions): Promise<AuditRelay> {
  const path = auditFilePath(home);
  const name = auditFileName(home);
  const written = new Map(await database.withControl(async (tx) => await readFilePositions(tx, name), { readOnly: true }));
  const inFile = new Map<string, number>();
  for await (const { chain, seq } of readLines(path)) if (chain !== undefined) inFile.set(chain, Math.max(inFile.get(chain) ?? 0, seq));
  for (const [chain, seq] of written) {
    if ((inFile.get(chain) ?? 0) < seq)
      log("ALARM: audit.jsonl has lost lines that were on disk", { chain, written: seq, found: inFile.get(chain) ?? 0 });
  }
  for (const [chain, seq] of inFile) written.set(chain, Math.max(written.get(chain) ?? 0, seq));

  let trouble: { readonly sinceMs: number; readonly reason: string } | undefined;
  let running: Promise<void> = Promise.resolve();

  const writeChain = async (chain: string, endSeq: number): Promise<void> => {
    for (let seq = written.get(chain) ?? 0; seq < endSeq; seq = written.get(chain) ?? 0) {
      const entries = await database.withControl(async (tx) => await readChain(tx, chain, seq, entriesAtOnce), { readOnly: true });
      const last = entries.at(-1);
      if (last === undefined) return; // the entries are gone: verify will say so
      appendLines(path, entries.map(lineOf));
      written.set(chain, last.seq);
    }
  };

  const write = async (): Promise<void> => {
    if (freeBytes(home) < leastFreeBytes) throw new Error("the disk is nearly full");
    const heads = await database.withControl(async (tx) => await readChainHeads(tx), { readOnly: true });
    const grown = [...heads].filter(([chain, { seq }]) => seq > (written.get(chain) ?? 0));
    if (grown.length === 0) return;
    for (const [chain, { seq }] of grown) await writeChain(chain, seq);
    const positions = new Map(grown.map(([chain]) => [chain, written.get(chain) ?? 0]));
    await database.withControl(async (tx) => await storeFilePositions(tx, name, positions));
  };

  const flush = (): Promise<void> => {
    const next = running
      .catch(() => {})
      .then(write)
      .then(
        () => void (trouble = undefined),
        (error: unknown) => {
          const reason = error instanceof Error ? error.message : String(error);
          if (trouble === undefined) log("audit.jsonl cannot be written", { error: reason });
          trouble = { sinceMs: trouble?.sinceMs ?? Date.now(), reason };
          throw error;
        },
      );
    running = next;
    return next;
  };
  let isCalled = false;
  const call = (): void => {
    if (isCalled) return; // the flush that has not begun yet sees everything
    isCalled = true;
    void running
      .catch(() => {})
      .then(() => (isCalled = false))
      .then(flush)
      .catch(() => {});
  };

  const stopListening = await database.listen(auditChannel, call, { onReconnect: call });
  const timer = setInterval(call, intervalMs);
  call();
  return {
    async flush() {
      await flush();
      return new Map(written);
    },
    obstacle() {
      if (trouble === undefined) return undefined;
      const isFull = /ENOSPC|nearly full/.test(trouble.reason);
      return isFull || Date.now() - trouble.sinceMs > patienceMs
        ? `the audit file cannot be written (${isFull ? "the disk is full" : "see gateway.log"})`
        : undefined;
    },
    async stop() {
      clearInterval(timer);
      await stopListening();
      await flush().catch(() => {});
    },
  };
}
