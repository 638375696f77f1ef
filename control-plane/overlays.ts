import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import type { FieldEncryption, FieldPlace } from "../storage/field-encryption.ts";
import { type OverlayRow, overlayChannel, readOverlay, readOverlayText, storeOverlayText } from "../storage/overlay-repository.ts";
import type { ChangeOptions, Changes } from "./changes.ts";
import { type Overlay, type OverlayGround, decodeOverlay, digestOfOverlay, emptyOverlayDigest, parseOverlay } from "./overlay.ts";

/** The overlay that a turn uses from its admission to its end: the digest stands in the turn's row. */
export type OverlayInForce = { readonly digest: string; readonly overlay: Overlay };

export type OverlayText = {
  /** The last accepted text, as it was given; empty where there never was one. */
  readonly text: string;
  readonly digest: string;
  /** 0 where there never was one. */
  readonly version: number;
  /** Why the tenant's turns are refused although this text was accepted: the file was edited, or the administrator's configuration. */
  readonly fault: string | undefined;
};

/** What tenants have laid over the administrator's configuration. Answers from memory; a change anywhere is seen here at once. */
export interface OverlayReader {
  /** For a turn that begins. @throws {AppError} `overlay_refused` with the key path and line while the tenant's overlay cannot be used */
  of(tenantId: TenantId): Promise<OverlayInForce>;
  /** For a turn that began under it. @throws {AppError} `overlay_refused` */
  at(tenantId: TenantId, digest: string): Promise<Overlay>;
  /** The text that a digest stands for. @throws {AppError} `overlay_refused` when it is kept no longer */
  textAt(tenantId: TenantId, digest: string): Promise<string>;
  /** For people. It holds nothing of the administrator's. */
  textOf(tenantId: TenantId): Promise<OverlayText>;
  /** Forgets what is known of a tenant, for a caller that has just changed it. */
  forget(tenantId: TenantId): void;
}

export interface Overlays extends OverlayReader {
  /**
   * Checks a text and makes it the tenant's overlay, as an audited change.
   * @throws {AppError} `overlay_refused`, and then nothing has changed; else as `Changes.make`
   */
  write(tenantId: TenantId, text: string, options: ChangeOptions): Promise<void>;
}

export type OverlayReaderDeps = {
  readonly database: Pick<Database, "withControl" | "listen">;
  readonly encryption: FieldEncryption;
  /** The administrator's configuration in force now; a new object after every change of it. */
  readonly ground: () => OverlayGround;
  /** Default 60 s: how long a notification that was lost may go unnoticed. */
  readonly believedMs?: number;
};

const remembered = 1_000;

/** Sealed for its place, so that no row opens as another tenant's or another text's. */
const placeOf = (tenantId: TenantId, digest: string): FieldPlace => ({ tenantId, table: "overlay_text", field: "sealed", row: digest });

