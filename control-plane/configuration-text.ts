import { COLLECTION_STYLE, EVENT_ID, SCALAR_STYLE, YAMLException, getScalarValue, parseEvents, type Event } from "js-yaml";
import { AppError } from "../domain/app-error.ts";

/** What a configuration file holds: text, null (`~`, `null` or nothing), lists and mappings. Never a number: money would pass through a float. */
export type ConfigurationValue = string | null | readonly ConfigurationValue[] | { readonly [key: string]: ConfigurationValue };

export type KeyPath = readonly (string | number)[];

export type ConfigurationText = {
  readonly value: { readonly [key: string]: ConfigurationValue };
  /** The line, counted from 1, of the key at `path`, or of the nearest key above it. */
  lineOf(path: KeyPath): number;
  /** Where the value at `path` stands; undefined where there is none. `[]` is the whole mapping. */
  placeOf(path: KeyPath): ConfigurationPlace | undefined;
};

/** Offsets into the text, ends exclusive; a key and its value with their quotes and braces. */
export type ConfigurationPlace = {
  /** 0 for the whole mapping. */
  readonly keyStart: number;
  readonly keyEnd: number;
  readonly start: number;
  readonly end: number;
  readonly style: "block" | "flow" | "scalar";
};

export type ReadOptions = {
  /** As errors name it: `config.yaml`. */
  readonly file: string;
  readonly maxBytes: number;
};

const maxDepth = 32;
/** Keys that mean something else to JavaScript. */
const reservedKeys = new Set(["__proto__", "constructor", "prototype", "<<"]);

type Position = { readonly offset: number; readonly path: KeyPath };
type Mapping = { [key: string]: ConfigurationValue };

