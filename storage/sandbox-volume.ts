import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { TenantId } from "../domain/tenant.ts";
import { runsAsRoot } from "./traversable-directory.ts";

/** What a tenant's sandbox directory may hold, as the size of a file system of its own. */
export type VolumeSize = { readonly bytes: number; readonly inodes: number };

export type VolumePlace = { readonly tenantId: TenantId; readonly directory: string; readonly uid: number | undefined };

const execute = promisify(execFile);
const script = join(import.meta.dirname, "sandbox-volume.sh");
/** Another process may be moving a tenant's files. */
const LOCK_SECONDS = 120;
const needed = ["flock", "mkfs.ext4", "mount", "umount", "findmnt", "truncate"] as const;
const environment = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" };

/** Where the images are; root's alone, because a file system is only mounted that no tenant could write by hand. */
const volumesOf = (home: string): string => join(home, "volumes");
const prefixOf = (home: string, tenantId: TenantId): string => join(volumesOf(home), tenantId);

async function runScript(home: string, tenantId: TenantId, action: "mount" | "remove", args: readonly string[]): Promise<void> {
  mkdirSync(volumesOf(home), { recursive: true, mode: 0o700 });
  const prefix = prefixOf(home, tenantId);
  const [directory = "", ...rest] = args;
  const lock = ["-w", String(LOCK_SECONDS), `${prefix}.lock`];
  await execute("flock", [...lock, "bash", script, action, directory, prefix, ...rest], { env: environment, cwd: "/" });
}

/** Whether a directory is the root of a file system of its own. */
const isMounted = (directory: string): boolean =>
  statSync(directory, { throwIfNoEntry: false })?.dev !== statSync(dirname(directory), { throwIfNoEntry: false })?.dev;

const hasImage = (home: string, tenantId: TenantId): boolean =>
  existsSync(volumesOf(home)) && readdirSync(volumesOf(home)).some((name) => name.startsWith(`${tenantId}.`) && name.endsWith(".img"));

/**
 * File systems of a fixed size, one for each tenant's sandbox directory, in image files under `<home>/volumes`: a limit of bytes and
 * files that the kernel itself holds. A tenant that has one keeps it when `size` is taken away; it is never emptied by a change.
 */
export class SandboxVolumes {
  readonly #home: string;
  readonly #size: VolumeSize | undefined;
  readonly #ready = new Map<TenantId, string>();
  readonly #making = new Map<TenantId, Promise<string | undefined>>();
  #obstacle: Promise<string | undefined> | undefined;

  /** @param size undefined: none are made, those that are there are used */
  constructor({ home, size }: { readonly home: string; readonly size: VolumeSize | undefined }) {
    this.#home = home;
    this.#size = size;
  }

  get size(): VolumeSize | undefined {
    return this.#size;
  }

  /** Whether the tenant's directory is a volume, or will be one at its next use. */
  covers(tenantId: TenantId): boolean {
    return this.#size !== undefined || hasImage(this.#home, tenantId);
  }

  /** Why this host can make none, as a clause, shown by making one; undefined when it can. */
  async probe(): Promise<string | undefined> {
    return await (this.#obstacle ??= findObstacle());
  }

  /** Makes the directory what it is to be, if it is not yet. @returns why nothing may run in it; undefined when it is ready */
  async ensure(place: VolumePlace): Promise<string | undefined> {
    const { tenantId, directory } = place;
    if (!this.covers(tenantId)) return undefined;
    if (this.#ready.get(tenantId) === directory && isMounted(directory)) return undefined;
    const obstacle = await this.probe();
    if (obstacle !== undefined) return `sandbox.disk_quota: ${obstacle}`;
    const making = this.#making.get(tenantId) ?? this.#make(place).finally(() => this.#making.delete(tenantId));
    this.#making.set(tenantId, making);
    return await making;
  }

  async #make({ tenantId, directory, uid }: VolumePlace): Promise<string | undefined> {
    const size = this.#size === undefined ? [] : [String(this.#size.bytes), String(this.#size.inodes)];
    try {
      await runScript(this.#home, tenantId, "mount", [directory, String(uid ?? 0), ...size]);
      this.#ready.set(tenantId, directory);
      return undefined;
    } catch (error) {
      return `the tenant's volume cannot be used: ${lastLine(error)}`;
    }
  }

  /** Unmounts one tenant's, which this process mounted or used; nothing runs in it. @throws {Error} when it is in use all the same */
  async leave(tenantId: TenantId): Promise<void> {
    const directory = this.#ready.get(tenantId);
    if (directory === undefined) return;
    if (isMounted(directory)) await execute("umount", [directory], { env: environment });
    this.#ready.delete(tenantId);
  }

  /** Unmounts what nobody uses; the next use mounts it again. */
  async close(): Promise<void> {
    for (const directory of this.#ready.values()) await execute("umount", [directory], { env: environment }).catch(() => undefined);
    this.#ready.clear();
  }
}

/** Unmounts and removes a tenant's volume, if there is one. @throws {Error} when it cannot be removed */
export async function removeSandboxVolume(home: string, { tenantId, directory }: Omit<VolumePlace, "uid">): Promise<void> {
  if (!hasImage(home, tenantId)) return;
  await runScript(home, tenantId, "remove", [directory]);
  await rm(`${prefixOf(home, tenantId)}.lock`, { force: true });
}

async function findObstacle(): Promise<string | undefined> {
  if (!runsAsRoot()) return "only root can mount a volume";
  const missing: string[] = [];
  for (const program of needed)
    await execute("sh", ["-c", `command -v ${program}`], { env: environment }).catch(() => missing.push(program));
  if (missing.length > 0) return `${missing.join(", ")} is missing: apt-get install -y e2fsprogs mount util-linux`;
  const home = await mkdtemp(join(tmpdir(), "openclaw-volume-"));
  const [tenantId, directory] = ["probe" as TenantId, join(home, "directory")];
  mkdirSync(directory);
  try {
    await runScript(home, tenantId, "mount", [directory, "0", String(1 << 20), "64"]);
    return undefined;
  } catch (error) {
    return `this host can mount none: ${lastLine(error)}`;
  } finally {
    await runScript(home, tenantId, "remove", [directory]).catch(() => undefined);
    await rm(home, { recursive: true, force: true });
  }
}

function lastLine(error: unknown): string {
  const { stderr = "", message } = error as Error & { readonly stderr?: string };
  return (stderr.trim().split("\n").at(-1) || message).slice(0, 300);
}
