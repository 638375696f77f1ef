/** Contract §3: JSON bodies are 64 levels deep at most. */
const deepest = 64;
/** Entries of one object or array: no honest request comes near, and validating millions of them would stop everybody's turns. */
const mostEntries = 10_000;
/** Entries of the whole text, for the same reason: millions of small arrays take seconds to build. */
const mostEntriesInAll = 500_000;

const [quote, backslash, comma] = [0x22, 0x5c, 0x2c];
const opening: ReadonlySet<number> = new Set([0x5b, 0x7b]);
const closing: ReadonlySet<number> = new Set([0x5d, 0x7d]);

/**
 * What is wrong with the size of a JSON text, in a sentence; undefined for one that may be parsed. It looks at brackets, commas and
 * the ends of strings only, before anything is built from the text: whether it is JSON at all is for the parser to say.
 */
export function jsonShapeFault(text: string): string | undefined {
  const commas: number[] = [];
  let entriesInAll = 0;
  for (let at = 0; at < text.length; at++) {
    const character = text.charCodeAt(at);
    if (character === quote) at = endOfString(text, at);
    else if (opening.has(character)) {
      if (commas.length === deepest) return `The body is nested deeper than ${deepest} levels.`;
      commas.push(0);
      entriesInAll++;
    } else if (closing.has(character)) commas.pop();
    else if (character === comma && commas.length > 0) {
      const inContainer = (commas.pop() ?? 0) + 1;
      if (inContainer >= mostEntries) return `An object or array of the body has more than ${mostEntries} entries.`;
      commas.push(inContainer);
      entriesInAll++;
    }
    if (entriesInAll > mostEntriesInAll) return `The body has more than ${mostEntriesInAll} entries.`;
  }
  return undefined;
}

/** The place of the quotation mark that ends the string which begins at `start`, or of the text's end. */
function endOfString(text: string, start: number): number {
  let end = start;
  do {
    end = text.indexOf('"', end + 1);
    if (end === -1) return text.length;
  } while (isEscaped(text, end));
  return end;
}

function isEscaped(text: string, place: number): boolean {
  let backslashes = 0;
  while (text.charCodeAt(place - 1 - backslashes) === backslash) backslashes++;
  return backslashes % 2 === 1;
}
