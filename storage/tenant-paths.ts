import { randomBytes } from "node:crypto";
import { chmodSync, chownSync, constants, existsSync, lstatSync, mkdirSync, realpathSync } from "node:fs";
import { type FileHandle, chmod, open, readdir, rename, rmdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { runsAsRoot, traversableDirectory } from "./traversable-directory.ts";

/** First of the uids that belong to tenants; a tenant's own is this plus its `os_uid_index`. */
const firstTenantUid = 200_000;

/** The parts of a tenant's directory that exist from its first day (contract §2); `sandbox` is the only one that its code may write. */
const parts = ["sandbox", "memory", "plugins", "media", "channels"] as const;

/** Real paths of a tenant's directory and its parts. */
export type TenantDirectory = { readonly root: string } & Readonly<Record<(typeof parts)[number], string>>;

/** The uid and gid of a tenant's files and sandboxes; undefined where the host does not allow one (we are not root). */
export const tenantUidOf = (osUidIndex: number): number | undefined => (runsAsRoot() ? firstTenantUid + osUidIndex : undefined);

/**
 * Makes the home where there is none; an existing one keeps its mode.
 * @returns its real path.
 * @throws {AppError} `invalid_configuration` when it is the home of an upstream OpenClaw.
 */
export function createHome(home: string): string {
  if (existsSync(join(home, "openclaw.json"))) {
    throw new AppError("invalid_configuration", {
      client: {
        message: `${home} holds an upstream openclaw.json: choose another OPENCLAW_HOME and bring the old one in with "openclaw tenants import-from-upstream --upstream-dir ${home} --as <tenant>"`,
      },
    });
  }
  // Root's servers run as other users, who must be able to pass through; what is secret in the home is 0600 itself.
  if (mkdirSync(home, { recursive: true }) !== undefined) chmodSync(home, runsAsRoot() ? 0o711 : 0o700);
  return realpathSync(home);
}

/** Where a tenant's directory is, or will be. */
export const tenantDirectory = (home: string, tenantId: TenantId): string => join(home, "tenants", tenantId);

/** Makes a tenant's directory with its parts, mode 0700 and owned by the tenant's own uid where we are root; safe to repeat. */
export function createTenantDirectory(
  home: string,
  { tenantId, osUidIndex }: { readonly tenantId: TenantId; readonly osUidIndex: number },
): TenantDirectory {
  const uid = tenantUidOf(osUidIndex);
  const tenants = traversableDirectory(home, "tenants", uid === undefined ? undefined : { uid, gid: uid });
  const root = ownDirectory(join(tenants, tenantId), uid);
  const [sandbox, memory, plugins, media, channels] = parts.map((part) => ownDirectory(join(root, part), uid)) as [
    string,
    string,
    string,
    string,
    string,
  ];
  return { root, sandbox, memory, plugins, media, channels };
}

/**
 * Removes a tenant's directory and all that is in it. It goes by open descriptors, so a link, or a directory that is swapped for one
 * meanwhile, is removed and never followed; directories deep down are moved up first, so their depth does not matter. Safe to repeat.
 * @throws {Error} when something in it cannot be removed
 */
export async function removeTenantDirectory(home: string, tenantId: TenantId): Promise<void> {
  const path = tenantDirectory(home, tenantId);
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isDirectory()) return await unlink(path);
  const top = await openDirectory(path);
  const prefix = `.erase-${randomBytes(6).toString("hex")}-`;
  let moved = 0;
  try {
    for (let rest = await namesIn(top); rest.length > 0; rest = await namesIn(top)) {
      for (const { path: child, isDirectory } of rest) {
        if (!isDirectory) {
          await unlink(child);
          continue;
        }
        const directory = await openDirectory(child);
        try {
          for (const { path: grandchild, isDirectory: isDeep } of await namesIn(directory)) {
            if (isDeep) await rename(grandchild, join(pathOf(top), `${prefix}${moved++}`));
            else await unlink(grandchild);
          }
        } finally {
          await directory.close();
        }
        await rmdir(child);
      }
    }
  } finally {
    await top.close();
  }
  await rmdir(path);
}

/** The directory that a descriptor stands for, whatever has become of its name. */
const pathOf = ({ fd }: FileHandle): string => `/proc/self/fd/${fd}`;

async function namesIn(directory: FileHandle): Promise<readonly { readonly path: string; readonly isDirectory: boolean }[]> {
  const entries = await readdir(pathOf(directory), { withFileTypes: true });
  return entries.map((entry) => ({ path: join(pathOf(directory), entry.name), isDirectory: entry.isDirectory() }));
}

async function openDirectory(path: string): Promise<FileHandle> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
  try {
    return await open(path, flags);
  } catch (error) {
    // Not root: then everything in it is ours, and a directory may have been closed to its owner.
    if ((error as NodeJS.ErrnoException).code !== "EACCES" || runsAsRoot()) throw error;
    await chmod(path, 0o700);
    return await open(path, flags);
  }
}

function ownDirectory(path: string, uid: number | undefined): string {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const { mode, uid: owner, gid } = lstatSync(path);
  // A link here could only have been planted: following it would hand somebody else's directory to the tenant.
  if (!lstatSync(path).isDirectory()) throw new Error(`${path} is not a directory`);
  if ((mode & 0o777) !== 0o700) chmodSync(path, 0o700);
  if (uid !== undefined && (owner !== uid || gid !== uid)) chownSync(path, uid, uid);
  return path;
}
