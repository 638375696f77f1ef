import { lstat } from "node:fs/promises";
import { join } from "node:path";
import { hostname } from "node:os";
import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import {
  type OverlayFileRow,
  clearOverlayFault,
  overlayChannel,
  readOverlayFiles,
  rememberOverlayFile,
  storeOverlayFault,
  wasOverlayAccepted,
} from "../storage/overlay-repository.ts";
import { NotPlainFile, readPlainFile } from "../storage/plain-file.ts";
import { createTenantDirectory, tenantDirectory } from "../storage/tenant-paths.ts";
import type { ChangeOptions } from "./changes.ts";
import { decodeOverlay, emptyOverlayDigest, overlayMaxBytes } from "./overlay.ts";
import type { OverlayReader } from "./overlays.ts";
import { replacePrivateFile } from "./private-file.ts";

/**
 * `<home>/tenants/<tenant>/config.yaml`: the operator's editable form of the overlays. The truth is the database; each home's
 * files follow it, and an edit of a file is a change like any other. A file that was not edited and differs is behind (another
 * gateway's write, or a crash before the file was written) and is written again.
 */
export interface OverlayFiles {
  /** Compares one tenant's file with the database and settles the difference. */
  sync(tenantId: TenantId): Promise<void>;
  stop(): Promise<void>;
}

export type OverlayFilesDeps = {
  readonly database: Pick<Database, "withControl" | "listen">;
  readonly home: string;
  readonly reader: Pick<OverlayReader, "textAt" | "forget">;
  /** Makes a text the tenant's overlay. */
  readonly write: (tenantId: TenantId, text: string, options: ChangeOptions) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How often every file is looked at; default 2 s. */
  readonly intervalMs?: number;
};

const fileName = "config.yaml";
/** A file counts as written to its end when it has not changed for so long: an editor may empty it first. */
const settledMs = 300;
/** How long a start waits for the first look at the files. */
const startPatienceMs = 1_500;
const looksAtOnce = 32;

/** What a file holds: its digest, or for what is no text at all a word for it. */
type Held = { readonly digest: string; readonly text: string | undefined; readonly reason: string | undefined };
/** By which a file that has not changed is known again without reading it. */
type Signature = string;

const overlayPath = (home: string, tenantId: TenantId): string => join(tenantDirectory(home, tenantId), fileName);

