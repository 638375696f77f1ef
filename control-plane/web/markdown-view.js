import { parseMarkdown } from "./markdown.js";

/**
 * Shows Markdown in `root` and keeps what did not change, so that a long answer does not flicker while it is written. Elements are
 * made one by one and text is set as text: nothing that a model wrote is ever read as HTML.
 *
 * @param {HTMLElement} root
 */
export function createMarkdownView(root) {
  /** @type {{ source: string, block: import("./markdown.js").Block, element: HTMLElement }[]} */
  let shown = [];
  return {
    /** @param {string} text */
    show(text) {
      const parsed = parseMarkdown(text);
      shown.slice(parsed.length).forEach(({ element }) => element.remove());
      shown = parsed.map(({ source, block }, index) => {
        const old = shown[index];
        if (old?.source === source && old.block.tag === block.tag) return old;
        if (old && growsCode(old, block)) return { ...old, source, block };
        const element = blockElement(block);
        if (old) old.element.replaceWith(element);
        else root.append(element);
        return { source, block, element };
      });
    },
  };
}

/**
 * A code block that grows keeps its element, and with it the reader's selection and scroll position.
 *
 * @param {{ block: import("./markdown.js").Block, element: HTMLElement }} old
 * @param {import("./markdown.js").Block} block
 */
function growsCode({ block: before, element }, block) {
  if (before.tag !== "pre" || block.tag !== "pre" || before.language !== block.language) return false;
  const code = element.querySelector("code");
  if (code) code.textContent = block.text;
  return true;
}

/**
 * @param {import("./markdown.js").Block} block
 * @returns {HTMLElement}
 */
function blockElement(block) {
  switch (block.tag) {
    case "p":
    case "h3":
    case "h4":
    case "h5":
    case "h6":
      return make(block.tag, { dir: "auto" }, inlineNodes(block.children));
    case "pre":
      return codeElement(block.language, block.text);
    case "ol":
      return make("ol", block.start === 1 ? {} : { start: String(block.start) }, block.items.map(itemElement));
    case "ul":
      return make("ul", {}, block.items.map(itemElement));
    case "blockquote":
      return make("blockquote", {}, block.children.map(blockElement));
    case "table":
      return tableElement(block);
    case "hr":
      return make("hr");
  }
}

/** @param {readonly import("./markdown.js").Block[]} blocks */
function itemElement(blocks) {
  const [first, ...rest] = blocks;
  // The usual item is one line: no paragraph around it.
  if (first?.tag === "p") return make("li", { dir: "auto" }, [...inlineNodes(first.children), ...rest.map(blockElement)]);
  return make("li", {}, blocks.map(blockElement));
}

/** @type {(language: string, text: string) => HTMLElement} */
function codeElement(language, text) {
  const code = make("code", {}, [text]);
  const copy = copyButton(() => code.textContent ?? "");
  return make("div", { class: "code" }, [
    make("div", { class: "code-head" }, [make("span", {}, [language || "text"]), copy]),
    make("pre", { tabindex: "0", dir: "ltr" }, [code]), // focusable, so that the keyboard can scroll it
  ]);
}

/** @param {Extract<import("./markdown.js").Block, { tag: "table" }>} table */
function tableElement({ align, head, rows }) {
  /** @type {(tag: "th" | "td", cells: readonly import("./markdown.js").Inline[][]) => HTMLElement} */
  const row = (tag, cells) =>
    make(
      "tr",
      {},
      cells.map((cell, column) => make(tag, align[column] ? { class: `align-${align[column]}` } : {}, inlineNodes(cell))),
    );
  return make("div", { class: "table" }, [
    make("table", {}, [
      make("thead", {}, [row("th", head)]),
      make(
        "tbody",
        {},
        rows.map((cells) => row("td", cells)),
      ),
    ]),
  ]);
}

/**
 * @param {readonly import("./markdown.js").Inline[]} nodes
 * @returns {(Node | string)[]}
 */
function inlineNodes(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") return node;
    switch (node.tag) {
      case "br":
        return make("br");
      case "code":
        return make("code", {}, [node.text]);
      case "a":
        return make(
          "a",
          { href: node.href, title: node.href, rel: "noopener noreferrer nofollow", target: "_blank" },
          inlineNodes(node.children),
        );
      default:
        return make(node.tag, {}, inlineNodes(node.children));
    }
  });
}

/** @param {() => string} textOf */
export function copyButton(textOf) {
  const button = make("button", { type: "button", class: "copy" }, ["Copy"]);
  const tell = (/** @type {string} */ word) => {
    button.textContent = word;
    setTimeout(() => (button.textContent = "Copy"), 1600);
  };
  button.addEventListener("click", () => {
    // There is no clipboard where the origin is not secure: plain HTTP from another machine.
    const copied = navigator.clipboard?.writeText(textOf()) ?? Promise.reject(new Error("no clipboard"));
    copied.then(
      () => tell("Copied"),
      () => tell("Not allowed"),
    );
  });
  return button;
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Readonly<Record<string, string>>} attributes
 * @param {readonly (Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  for (const child of children) element.append(child);
  return element;
}
