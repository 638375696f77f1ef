import { lstatSync, type Stats } from "node:fs";
import { isAbsolute, normalize } from "node:path";

/** Why `path` may not be the work directory of a sandbox; undefined when it may. */
export function refuseWorkDirectory(path: string): string | undefined {
  if (!isAbsolute(path) || normalize(path) !== path || path.endsWith("/") || path.includes("\0"))
    return `The work directory ${JSON.stringify(path)} is not a plain absolute path.`;
  if (path === "/usr" || path.startsWith("/usr/")) return `The work directory ${path} lies below /usr, which every sandbox can read.`;
  const parts = path.split("/").slice(1);
  for (let depth = 1; depth <= parts.length; depth += 1) {
    const current = `/${parts.slice(0, depth).join("/")}`;
    const found = look(current);
    if (found instanceof Error) return `The work directory ${path} cannot be used: ${found.message}`;
    if (found.isSymbolicLink()) return `The work directory ${path} has a symbolic link in it: ${current}`;
    if (!found.isDirectory()) return `The work directory ${path} is not a directory.`;
  }
  return undefined;
}

/** A few microseconds, where a look of its own in the thread pool for each part would be half of a warm run. */
function look(path: string): Stats | Error {
  try {
    return lstatSync(path);
  } catch (error) {
    return error as Error;
  }
}

/** A directory that is mounted keeps its inode, so nothing else can have these numbers while a sandbox has it. */
export function directoryIdentity(directory: string): string | undefined {
  const found = lstatSync(directory, { bigint: true, throwIfNoEntry: false });
  return found?.isDirectory() ? `${found.dev}:${found.ino}` : undefined;
}
