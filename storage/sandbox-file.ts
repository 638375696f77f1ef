import type { TenantId } from "../domain/tenant.ts";
import { openConfined } from "./confined-path.ts";
import { sandboxDirectory } from "./tenant-paths.ts";

/** A file that a tenant's programs made, opened for one copy. */
export type SandboxFile = {
  /** When it was opened. */
  readonly sizeBytes: number;
  /** Exactly `sizeBytes` bytes, then closes it. @throws when the file has become shorter meanwhile */
  read(): AsyncGenerator<Buffer>;
  /** Closes what was never read; safe to repeat. */
  close(): Promise<void>;
};

const CHUNK_BYTES = 256 * 1024;

/**
 * Opens a plain file of a tenant's sandbox directory: no link, no FIFO, no device and no file with a second name, whatever a program
 * puts in its place meanwhile.
 * @returns undefined where there is none
 * @throws {PathRefused}
 */
export async function openSandboxFile(home: string, tenantId: TenantId, relative: string): Promise<SandboxFile | undefined> {
  const root = sandboxDirectory(home, tenantId);
  const file = root === undefined ? undefined : await openConfined(root, relative);
  if (file === undefined) return undefined;
  const { size: sizeBytes } = await file.stat();
  let isBegun = false;
  return {
    sizeBytes,
    async *read() {
      isBegun = true;
      await using opened = file;
      for (let position = 0; position < sizeBytes;) {
        const chunk = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, sizeBytes - position));
        const { bytesRead } = await opened.read(chunk, 0, chunk.length, position);
        if (bytesRead === 0) throw new Error("The file became shorter while it was copied.");
        position += bytesRead;
        yield chunk.subarray(0, bytesRead);
      }
    },
    close: async () => {
      if (!isBegun) await file.close();
    },
  };
}
