import { lstat } from "node:fs/promises";
import { isAbsolute, normalize } from "node:path";

/** Why `path` may not be the work directory of a sandbox; undefined when it may. */
export async function refuseWorkDirectory(path: string): Promise<string | undefined> {
  if (!isAbsolute(path) || normalize(path) !== path || path.endsWith("/") || path.includes("\0"))
    return `The work directory ${JSON.stringify(path)} is not a plain absolute path.`;
  if (path === "/usr" || path.startsWith("/usr/")) return `The work directory ${path} lies below /usr, which every sandbox can read.`;
  const parts = path.split("/").slice(1);
  for (let depth = 1; depth <= parts.length; depth += 1) {
    const current = `/${parts.slice(0, depth).join("/")}`;
    const found = await lstat(current).catch((error: NodeJS.ErrnoException) => error);
    if (found instanceof Error) return `The work directory ${path} cannot be used: ${found.message}`;
    if (found.isSymbolicLink()) return `The work directory ${path} has a symbolic link in it: ${current}`;
    if (!found.isDirectory()) return `The work directory ${path} is not a directory.`;
  }
  return undefined;
}
