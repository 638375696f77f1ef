import { realpathSync } from "node:fs";
import { type ConfinedFile, readConfined } from "./confined-path.ts";

/**
 * Reads a file that the administrator named, below the home; the home itself may be a link.
 * @returns undefined where there is none
 * @throws {PathRefused} for whatever is no plain file of one name inside
 */
export const readHomeFile = async (
  home: string,
  relative: string,
  limits: { readonly maxBytes: number },
): Promise<ConfinedFile | undefined> => await readConfined(realpathSync(home), relative, limits);
