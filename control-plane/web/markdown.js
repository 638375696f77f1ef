/**
 * Markdown of a chat answer, as a plain tree. What a model writes is hostile: there is no HTML in the tree, only the tags named
 * here; links lead to http and https only; pictures become links, since loading one would tell its server what was said. Time is
 * linear in the text and depth is bounded, whatever the text.
 *
 * @typedef {string
 *   | { readonly tag: "strong" | "em" | "del", readonly children: readonly Inline[] }
 *   | { readonly tag: "code", readonly text: string }
 *   | { readonly tag: "a", readonly href: string, readonly children: readonly Inline[] }
 *   | { readonly tag: "br" }} Inline
 * @typedef {{ readonly tag: "p" | "h3" | "h4" | "h5" | "h6", readonly children: readonly Inline[] }
 *   | { readonly tag: "pre", readonly language: string, readonly text: string }
 *   | { readonly tag: "ul", readonly items: readonly (readonly Block[])[] }
 *   | { readonly tag: "ol", readonly start: number, readonly items: readonly (readonly Block[])[] }
 *   | { readonly tag: "blockquote", readonly children: readonly Block[] }
 *   | { readonly tag: "table", readonly align: readonly Align[], readonly head: readonly Inline[][], readonly rows: readonly Inline[][][] }
 *   | { readonly tag: "hr" }} Block
 * @typedef {"" | "left" | "center" | "right"} Align
 */

const maxBlockDepth = 6;
const maxInlineDepth = 8;
/** Marks waiting for their end; the oldest gives way. */
const maxOpeners = 64;
const maxUrlLength = 2048;
const maxTableColumns = 32;

/**
 * The top-level blocks, each with the lines it came from, so that a view can keep what did not change.
 *
 * @param {string} text
 * @returns {{ readonly source: string, readonly block: Block }[]}
 */
export function parseMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").replaceAll("\0", "\uFFFD").split("\n");
  return takeBlocks(lines, 0).map(({ from, to, block }) => ({ source: lines.slice(from, to).join("\n"), block }));
}

/** @typedef {{ readonly from: number, readonly to: number, readonly block: Block }} Taken */

/**
 * @param {readonly string[]} lines
 * @param {number} depth
 * @returns {Taken[]}
 */
function takeBlocks(lines, depth) {
  /** @type {Taken[]} */
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (isBlank(lineAt(lines, at))) {
      at += 1;
      continue;
    }
    const taken = takeBlock(lines, at, depth);
    blocks.push(taken);
    at = taken.to;
  }
  return blocks;
}

/**
 * @param {readonly string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {Taken}
 */
function takeBlock(lines, at, depth) {
  return (
    takeCode(lines, at) ??
    takeHeading(lines, at) ??
    takeRule(lines, at) ??
    (depth < maxBlockDepth ? (takeQuote(lines, at, depth) ?? takeList(lines, at, depth)) : undefined) ??
    takeTable(lines, at) ??
    takeParagraph(lines, at, depth)
  );
}

const fence = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const heading = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const rule = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const quote = /^ {0,3}> ?/;
const bullet = /^( {0,12})([-*+]|(\d{1,9})[.)])(?:[ \t]+|$)/;
const tableRule = /^[ \t]*(?:\|[ \t]*)?:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*(?:\|[ \t]*)?$/;

/** @type {(lines: readonly string[], at: number) => string} */
const lineAt = (lines, at) => lines[at] ?? "";
/** @param {string} line */
const isBlank = (line) => line.trim() === "";
/** @param {string} line */
const indentOf = (line) => line.length - line.trimStart().length;