export async function startOverlayFiles({
  database,
  home,
  reader,
  write,
  log,
  intervalMs = 2_000,
}: OverlayFilesDeps): Promise<OverlayFiles> {
  const file = `${hostname()}:${home}`;
  const known = new Map<TenantId, { readonly signature: Signature; readonly digest: string }>();
  const unsettled = new Map<TenantId, { readonly signature: Signature; readonly seenAtMs: number }>();
  const lookedAt = new Set<TenantId>();
  const running = new Map<TenantId, Promise<void>>();
  const timers = new Set<NodeJS.Timeout>();
  let isStopping = false;

  const remember = async (tenantId: TenantId, digest: string): Promise<void> =>
    await database.withControl(async (tx) => await rememberOverlayFile(tx, file, tenantId, digest));

  const wasAccepted = async (tenantId: TenantId, digest: string): Promise<boolean> =>
    await database.withControl(async (tx) => await wasOverlayAccepted(tx, tenantId, digest), { readOnly: true });

  const signatureOf = async (tenantId: TenantId): Promise<{ readonly signature: Signature; readonly mtimeMs: number } | undefined> => {
    try {
      const { mtimeMs, ctimeMs, size, ino, mode } = await lstat(overlayPath(home, tenantId));
      return { signature: [mtimeMs, ctimeMs, size, ino, mode].join("/"), mtimeMs };
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code === "ENOTDIR") return undefined;
      throw error;
    }
  };

  /** Whether a file may be read now; a later look is made when not. */
  const isSettled = (tenantId: TenantId, { signature, mtimeMs }: { readonly signature: Signature; readonly mtimeMs: number }): boolean => {
    const seen = unsettled.get(tenantId);
    const isOld = Date.now() - mtimeMs > settledMs || (seen?.signature === signature && performance.now() - seen.seenAtMs >= settledMs);
    if (isOld) unsettled.delete(tenantId);
    else if (seen?.signature !== signature) unsettled.set(tenantId, { signature, seenAtMs: performance.now() });
    if (!isOld) lookAgain(tenantId);
    return isOld;
  };

  const lookAgain = (tenantId: TenantId): void => {
    if (isStopping) return;
    const timer = setTimeout(() => {
      timers.delete(timer);
      void sync(tenantId);
    }, settledMs);
    timers.add(timer);
  };

  /** Settles the difference between a file and the database. */
  const look = async ({ tenantId, osUidIndex, overlay, known: handled }: OverlayFileRow): Promise<void> => {
    const isFirst = !lookedAt.has(tenantId);
    const accepted = overlay?.digest ?? emptyOverlayDigest;
    const fault = overlay?.fault?.file === file ? overlay.fault : undefined;
    const clearFault = async (): Promise<void> => {
      if (fault === undefined) return;
      await database.withControl(async (tx) => await clearOverlayFault(tx, tenantId, file));
      reader.forget(tenantId);
      log("a tenant's overlay file was mended", { tenantId });
    };
    const rewrite = async (): Promise<void> => {
      const text = await reader.textAt(tenantId, accepted);
      const { root } = createTenantDirectory(home, { tenantId, osUidIndex });
      replacePrivateFile(join(root, fileName), text);
      const written = await signatureOf(tenantId);
      if (written !== undefined) known.set(tenantId, { signature: written.signature, digest: accepted });
      await remember(tenantId, accepted);
    };

    const present = await signatureOf(tenantId);
    if (present === undefined) {
      known.delete(tenantId);
      await clearFault();
      if (overlay !== undefined && overlay.version > 0) await rewrite();
      lookedAt.add(tenantId);
      return;
    }
    const remembered = known.get(tenantId);
    let held: Held | undefined;
    let digest: string;
    if (remembered?.signature === present.signature) digest = remembered.digest;
    else {
      if (!isSettled(tenantId, present)) return;
      held = read(tenantId);
      if (held === undefined) return lookAgain(tenantId);
      digest = held.digest;
      known.set(tenantId, { signature: present.signature, digest });
    }
    if (digest === accepted) {
      await clearFault();
      if (handled !== accepted) await remember(tenantId, accepted);
    } else if (digest === handled && !(isFirst && fault !== undefined)) {
      if (fault === undefined) await rewrite();
    } else if (handled === undefined && (await wasAccepted(tenantId, digest))) {
      await rewrite(); // a home by another name, as of a new container: its file is an earlier form, not an edit
    } else {
      held ??= read(tenantId);
      if (held === undefined || held.digest !== digest) return lookAgain(tenantId);
      await take(tenantId, held, overlay);
    }
    lookedAt.add(tenantId);
  };

  const read = (tenantId: TenantId): Held | undefined => {
    try {
      const found = readPlainFile(tenantDirectory(home, tenantId), fileName, overlayMaxBytes);
      const isGrowing = found?.isCut === true && found.bytes.length < overlayMaxBytes;
      if (found === undefined || isGrowing) return undefined;
      const digest = createHash("sha256").update(found.bytes).digest("hex");
      if (found.isCut) return { digest: `longer:${digest}`, text: undefined, reason: `is larger than ${overlayMaxBytes} bytes` };
      return { digest, ...decoded(found.bytes) };
    } catch (error) {
      if (!(error instanceof NotPlainFile)) throw error;
      return { digest: `no text: ${error.message}`, text: undefined, reason: error.message };
    }
  };

  /** An operator's edit: a change of the overlay, or what stops the tenant's turns. */
  const take = async (tenantId: TenantId, { digest, text, reason }: Held, overlay: OverlayFileRow["overlay"]): Promise<void> => {
    const version = overlay?.version ?? 0;
    try {
      if (text === undefined) throw new AppError("overlay_refused", { client: { message: `overlay line 1: ${reason}` } });
      // The same edit of the same version is one change, however often and by how many processes it is met.
      const requestId = `overlay-file:${tenantId}:${version}:${digest.slice(0, 16)}`;
      await write(tenantId, text, { actor: { type: "system", id: "file" }, requestId });
      log("an edited overlay file was taken over", { tenantId, digest });
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== "overlay_refused") throw error;
      const fault = { file, digest, message: error.message, param: error.client.param ?? null };
      await database.withControl(
        async (tx) => await storeOverlayFault(tx, { tenantId, version, digest: overlay?.digest ?? emptyOverlayDigest, fault }),
      );
      reader.forget(tenantId);
      log("an overlay file is refused: its tenant's turns stop until it is mended", { tenantId, reason: error.message });
    }
    await remember(tenantId, digest);
  };

  /** One look at a time per tenant. */
  const queue = async (tenantId: TenantId, work: () => Promise<void>): Promise<void> => {
    const next = (running.get(tenantId) ?? Promise.resolve()).then(work).catch((error: unknown) => {
      log("an overlay file could not be brought in line, trying on", { tenantId, error: String(error) });
    });
    running.set(tenantId, next);
    await next;
    if (running.get(tenantId) === next) running.delete(tenantId);
  };

  const sync = async (tenantId: TenantId): Promise<void> => {
    if (isStopping) return;
    await queue(tenantId, async () => {
      const [row] = await database.withControl(async (tx) => await readOverlayFiles(tx, file, tenantId), { readOnly: true });
      if (row !== undefined) await look(row);
    });
  };

  /** Whether there is nothing to do, as far as a row tells that may be old by now. */
  const isInLine = async ({ tenantId, overlay, known: handled }: OverlayFileRow): Promise<boolean> => {
    const present = await signatureOf(tenantId);
    const fault = overlay?.fault?.file === file ? overlay.fault : undefined;
    if (present === undefined) return fault === undefined && (overlay?.version ?? 0) === 0;
    const remembered = known.get(tenantId);
    if (remembered?.signature !== present.signature || !lookedAt.has(tenantId)) return false;
    if (fault !== undefined) return fault.digest === remembered.digest;
    return remembered.digest === (overlay?.digest ?? emptyOverlayDigest) && remembered.digest === handled;
  };

  const lookAtAll = async (): Promise<void> => {
    const rows = await database.withControl(async (tx) => await readOverlayFiles(tx, file), { readOnly: true });
    const left = rows.values();
    const worker = async (): Promise<void> => {
      for (const row of left) {
        if (isStopping) return;
        if (!running.has(row.tenantId) && !(await isInLine(row))) await sync(row.tenantId);
      }
    };
    await Promise.all(Array.from({ length: looksAtOnce }, worker));
  };

  let looking: Promise<void> | undefined;
  const tick = (): Promise<void> =>
    (looking ??= lookAtAll()
      .catch((error: unknown) => log("the overlay files could not be looked at", { error: String(error) }))
      .finally(() => (looking = undefined)));
  const stopListening = await database.listen(overlayChannel, (tenant) => void sync(tenant as TenantId), {
    onReconnect: () => void tick(),
  });
  const timer = setInterval(() => void tick(), intervalMs);
  await Promise.race([tick(), new Promise((resolve) => timers.add(setTimeout(resolve, startPatienceMs)))]);

  return {
    sync,
    async stop() {
      isStopping = true;
      clearInterval(timer);
      for (const waiting of timers) clearTimeout(waiting);
      await stopListening();
      await Promise.all([looking, ...running.values()]);
    },
  };
}

function decoded(bytes: Uint8Array): { readonly text: string | undefined; readonly reason: string | undefined } {
  try {
    return { text: decodeOverlay(bytes), reason: undefined };
  } catch {
    return { text: undefined, reason: "is not UTF-8 text" };
  }
}
