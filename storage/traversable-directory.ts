import { createHash } from "node:crypto";
import { chmodSync, existsSync, lstatSync, mkdirSync, readlinkSync, realpathSync, statSync, symlinkSync } from "node:fs";
import { basename, dirname, join } from "node:path";

/** Another operating-system user for whom root prepares a directory. */
export type OsUser = { readonly uid: number; readonly gid: number };

/** Where a home's parts move that other users must reach while the home itself is closed to them (contract §2). */
const openPlace = "/var/lib/openclaw";

export const runsAsRoot = (): boolean => process.getuid?.() === 0;

const mayEnter = (directory: string, user: OsUser): boolean => {
  const { mode, uid, gid } = statSync(directory);
  if (uid === user.uid) return (mode & 0o100) !== 0;
  if (gid === user.gid) return (mode & 0o010) !== 0;
  return (mode & 0o001) !== 0;
};

/** Whether `user` may enter every directory from the root down to `directory` itself. Access lists are not looked at. */
function canTraverse(directory: string, user: OsUser): boolean {
  const real = realpathSync(directory);
  for (let at = real; ; at = dirname(at)) {
    if (!mayEnter(at, user)) return false;
    if (at === dirname(at)) return true;
  }
}

/**
 * Makes `<home>/<name>` a directory that `user` can reach: there, or, where the home is closed to others, under
 * `/var/lib/openclaw/<hash of the home>` with a link from the home. Without a `user` (we are not root) it is simply made.
 * @returns the real path.
 */
export function traversableDirectory(home: string, name: string, user: OsUser | undefined): string {
  const path = join(home, name);
  mkdirSync(home, { recursive: true, mode: runsAsRoot() ? 0o711 : 0o700 });
  if (user === undefined) {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return realpathSync(path);
  }
  const present = lstatSync(path, { throwIfNoEntry: false });
  if (present === undefined && !canTraverse(home, user)) {
    const place = join(openPlace, createHash("sha256").update(realpathSync(home)).digest("hex").slice(0, 16), basename(name));
    makeOpenDirectory(place);
    symlinkSync(place, path);
  } else if (present === undefined) {
    makeOpenDirectory(path);
  } else if (present.isSymbolicLink() && !existsSync(path)) {
    makeOpenDirectory(realTargetOf(path));
  }
  const real = realpathSync(path);
  if (!canTraverse(real, user)) {
    throw new Error(`${real} cannot be entered by the user with uid ${user.uid}: open its parent directories (chmod o+x) or move the home`);
  }
  return real;
}

/** Others may pass through but not list; set by chmod, so that a narrow umask does not matter. */
function makeOpenDirectory(path: string): void {
  const topmost = mkdirSync(path, { recursive: true });
  if (topmost === undefined) return;
  for (let at = path; at.length >= topmost.length; at = dirname(at)) chmodSync(at, 0o711);
}

/** The target of a dangling link of ours: only ever below `openPlace`. */
function realTargetOf(link: string): string {
  const target = readlinkSync(link);
  if (!target.startsWith(`${openPlace}/`)) throw new Error(`${link} is a link to ${target}, which does not exist`);
  return target;
}