export async function openOverlayReader({
  database,
  encryption,
  ground,
  believedMs = 60_000,
}: OverlayReaderDeps): Promise<OverlayReader & { close(): Promise<void> }> {
  const rows = createMemory<OverlayRow | undefined>(remembered);
  const texts = createMemory<{ readonly ground: OverlayGround; readonly overlay: Overlay }>(remembered);
  const stopListening = await database.listen(overlayChannel, (tenant) => rows.forget(tenant), { onReconnect: rows.forgetAll });

  const rowOf = async (tenantId: TenantId): Promise<OverlayRow | undefined> =>
    await rows.recall(
      tenantId,
      believedMs,
      async () => await database.withControl(async (tx) => await readOverlay(tx, tenantId), readOnly),
    );

  const textAt = async (tenantId: TenantId, digest: string): Promise<string> => {
    if (digest === emptyOverlayDigest) return "";
    const sealed = await database.withControl(async (tx) => await readOverlayText(tx, tenantId, digest), readOnly);
    if (sealed === undefined) throw refused("The overlay that this turn began with is kept no longer.");
    return decodeOverlay(await encryption.open(placeOf(tenantId, digest), sealed));
  };

  const at = async (tenantId: TenantId, digest: string): Promise<Overlay> => {
    const key = `${tenantId}/${digest}`;
    const read = async () => {
      const text = await textAt(tenantId, digest);
      const checkedAgainst = ground();
      return { ground: checkedAgainst, overlay: parseOverlay(text, checkedAgainst) };
    };
    const parsed = await texts.recall(key, Number.POSITIVE_INFINITY, read);
    if (parsed.ground === ground()) return parsed.overlay;
    texts.forget(key); // the administrator's configuration is another one since
    return (await texts.recall(key, Number.POSITIVE_INFINITY, read)).overlay;
  };

  const of = async (tenantId: TenantId): Promise<OverlayInForce> => {
    const row = await rowOf(tenantId);
    if (row?.fault != null) throw stopped(row.fault.message, row.fault.param ?? undefined);
    const digest = row?.digest ?? emptyOverlayDigest;
    try {
      return { digest, overlay: await at(tenantId, digest) };
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== "overlay_refused") throw error;
      throw stopped(error.message, error.client.param);
    }
  };

  return {
    of,
    at,
    textAt,
    async textOf(tenantId) {
      const row = await rowOf(tenantId);
      const digest = row?.digest ?? emptyOverlayDigest;
      const fault = await of(tenantId).then(
        () => undefined,
        (error: unknown) => {
          if (error instanceof AppError && error.code === "overlay_refused") return error.message;
          throw error;
        },
      );
      return { text: await textAt(tenantId, digest), digest, version: row?.version ?? 0, fault };
    },
    forget: rows.forget,
    close: stopListening,
  };
}

export type OverlayWriterDeps = {
  readonly reader: Pick<OverlayReader, "forget">;
  readonly database: Pick<Database, "withControl">;
  readonly encryption: FieldEncryption;
  readonly ground: () => OverlayGround;
  readonly changes: Changes;
};

/** Of `Overlays.write`, without the home's file. */
export const createOverlayWriter =
  ({ reader, database, encryption, ground, changes }: OverlayWriterDeps): Overlays["write"] =>
  async (tenantId, text, options) => {
    parseOverlay(text, ground());
    const digest = digestOfOverlay(text);
    const sealed = await encryption.seal(placeOf(tenantId, digest), Buffer.from(text));
    await database.withControl(async (tx) => await storeOverlayText(tx, { tenantId, digest, sealed }));
    await changes.make(tenantId, { type: "overlay.write", digest }, options);
    reader.forget(tenantId);
  };

const readOnly = { readOnly: true } as const;

const refused = (message: string, param?: string): AppError =>
  new AppError("overlay_refused", { client: { message, ...(param === undefined ? {} : { param }) } });

/** As whoever sends a turn reads it: the fault is not in the request. */
const stopped = (message: string, param: string | undefined): AppError =>
  refused(`This tenant's turns are refused until its overlay is mended: ${message}`, param);

/** Values by name, the most recently used ones; what fails is not remembered. */
function createMemory<Value>(size: number) {
  const values = new Map<string, { readonly value: Promise<Value>; readonly atMs: number }>();
  return {
    async recall(name: string, believedMs: number, read: () => Promise<Value>): Promise<Value> {
      const known = values.get(name);
      values.delete(name);
      const isFresh = known !== undefined && performance.now() - known.atMs < believedMs;
      const entry = isFresh ? known : { value: read(), atMs: performance.now() };
      values.set(name, entry);
      const oldest = values.size > size ? values.keys().next().value : undefined;
      if (oldest !== undefined) values.delete(oldest);
      try {
        return await entry.value;
      } catch (error) {
        if (values.get(name) === entry) values.delete(name);
        throw error;
      }
    },
    forget: (name: string): void => void values.delete(name),
    forgetAll: (): void => values.clear(),
  };
}