/** @type {(lines: readonly string[], at: number) => Taken | undefined} */
function takeCode(lines, at) {
  const [whole, indent = "", mark = "", info = ""] = fence.exec(lineAt(lines, at)) ?? [];
  if (whole === undefined) return undefined;
  const code = [];
  let to = at + 1;
  for (; to < lines.length; to += 1) {
    const line = lineAt(lines, to);
    const trimmed = line.trim();
    if (trimmed.length >= mark.length && trimmed === mark.charAt(0).repeat(trimmed.length)) break;
    code.push(line.slice(Math.min(indentOf(line), indent.length)));
  }
  const language = /^[\w+#.-]{1,40}/.exec(info.trim())?.[0].toLowerCase() ?? "";
  // A missing end is normal: the answer is still being written.
  return { from: at, to: Math.min(to + 1, lines.length), block: { tag: "pre", language, text: showHidden(code.join("\n")) } };
}

/** @type {(lines: readonly string[], at: number) => Taken | undefined} */
function takeHeading(lines, at) {
  const [whole, marks = "", raw = ""] = heading.exec(lineAt(lines, at)) ?? [];
  if (whole === undefined) return undefined;
  const text = raw.trimEnd().replace(/(?:^|[ \t])#+$/, "");
  const tag = /** @type {const} */ (["h3", "h4", "h5", "h6", "h6", "h6"])[marks.length - 1] ?? "h6"; // h1 and h2 are the page's
  return { from: at, to: at + 1, block: { tag, children: parseInline(text.trim()) } };
}

/** @type {(lines: readonly string[], at: number) => Taken | undefined} */
function takeRule(lines, at) {
  return rule.test(lineAt(lines, at)) ? { from: at, to: at + 1, block: { tag: "hr" } } : undefined;
}

/** @type {(lines: readonly string[], at: number, depth: number) => Taken | undefined} */
function takeQuote(lines, at, depth) {
  let to = at;
  while (to < lines.length && quote.test(lineAt(lines, to))) to += 1;
  if (to === at) return undefined;
  const inner = lines.slice(at, to).map((line) => line.replace(quote, ""));
  return { from: at, to, block: { tag: "blockquote", children: takeBlocks(inner, depth + 1).map(({ block }) => block) } };
}

/** @type {(lines: readonly string[], at: number, depth: number) => Taken | undefined} */
function takeList(lines, at, depth) {
  const first = bullet.exec(lineAt(lines, at));
  if (!first || rule.test(lineAt(lines, at))) return undefined;
  const base = indentOf(lineAt(lines, at));
  const isOrdered = first[3] !== undefined;
  /** @type {string[][]} */
  const items = [];
  let to = at;
  let end = at;
  for (; to < lines.length; to += 1) {
    const line = lineAt(lines, to);
    if (isBlank(line)) {
      items.at(-1)?.push("");
      continue;
    }
    const mark = bullet.exec(line);
    const isSibling = mark !== null && indentOf(line) <= base + 1;
    if (isSibling && (mark[3] !== undefined) !== isOrdered) break;
    if (isSibling && !rule.test(line)) items.push([line.slice(mark[0].length)]);
    else if (indentOf(line) > base + 1) items.at(-1)?.push(line.slice(Math.min(indentOf(line), base + (isOrdered ? 3 : 2))));
    else if (isBlank(lineAt(lines, to - 1)) || startsBlock(line)) break;
    else items.at(-1)?.push(line); // the item's text goes on, not indented
    end = to + 1;
  }
  const blocks = items.map((item) => takeBlocks(item, depth + 1).map(({ block }) => block));
  return { from: at, to: end, block: isOrdered ? { tag: "ol", start: Number(first[3]), items: blocks } : { tag: "ul", items: blocks } };
}

/** @type {(lines: readonly string[], at: number) => Taken | undefined} */
function takeTable(lines, at) {
  const top = lineAt(lines, at);
  const under = lineAt(lines, at + 1);
  if (!startsTable(lines, at)) return undefined;
  const align = cellsOf(under).map((cell) => alignOf(cell));
  const head = cellsOf(top);
  if (head.length !== align.length) return undefined;
  const rows = [];
  let to = at + 2;
  for (; to < lines.length && lineAt(lines, to).includes("|"); to += 1) {
    const cells = cellsOf(lineAt(lines, to));
    rows.push(align.map((_, column) => parseInline(cells[column] ?? "")));
  }
  return { from: at, to, block: { tag: "table", align, head: head.map((cell) => parseInline(cell)), rows } };
}

/** @param {string} line */
function cellsOf(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/, maxTableColumns).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** @type {(cell: string) => Align} */
function alignOf(cell) {
  if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
  return cell.startsWith(":") ? "left" : "";
}

/** @param {string} line */
const startsBlock = (line) => fence.test(line) || heading.test(line) || rule.test(line) || quote.test(line) || bullet.test(line);

/** @type {(lines: readonly string[], at: number, depth: number) => Taken} */
function takeParagraph(lines, at, depth) {
  let to = at + 1;
  while (to < lines.length && !isBlank(lineAt(lines, to))) {
    const line = lineAt(lines, to);
    if (depth < maxBlockDepth ? startsBlock(line) : fence.test(line) || heading.test(line) || rule.test(line)) break;
    if (startsTable(lines, to)) break;
    to += 1;
  }
  const text = lines
    .slice(at, to)
    .map((line) => line.trim())
    .join("\n");
  return { from: at, to, block: { tag: "p", children: parseInline(text) } };
}

/** @type {(lines: readonly string[], at: number) => boolean} */
function startsTable(lines, at) {
  const under = lineAt(lines, at + 1);
  return lineAt(lines, at).includes("|") && under.includes("-") && tableRule.test(under);
}

/**
 * @param {string} text
 * @returns {Inline[]}
 */
function parseInline(text) {
  return new InlineParser(text, 0, true).parse();
}

/** @typedef {{ readonly mark: string, readonly count: number, readonly at: number }} Opener a run of `*`, `_` or `~`; `at` is its place in the output */

class InlineParser {
  #text;
  #depth;
  #maySetLinks;
  #at = 0;
  #plain = "";
  #out = /** @type {Inline[]} */ ([]);
  #depthOf = /** @type {WeakMap<object, number>} */ (new WeakMap());
  #openers = /** @type {Opener[]} */ ([]);
  #openCount = /** @type {Record<string, number>} */ ({ "*": 0, _: 0, "~": 0 });
  #brackets = /** @type {Map<number, number> | undefined} */ (undefined);
  #ticks = /** @type {Map<number, number[]> | undefined} */ (undefined);

  /**
   * @param {string} text
   * @param {number} depth
   * @param {boolean} maySetLinks
   */
  constructor(text, depth, maySetLinks) {
    this.#text = text;
    this.#depth = depth;
    this.#maySetLinks = maySetLinks;
  }

  /** @returns {Inline[]} */
  parse() {
    while (this.#at < this.#text.length) {
      if (!this.#takeMarked(this.#text.charAt(this.#at))) {
        this.#plain += this.#text.charAt(this.#at);
        this.#at += 1;
      }
    }
    this.#flush();
    return joinText(this.#out);
  }

  /** @param {string} char */
  #takeMarked(char) {
    switch (char) {
      case "\\":
        return this.#takeEscape();
      case "\n":
        return this.#takeNode({ tag: "br" }, 1);
      case "`":
        return this.#takeCode();
      case "!":
        return this.#text.charAt(this.#at + 1) === "[" && this.#takeLink(1);
      case "[":
        return this.#takeLink(0);
      case "<":
      case "h":
        return this.#takeBareUrl(char);
      case "*":
      case "_":
      case "~":
        return this.#takeRun(char);
      default:
        return false;
    }
  }

  #takeEscape() {
    const next = this.#text.charAt(this.#at + 1);
    if (!/^[!-/:-@[-`{-~]$/.test(next)) return false;
    this.#plain += next;
    this.#at += 2;
    return true;
  }

  /**
   * @param {Inline} node
   * @param {number} length
   */
  #takeNode(node, length) {
    this.#flush();
    this.#out.push(node);
    this.#at += length;
    return true;
  }

  #takeCode() {
    const length = this.#runLength("`");
    const close = this.#nextTicks(length, this.#at + length);
    if (close === undefined) {
      this.#plain += "`".repeat(length);
      this.#at += length;
      return true;
    }
    const raw = this.#text.slice(this.#at + length, close).replaceAll("\n", " ");
    const isPadded = raw.startsWith(" ") && raw.endsWith(" ") && raw.trim() !== "";
    return this.#takeNode({ tag: "code", text: showHidden(isPadded ? raw.slice(1, -1) : raw) }, close + length - this.#at);
  }

  /**
   * Where the next run of exactly `length` backticks starts. Runs are listed once, so that a text of lone ones stays cheap.
   *
   * @param {number} length
   * @param {number} from
   */
  #nextTicks(length, from) {
    if (!this.#ticks) {
      this.#ticks = new Map();
      for (const { 0: run, index } of this.#text.matchAll(/`+/g)) {
        const places = this.#ticks.get(run.length);
        if (places) places.push(index);
        else this.#ticks.set(run.length, [index]);
      }
      for (const places of this.#ticks.values()) places.reverse();
    }
    const places = this.#ticks.get(length) ?? [];
    while ((places.at(-1) ?? Infinity) < from) places.pop();
    return places.at(-1);
  }

  /** @param {number} skip 1 for a picture's exclamation mark */
  #takeLink(skip) {
    if (!this.#maySetLinks) return false;
    const open = this.#at + skip;
    const close = this.#bracketsOf().get(open);
    if (close === undefined || this.#text.charAt(close + 1) !== "(") return false;
    const inside = /^\([ \n]{0,4}(<[^<>\s]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:[ \n]{1,4}(?:"[^"]*"|'[^']*'))?[ \n]{0,4}\)/.exec(
      this.#text.slice(close + 1, close + 1 + maxUrlLength),
    );
    if (!inside) return false;
    const label = this.#text.slice(open + 1, close);
    const href = safeHref((inside[1] ?? "").replace(/^<|>$/g, ""));
    const length = close + 1 + inside[0].length - this.#at;
    const children = this.#inner(label);
    if (href === undefined) {
      // Not a link that we would follow: the words stay, the target does not.
      this.#flush();
      this.#append(children);
      this.#at += length;
      return true;
    }
    return this.#takeNode({ tag: "a", href, children: children.length > 0 ? children : [href] }, length);
  }

  /** @param {string} label */
  #inner(label) {
    if (this.#depth >= maxInlineDepth) return label === "" ? [] : [showHidden(label)];
    return new InlineParser(showHidden(label), this.#depth + 1, false).parse();
  }

  /** Which `]` belongs to which `[`, found once for the whole text. */
  #bracketsOf() {
    if (this.#brackets) return this.#brackets;
    this.#brackets = new Map();
    const open = [];
    for (let at = 0; at < this.#text.length; at += 1) {
      const char = this.#text.charAt(at);
      if (char === "\\") at += 1;
      else if (char === "[") open.push(at);
      else if (char === "]") {
        const from = open.pop();
        if (from !== undefined) this.#brackets.set(from, at);
      }
    }
    return this.#brackets;
  }

  /** @param {string} char */
  #takeBareUrl(char) {
    if (!this.#maySetLinks) return false;
    if (char === "h" && /[\p{L}\p{N}]/u.test(this.#text.charAt(this.#at - 1))) return false;
    const from = char === "<" ? this.#at + 1 : this.#at;
    if (!this.#text.startsWith("http://", from) && !this.#text.startsWith("https://", from)) return false;
    const found = /^[^\s<>"`]+/.exec(this.#text.slice(from, from + maxUrlLength))?.[0] ?? "";
    if (char === "<" && this.#text.charAt(from + found.length) !== ">") return false;
    const url = char === "<" ? found : trimUrl(found);
    const href = safeHref(url);
    if (href === undefined) return false;
    return this.#takeNode({ tag: "a", href, children: [showHidden(url)] }, url.length + (char === "<" ? 2 : 0));
  }

  /** @param {string} mark */
  #takeRun(mark) {
    const length = this.#runLength(mark);
    const before = this.#text.charAt(this.#at - 1);
    const after = this.#text.charAt(this.#at + length);
    const isWordBefore = /[\p{L}\p{N}]/u.test(before);
    const isWordAfter = /[\p{L}\p{N}]/u.test(after);
    // A lone mark between spaces is a mark; `_` inside a word belongs to the word; one `~` means "about".
    const canClose = before !== "" && !/\s/.test(before) && !(mark === "_" && isWordAfter);
    const canOpen = after !== "" && !/\s/.test(after) && !(mark === "_" && isWordBefore);
    let left = mark === "~" && length !== 2 ? 0 : Math.min(length, 3);
    const surplus = length - left;
    this.#at += length;
    if (canClose) left = this.#close(mark, left);
    if (canOpen && left > 0) {
      this.#flush();
      this.#addOpener({ mark, count: left, at: this.#out.length });
      this.#out.push(mark.repeat(left + surplus)); // stays text unless it is closed
    } else {
      this.#plain += mark.repeat(left + surplus);
    }
    return true;
  }

  /**
   * Closes what `left` marks can close and says how many are left over.
   *
   * @param {string} mark
   * @param {number} left
   */
  #close(mark, left) {
    while (left > 0 && (this.#openCount[mark] ?? 0) > 0) {
      const opener = this.#openers.pop();
      if (!opener) return left;
      this.#openCount[opener.mark] = (this.#openCount[opener.mark] ?? 1) - 1;
      if (opener.mark !== mark) continue; // overlapping marks: the inner one is text
      this.#flush();
      const used = mark === "~" ? 2 : Math.min(opener.count, left, 2);
      const children = joinText(this.#out.splice(opener.at + 1));
      const depth =
        1 + children.reduce((most, child) => Math.max(most, typeof child === "string" ? 0 : (this.#depthOf.get(child) ?? 0)), 0);
      const opening = this.#out.pop();
      const openText = typeof opening === "string" ? opening : "";
      const rest = openText.slice(0, openText.length - used);
      const tag = mark === "~" ? "del" : used === 2 ? "strong" : "em";
      if (rest !== "") this.#out.push(rest);
      if (children.length === 0 || depth + this.#depth > maxInlineDepth) {
        this.#append([mark.repeat(used), ...children, mark.repeat(used)]);
      } else {
        const node = { tag: /** @type {"strong" | "em" | "del"} */ (tag), children };
        this.#depthOf.set(node, depth);
        this.#out.push(node);
      }
      left -= used;
      if (opener.count > used) this.#addOpener({ mark, count: opener.count - used, at: opener.at });
    }
    return left;
  }

  /** @param {Opener} opener */
  #addOpener(opener) {
    this.#openers.push(opener);
    this.#openCount[opener.mark] = (this.#openCount[opener.mark] ?? 0) + 1;
    if (this.#openers.length <= maxOpeners) return;
    const oldest = this.#openers.shift();
    if (oldest) this.#openCount[oldest.mark] = (this.#openCount[oldest.mark] ?? 1) - 1;
  }

  /** @param {readonly Inline[]} nodes */
  #append(nodes) {
    for (const node of nodes) this.#out.push(node); // not spread: there may be more than a call takes arguments
  }

  /** @param {string} mark */
  #runLength(mark) {
    let length = 1;
    while (this.#text.charAt(this.#at + length) === mark) length += 1;
    return length;
  }

  #flush() {
    if (this.#plain !== "") this.#out.push(this.#plain);
    this.#plain = "";
  }
}

/**
 * @param {readonly Inline[]} nodes
 * @returns {Inline[]}
 */
function joinText(nodes) {
  /** @type {Inline[]} */
  const joined = [];
  /** @type {string[]} */
  let text = [];
  for (const node of [...nodes, undefined]) {
    if (typeof node === "string") {
      text.push(node);
      continue;
    }
    const whole = text.join("");
    if (whole !== "") joined.push(whole);
    text = [];
    if (node !== undefined) joined.push(node);
  }
  return joined;
}

/**
 * The address as the browser will read it, or undefined for anything but http and https, and for one that carries a user name
 * (`https://bank.example@evil.example`).
 *
 * @param {string} raw
 * @returns {string | undefined}
 */
export function safeHref(raw) {
  if (!/^https?:\/\//i.test(raw) || raw.length > maxUrlLength) return undefined;
  if (!URL.canParse(raw)) return undefined;
  const url = new URL(raw);
  if ((url.protocol !== "https:" && url.protocol !== "http:") || url.username !== "" || url.password !== "") return undefined;
  return url.href;
}

/**
 * Without the punctuation that ends the sentence rather than the address.
 *
 * @param {string} url
 */
function trimUrl(url) {
  let unclosed = 0;
  for (const char of url) unclosed += char === "(" ? 1 : char === ")" ? -1 : 0;
  let end = url.length;
  for (; end > 0; end -= 1) {
    const last = url.charAt(end - 1);
    if (last === ")" ? unclosed >= 0 : !/[.,;:!?'*_~\]]/.test(last)) break;
    if (last === ")") unclosed += 1;
  }
  return url.slice(0, end);
}

/**
 * Characters that reorder what is read make code and addresses lie; they are shown as a replacement mark.
 *
 * @param {string} text
 */
const showHidden = (text) => text.replace(/[\u202A-\u202E\u2066-\u2069]/g, "\uFFFD");
