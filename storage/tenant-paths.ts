import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
} from "node:fs";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { removeOwnEntry } from "./confined-path.ts";
import { removeSandboxVolume } from "./sandbox-volume.ts";
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
  const opened: number[] = [];
  try {
    const own = (parent: number, name: string): number => {
      const directory = ownDirectory(parent, name, uid);
      opened.push(directory);
      return directory;
    };
    const place = openSync(tenants, directoryFlags);
    opened.push(place);
    const root = own(place, tenantId);
    for (const part of parts) own(root, part);
  } finally {
    for (const descriptor of opened) closeSync(descriptor);
  }
  const root = join(tenants, tenantId);
  const [sandbox, memory, plugins, media, channels] = parts.map((part) => join(root, part)) as [string, string, string, string, string];
  return { root, sandbox, memory, plugins, media, channels };
}

/** The real path of the directory that a tenant's sandboxes write; undefined where no tenant has one. */
export function sandboxDirectory(home: string, tenantId: TenantId): string | undefined {
  const tenants = join(home, "tenants");
  return existsSync(tenants) ? join(realpathSync(tenants), tenantId, "sandbox" satisfies (typeof parts)[number]) : undefined;
}

/** Whether the home has a tenant's directory. */
export const hasTenantDirectory = (home: string, tenantId: TenantId): boolean => existsSync(tenantDirectory(home, tenantId));

/** Names in the place of the tenants' directories. */
export function tenantDirectoryNames(home: string): readonly string[] {
  const tenants = join(home, "tenants");
  return existsSync(tenants) ? readdirSync(tenants) : [];
}

/** Removes a tenant's directory and all that is in it, by descriptors; safe to repeat. @throws {Error} when something in it cannot be removed */
export async function removeTenantDirectory(home: string, tenantId: TenantId): Promise<void> {
  const tenants = join(home, "tenants");
  if (!existsSync(tenants)) return;
  const place = realpathSync(tenants);
  await removeSandboxVolume(home, { tenantId, directory: join(place, tenantId, "sandbox" satisfies (typeof parts)[number]) });
  await removeOwnEntry(place, tenantId);
}

const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/**
 * Makes and opens `name` in an open directory. A link here could only have been planted: following it would hand somebody else's
 * directory to the tenant. So what is changed is what was opened, never what has the path by then (`confined-path.ts` tells how).
 */
function ownDirectory(parent: number, name: string, uid: number | undefined): number {
  const path = `/proc/self/fd/${parent}/${name}`;
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const directory = openDirectory(path, name);
  const { mode, uid: owner, gid } = fstatSync(directory);
  if ((mode & 0o777) !== 0o700) fchmodSync(directory, 0o700);
  if (uid !== undefined && (owner !== uid || gid !== uid)) fchownSync(directory, uid, uid);
  return directory;
}

function openDirectory(path: string, name: string): number {
  try {
    return openSync(path, directoryFlags);
  } catch (error) {
    throw new Error(`${name} in a tenant's place is not a directory`, { cause: error });
  }
}
