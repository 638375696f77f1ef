import { AppError } from "./app-error.ts";
import type { Branded } from "./branded.ts";

/** A path below some directory, in components that are plain names: joined with `/` it cannot leave, whatever reads it. */
export type RelativePath = readonly Branded<string, "PathComponent">[];

/** Linux' own limits, in bytes of UTF-8. */
const maxComponentBytes = 255;
const maxPathBytes = 4096;
/** No honest tree is deeper, and each level costs a descriptor while it is walked. */
const maxComponents = 64;

/** What we put beside a file while it is written: never anybody's own name. */
export const temporaryPrefix = ".openclaw-";

/** Names that are devices on Windows, with any ending: an archive of ours must not harm whoever unpacks it there. */
const deviceName = /^(?:con|prn|aux|nul|clock\$|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])(?:\.|$)/i;
/** Controls, line separators, text that runs backwards, and characters that nobody sees. */
const hiddenCharacter = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\u00ad\u200b\u2060\ufeff]/u;
/** What would be a separator, a dot or a NUL if somebody decoded it once more. */
const encodedSeparator = /%(?:2e|2f|5c|00)/i;
const separatorElsewhere = /[\\:]/;

/** A path from outside that is not taken. The sentence names no path; `details` holds what was asked for, cut. */
export class PathRefused extends AppError {
  /** Why, as the end of a sentence that begins with "The path". */
  readonly reason: string;

  constructor(reason: string, raw?: string, options?: ErrorOptions) {
    super("invalid_request", { client: { message: `The path ${reason}.` }, path: raw?.slice(0, 256) }, options);
    this.reason = reason;
  }
}

/**
 * The components of a path that came from outside: relative, without `.`, `..` or empty components, printable, in names that mean
 * the same on every system and after every normalisation. The file system is not looked at: that is `storage/confined-path.ts`.
 * @throws {PathRefused}
 */
export function parseRelativePath(raw: string): RelativePath {
  if (typeof raw !== "string") throw new PathRefused("is not text");
  if (raw === "") throw new PathRefused("is empty");
  if (Buffer.byteLength(raw) > maxPathBytes) throw new PathRefused(`is longer than ${maxPathBytes} bytes`, raw);
  if (raw.startsWith("/")) throw new PathRefused("is absolute", raw);
  if (raw.startsWith("~")) throw new PathRefused("begins with ~", raw);
  const components = raw.split("/");
  if (components.length > maxComponents) throw new PathRefused(`has more than ${maxComponents} components`, raw);
  for (const component of components) {
    const reason = componentFault(component);
    if (reason !== undefined) throw new PathRefused(reason, raw);
  }
  return components as readonly string[] as RelativePath;
}

/**
 * The same for an entry of an archive or a key of an object store; `directory/` names a directory.
 * @throws {PathRefused}
 */
export const archiveEntryPath = (raw: string): RelativePath =>
  parseRelativePath(typeof raw === "string" && raw.length > 1 && raw.endsWith("/") ? raw.slice(0, -1) : raw);

function componentFault(component: string): string | undefined {
  if (component === "") return "has an empty component";
  if (component === ".") return "has a component that is only a dot";
  if (component === "..") return "climbs";
  if (Buffer.byteLength(component) > maxComponentBytes) return `has a name longer than ${maxComponentBytes} bytes`;
  if (!component.isWellFormed()) return "is not well-formed Unicode";
  if (hiddenCharacter.test(component)) return "has a control character or one that cannot be seen";
  if (separatorElsewhere.test(component)) return "has a backslash or a colon";
  if (encodedSeparator.test(component)) return "has an encoded separator, dot or NUL";
  if (/^\s|[\s.]$/u.test(component)) return "has a name that begins or ends with a blank, or ends with a dot";
  const plain = component.normalize("NFKC");
  if (plain !== component && (/[/\\:\0]/.test(plain) || /^\.{1,2}$/.test(plain) || hiddenCharacter.test(plain)))
    return "has characters that stand for a separator or a climb";
  if (deviceName.test(plain)) return "has a name that is a device on some systems";
  if (component.startsWith(temporaryPrefix)) return `has a name that begins with ${temporaryPrefix}, which is reserved`;
  return undefined;
}
