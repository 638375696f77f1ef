import { randomUUID } from "node:crypto";
import type { EgressNote } from "../domain/audit.ts";
import type { EgressEvent } from "../domain/egress-event.ts";
import type { TenantId } from "../domain/tenant.ts";
import { createOwnEntries, type OwnEntriesDeps, type OwnEntry } from "./own-entries.ts";

export type EgressAudit = {
  /** Never throws and never keeps its caller waiting. */
  tell(tenantId: TenantId, event: EgressEvent): void;
  /** Writes what is not written yet, for a second or two. */
  close(): Promise<void>;
};

export type EgressAuditDeps = OwnEntriesDeps & {
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Times for tests. */
  readonly pauses?: { readonly firstMs: number; readonly betweenMs: number };
};

/** Requests of one moment are told of at once, and a tenant that goes on asking is told of every ten seconds. */
const usualPauses = { firstMs: 1_000, betweenMs: 10_000 };
/** Destinations of one tenant in one telling; what comes beyond is summed by verdict. With the pauses, what a tenant can flood its audit with. */
const maxNotes = 16;
const others = "other destinations";
const closeMs = 2_000;

type Book = {
  notes: Map<string, EgressNote>;
  /** Handed over and not confirmed: they are repeated as they are, or the audit would have them twice. */
  unsent: OwnEntry[];
  timer: NodeJS.Timeout | undefined;
  writing: Promise<void> | undefined;
  toldAtMs: number;
};

/**
 * The audit of what sandboxed code reaches and is refused: an entry per tenant, destination and verdict for all requests of a moment.
 * A destination is in the log at once; a gateway that is killed takes at most the last seconds of the audit with it.
 */
export function createEgressAudit({ log, pauses = usualPauses, ...deps }: EgressAuditDeps): EgressAudit {
  const write = createOwnEntries(deps);
  const books = new Map<TenantId, Book>();
  const closing = new AbortController();
  let isClosing = false;

  const bookOf = (tenantId: TenantId): Book => {
    const book = books.get(tenantId) ?? { notes: new Map(), unsent: [], timer: undefined, writing: undefined, toldAtMs: -Infinity };
    books.set(tenantId, book);
    return book;
  };

  const schedule = (tenantId: TenantId, book: Book): void => {
    if (isClosing || book.timer !== undefined || book.writing !== undefined) return;
    const waitMs = Math.max(pauses.firstMs, book.toldAtMs + pauses.betweenMs - performance.now());
    book.timer = setTimeout(() => void flush(tenantId, book), waitMs);
    book.timer.unref();
  };

  const flush = async (tenantId: TenantId, book: Book): Promise<void> => {
    clearTimeout(book.timer);
    book.timer = undefined;
    book.writing ??= send(tenantId, book)
      .catch((error: unknown) => log("what sandboxes asked for is not in the audit yet", { tenantId, error: String(error) }))
      .finally(() => {
        [book.writing, book.toldAtMs] = [undefined, performance.now()];
        if (book.notes.size > 0 || book.unsent.length > 0) schedule(tenantId, book);
        else if (!isClosing) forgetLater(tenantId, book);
      });
    await book.writing;
  };

  const send = async (tenantId: TenantId, book: Book): Promise<void> => {
    if (book.unsent.length === 0) {
      const notes = [...book.notes.values()];
      book.notes = new Map();
      book.unsent = notes.map((note) => ({ opId: `egress_${randomUUID()}`, by: "sandbox", command: { type: "sandbox.egress", ...note } }));
    }
    for (let entry = book.unsent[0]; entry !== undefined; entry = book.unsent[0]) {
      await write(tenantId, entry, closing.signal);
      book.unsent.shift();
    }
  };

  /** Until then its pause holds. */
  const forgetLater = (tenantId: TenantId, book: Book): void => {
    setTimeout(() => {
      if (book.notes.size === 0 && book.writing === undefined) books.delete(tenantId);
    }, pauses.betweenMs).unref();
  };

  return {
    tell(tenantId, event) {
      const book = bookOf(tenantId);
      const verdict = event.kind === "decided" ? event.verdict : "allowed";
      const own = `${verdict} ${event.target}`;
      const isOwn = book.notes.has(own) || book.notes.size < maxNotes;
      const key = isOwn ? own : `${verdict} ${others}`;
      const note = book.notes.get(key);
      if (note === undefined && event.kind === "decided")
        log("a sandbox asked for the network", { tenantId, verdict, destination: event.target, says: event.says, address: event.address });
      book.notes.set(key, {
        verdict,
        destination: isOwn ? event.target : others,
        address: (event.kind === "decided" ? event.address : note?.address) ?? null,
        count: (note?.count ?? 0) + (event.kind === "decided" ? 1 : 0),
        upBytes: (note?.upBytes ?? 0) + (event.kind === "ended" ? event.upBytes : 0),
        downBytes: (note?.downBytes ?? 0) + (event.kind === "ended" ? event.downBytes : 0),
      });
      schedule(tenantId, book);
    },
    async close() {
      isClosing = true;
      const patience = setTimeout(() => closing.abort(), closeMs);
      await Promise.all(
        [...books].map(async ([tenantId, book]) => {
          await book.writing;
          await flush(tenantId, book);
        }),
      );
      clearTimeout(patience);
      for (const [tenantId, { notes, unsent }] of books)
        if (notes.size + unsent.length > 0)
          log("what sandboxes asked for is not in the audit", { tenantId, entries: notes.size + unsent.length });
    },
  };
}
