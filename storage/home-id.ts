import { randomBytes } from "node:crypto";
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { AppError } from "../domain/app-error.ts";

/**
 * What tells this home from every other, `<home>/home-id`: made at the first start, the same for all processes that share the volume. A
 * mount that is missing shows as another home, and no tenant begins with an empty directory there.
 * @throws {AppError} `invalid_configuration` for a file that holds something else
 */
export function homeIdOf(home: string): string {
  const path = join(home, "home-id");
  const id = readText(path) ?? create(path);
  if (!/^hom_[0-9a-f]{32}$/.test(id)) {
    throw new AppError("invalid_configuration", {
      client: { message: `${path} does not hold a home's id: bring the file back as it was` },
    });
  }
  return id;
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** Of several processes that start at once on one volume, one names it. */
function create(path: string): string {
  mkdirSync(dirname(path), { recursive: true });
  const id = `hom_${randomBytes(16).toString("hex")}`;
  const temporary = `${path}.${id}.tmp`;
  writeFileSync(temporary, `${id}\n`, { mode: 0o644, flush: true });
  try {
    linkSync(temporary, path);
    return id;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return readFileSync(path, "utf8").trim();
    throw error;
  } finally {
    rmSync(temporary);
  }
}