/** A key as it may be shown: look-alikes of plain letters and control characters by their code points, and cut. */
const shownKey = (key: string | number): string => {
  const shown = String(key)
    .slice(0, 65)
    .replaceAll(/[^\x20-\x7e]/gu, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`);
  return String(key).length > 64 ? `${shown.slice(0, 64)}…` : shown;
};

/** `providers.openai.kind`, as messages and `error.param` name a key. */
const keyPathText = (path: KeyPath): string => path.map(shownKey).join(".");

/** @throws {AppError} `invalid_configuration` that names the file, the line and the key path. */
export function configurationError(file: string, line: number, path: KeyPath, says: string): AppError {
  const param = keyPathText(path);
  return new AppError("invalid_configuration", {
    client: { message: `${file} line ${line}: ${param === "" ? "" : `${param}: `}${says}`, param },
  });
}

/**
 * Reads one YAML document of mappings, lists and plain text. Scalars keep their source text, so `0.10` stays "0.10".
 * Refused: more than one document, an explicit null document, anchors, aliases, tags, directives, duplicate or non-text keys,
 * depth over 32. A text of comments only is an empty mapping.
 * @throws {AppError} `invalid_configuration`
 */
export function readConfigurationText(text: string, { file, maxBytes }: ReadOptions): ConfigurationText {
  const lineAt = (offset: number): number => text.slice(0, Math.max(0, offset)).split("\n").length;
  const refuse = (offset: number, path: KeyPath, says: string): AppError => configurationError(file, lineAt(offset), path, says);

  if (Buffer.byteLength(text) > maxBytes) throw configurationError(file, 1, [], `is larger than ${maxBytes} bytes`);
  const events = parse(text, file);
  const offsets = new Map<string, number>();
  const places = new Map<string, ConfigurationPlace>();
  let next = 0;
  /** Behind the last thing that was read. */
  let readEnd = 0;

  const readNode = (position: Position): ConfigurationValue => {
    const event = events[next++];
    if (event === undefined) throw refuse(position.offset, position.path, "ends too early");
    const { path } = position;
    switch (event.type) {
      case EVENT_ID.ALIAS:
        throw refuse(event.anchorStart, path, "aliases are not allowed here");
      case EVENT_ID.SCALAR:
        plainOnly(event, position);
        readEnd = Math.max(readEnd, endOfScalar(event));
        return readScalar(text, event);
      case EVENT_ID.SEQUENCE:
        plainOnly(event, position);
        return closed(event, () => readSequence(event.start, path));
      case EVENT_ID.MAPPING:
        plainOnly(event, position);
        return closed(event, () => readMapping(event.start, path));
      case EVENT_ID.DOCUMENT:
      case EVENT_ID.POP:
        throw refuse(position.offset, path, "is not a value");
    }
  };

  const plainOnly = (event: { anchorStart: number; tagStart: number }, { path }: Position): void => {
    if (event.anchorStart >= 0) throw refuse(event.anchorStart, path, "anchors are not allowed here");
    if (event.tagStart >= 0) throw refuse(event.tagStart, path, "tags are not allowed here");
  };

  /** A collection in braces or brackets ends behind the closing one. */
  const closed = <T>({ start, style }: { readonly start: number; readonly style: number }, read: () => T): T => {
    readEnd = Math.max(readEnd, start);
    if (style === COLLECTION_STYLE.FLOW) readEnd = start + 1;
    const value = read();
    if (style === COLLECTION_STYLE.FLOW) readEnd = closingOf(text, readEnd) + 1;
    return value;
  };

  const readSequence = (offset: number, path: KeyPath): ConfigurationValue => {
    const items: ConfigurationValue[] = [];
    while (events[next]?.type !== EVENT_ID.POP) {
      const itemPath = [...path, items.length];
      const itemOffset = startOf(events[next], offset);
      offsets.set(JSON.stringify(itemPath), itemOffset);
      items.push(readNode({ offset: itemOffset, path: itemPath }));
    }
    next++;
    return items;
  };

  const readMapping = (offset: number, path: KeyPath): Mapping => {
    const mapping: Mapping = {};
    while (events[next]?.type !== EVENT_ID.POP) {
      const keyOffset = startOf(events[next], offset);
      const key = readNode({ offset: keyOffset, path });
      if (typeof key !== "string" || key === "") throw refuse(keyOffset, path, "every key must be text");
      const keyPath = [...path, key];
      if (reservedKeys.has(key)) throw refuse(keyOffset, keyPath, "is not a known key");
      if (Object.hasOwn(mapping, key)) throw refuse(keyOffset, keyPath, "stands here twice");
      offsets.set(JSON.stringify(keyPath), keyOffset);
      const keyEnd = readEnd;
      const event = events[next];
      mapping[key] = readNode({ offset: keyOffset, path: keyPath });
      const quoted = text[keyOffset - 1] === '"' || text[keyOffset - 1] === "'";
      places.set(JSON.stringify(keyPath), {
        keyStart: quoted ? keyOffset - 1 : keyOffset,
        keyEnd,
        start: startOf(event, keyEnd),
        end: readEnd,
        style: styleOf(event),
      });
    }
    next++;
    return mapping;
  };

  const value = readDocument();
  return {
    value,
    lineOf(path) {
      for (let length = path.length; length > 0; length--) {
        const offset = offsets.get(JSON.stringify(path.slice(0, length)));
        if (offset !== undefined) return lineAt(offset);
      }
      return 1;
    },
    placeOf: (path) => places.get(JSON.stringify(path)),
  };

  function readDocument(): Mapping {
    const documents = events.filter((event) => event.type === EVENT_ID.DOCUMENT);
    const [document] = documents;
    if (document === undefined) return {};
    if (documents.length > 1) throw configurationError(file, 1, [], "holds more than one YAML document");
    if (document.directives.length > 0) throw configurationError(file, 1, [], "% directives are not allowed here");
    next = 1;
    const event = events[next];
    const root = readNode({ offset: 0, path: [] });
    places.set("[]", { keyStart: 0, keyEnd: 0, start: startOf(event, 0), end: readEnd, style: styleOf(event) });
    if (typeof root !== "object" || root === null || Array.isArray(root))
      throw configurationError(file, 1, [], "must be a mapping of keys to values");
    return root as Mapping;
  }
}

function parse(text: string, file: string): Event[] {
  try {
    return parseEvents(text, { maxDepth });
  } catch (error) {
    if (!(error instanceof YAMLException)) throw error;
    throw configurationError(file, (error.mark?.line ?? 0) + 1, [], `is not valid YAML: ${error.reason}`);
  }
}

type ScalarEvent = Extract<Event, { type: typeof EVENT_ID.SCALAR }>;

function readScalar(text: string, event: ScalarEvent): string | null {
  const value = getScalarValue(text, event);
  return event.style === SCALAR_STYLE.PLAIN && /^(?:|~|null|Null|NULL)$/.test(value) ? null : value;
}

function startOf(event: Event | undefined, fallback: number): number {
  if (event === undefined) return fallback;
  if (event.type === EVENT_ID.SCALAR) return event.valueStart >= 0 ? event.valueStart : fallback;
  return "start" in event ? event.start : fallback;
}

/** With its closing quote. */
function endOfScalar({ valueEnd, style }: ScalarEvent): number {
  return style === SCALAR_STYLE.DOUBLE_QUOTED || style === SCALAR_STYLE.SINGLE_QUOTED ? valueEnd + 1 : valueEnd;
}

function styleOf(event: Event | undefined): ConfigurationPlace["style"] {
  if (event === undefined || !("style" in event) || event.type === EVENT_ID.SCALAR) return "scalar";
  return event.style === COLLECTION_STYLE.FLOW ? "flow" : "block";
}

/** Where the collection is closed whose last element ends at `offset`: behind that there are only spaces, commas and comments. */
function closingOf(text: string, offset: number): number {
  for (let at = offset; at < text.length; at++) {
    if (text[at] === "}" || text[at] === "]") return at;
    if (text[at] === "#") at = text.indexOf("\n", at) < 0 ? text.length : text.indexOf("\n", at);
  }
  return text.length;
}
