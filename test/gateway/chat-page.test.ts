import fc from "fast-check";
import fastify, { type FastifyInstance } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { explain } from "../../control-plane/web/chat-errors.js";
import { parseMarkdown, safeHref } from "../../control-plane/web/markdown.js";
import { type SseEvent, SseParser } from "../../control-plane/web/sse.js";
import { createPageRoutes } from "../../gateway/page-routes.ts";

describe("the WebChat page", () => {
  let app: FastifyInstance;
  beforeAll(async () => {
    app = fastify();
    await app.register(createPageRoutes());
  });
  afterAll(() => app.close());

  test("is served without a token, under a policy that runs our scripts only", async () => {
    const page = await app.inject("/chat");

    expect(page.statusCode).toBe(200);
    expect(page.headers["content-type"]).toBe("text/html; charset=utf-8");
    const policy = String(page.headers["content-security-policy"]).split("; ");
    expect(policy).toEqual(expect.arrayContaining(["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"]));
    expect(policy).toEqual(expect.arrayContaining(["frame-ancestors 'none'", "base-uri 'none'", "require-trusted-types-for 'script'"]));
    expect(policy.join()).not.toMatch(/unsafe|\*|https?:/);
    expect(page.headers).toMatchObject({
      "cross-origin-opener-policy": "same-origin",
      "cross-origin-resource-policy": "same-origin",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
    });
  });

  test("holds no inline script, style or handler, and loads nothing from elsewhere", async () => {
    const { body } = await app.inject("/chat");

    expect(body).not.toMatch(/<script(?![^>]*\ssrc=)/);
    expect(body).not.toMatch(/<style|\sstyle=|\son\w+=|javascript:|https?:\/\//i);
  });

  test("finds every file that it names, and its modules every module", async () => {
    const named = new Set<string>();
    const toVisit = ["/chat"];
    for (let path = toVisit.pop(); path !== undefined; path = toVisit.pop()) {
      if (named.has(path)) continue;
      named.add(path);
      const file = await app.inject(path);
      expect(file.statusCode, path).toBe(200);
      const links = [...file.body.matchAll(/(?:src|href)="(\/[^"#]+)"/g), ...file.body.matchAll(/ from "\.(\/[^"]+)"/g)];
      toVisit.push(...links.map((link) => link[1] ?? ""));
    }

    expect([...named]).toEqual(expect.arrayContaining(["/chat.css", "/chat.js", "/sse.js", "/markdown.js", "/favicon.svg"]));
  });

  test.each(["/chat.js", "/chat.css", "/favicon.svg"])(
    "%s is asked for again each time, and answered 304 while it is the same",
    async (url) => {
      const first = await app.inject(url);
      const again = await app.inject({ url, headers: { "if-none-match": `"other", W/${String(first.headers.etag)}` } });

      expect(first.headers["cache-control"]).toBe("no-cache");
      expect(first.headers["x-content-type-options"]).toBe("nosniff");
      expect(again.statusCode).toBe(304);
      expect(again.body).toBe("");
      expect(again.headers.etag).toBe(first.headers.etag);
    },
  );

  test("the root leads to it", async () => {
    const root = await app.inject("/");

    expect(root.statusCode).toBe(302);
    expect(root.headers.location).toBe("/chat");
  });

  test.each(["/chat.html", "/..%2fpackage.json", "/chat/../package.json", "/web/chat.js"])("%s does not exist", async (url) => {
    expect((await app.inject(url)).statusCode).toBe(404);
  });

  test("never builds markup from text", async () => {
    const scripts = ["/chat.js", "/answer-view.js", "/markdown-view.js", "/markdown.js", "/gateway-client.js"];
    const sources = await Promise.all(scripts.map(async (url) => (await app.inject(url)).body));

    expect(sources.join("\n")).not.toMatch(
      /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|localStorage/,
    );
  });
});

describe("the event stream", () => {
  test("reads fields, comments, line ends and several data lines as the standard says", () => {
    const bytes = encode(": hello\r\nevent: note\rid: 7\ndata: one\ndata:two\n\ndata\n\n\ndata: cut off");

    expect(parse([bytes])).toEqual([
      { event: "note", data: "one\ntwo", id: "7" },
      { event: "message", data: "", id: "7" },
    ]);
  });

  test("gives the same events however the bytes are cut", () => {
    const line = fc.oneof(
      fc.string({ unit: "binary" }).map((value) => `data: ${value.replace(/[\r\n]/g, "")}`),
      fc.constantFrom("", "", ": ping", "event: x", "id: 1", "data", "retry: 5", "data: żółć 🦞", "\uFEFFdata: x"),
    );
    const stream = fc.array(fc.tuple(line, fc.constantFrom("\n", "\r", "\r\n")), { maxLength: 30 });

    fc.assert(
      fc.property(stream, fc.array(fc.nat(400), { maxLength: 40 }), (lines, cuts) => {
        const bytes = encode(lines.flat().join(""));
        expect(parse(cutAt(bytes, cuts))).toEqual(parse([bytes]));
        expect(parse([...bytes].map((byte) => Uint8Array.of(byte)))).toEqual(parse([bytes]));
      }),
    );
  });
});

describe("Markdown of a model", () => {
  test("becomes paragraphs, lists, code, tables and emphasis", () => {
    const blocks = blocksOf("# Hi\n\nA **b _c_** `d*`\n\n1. x\n   - y\n2. z\n\n```ts\n*no*\n```\n\n|a|b|\n|-|-:|\n|1|2|\n\n> q");

    expect(blocks).toEqual([
      { tag: "h3", children: ["Hi"] },
      { tag: "p", children: ["A ", { tag: "strong", children: ["b ", { tag: "em", children: ["c"] }] }, " ", { tag: "code", text: "d*" }] },
      {
        tag: "ol",
        start: 1,
        items: [
          [
            { tag: "p", children: ["x"] },
            { tag: "ul", items: [[{ tag: "p", children: ["y"] }]] },
          ],
          [{ tag: "p", children: ["z"] }],
        ],
      },
      { tag: "pre", language: "ts", text: "*no*" },
      { tag: "table", align: ["", "right"], head: [["a"], ["b"]], rows: [[["1"], ["2"]]] },
      { tag: "blockquote", children: [{ tag: "p", children: ["q"] }] },
    ]);
  });

  test("leaves words with underscores, sums and prices as they are", () => {
    expect(blocksOf("snake_case_name, 2 * 3 * 4, ~5 to ~6, a*")).toEqual([
      { tag: "p", children: ["snake_case_name, 2 * 3 * 4, ~5 to ~6, a*"] },
    ]);
  });

  test("shows a code block whose end has not come yet", () => {
    expect(blocksOf("```js\nlet a")).toEqual([{ tag: "pre", language: "js", text: "let a" }]);
  });

  test.each(["<script>alert(1)</script>", '<img src=x onerror="alert(1)">', "&lt;script&gt;", "<!-- x --><svg/onload=alert(1)>"])(
    "HTML is text: %s",
    (text) => {
      expect(textOf(blocksOf(text))).toBe(text);
    },
  );

  test.each([
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    "\u0001javascript:alert(1)",
    "data:text/html,<script>",
    "vbscript:x",
    "file:///etc/passwd",
    "//evil.example/x",
    "/logout",
    "https://user:secret@evil.example/",
    "https://bank.example@evil.example/",
    "http:evil.example",
    "https://",
  ])("a link to %j is not made", (target) => {
    const blocks = blocksOf(`[word](${target}) <${target}>`);

    expect(safeHref(target)).toBeUndefined();
    expect(linksIn(blocks)).toEqual([]);
    expect(textOf(blocks)).toContain("word");
  });

  test("a picture becomes a link, so that nothing is fetched by looking", () => {
    expect(blocksOf("![cat](https://evil.example/?q=secret)")).toEqual([
      { tag: "p", children: [{ tag: "a", href: "https://evil.example/?q=secret", children: ["cat"] }] },
    ]);
  });

  test("a link says where it really goes", () => {
    const [link] = linksIn(blocksOf('see https://exämple.example/a_(b)). And [**x**](https://a.example "t")'));

    expect(link).toBe("https://xn--exmple-cua.example/a_(b)");
    expect(linksIn(blocksOf("[a\u202Ebank](https://a.example)"))).toEqual(["https://a.example/"]);
    expect(textOf(blocksOf("`a\u202Eb`"))).toBe("a\uFFFDb");
  });

  test("whatever the text: only known tags, only safe links, and no depth that could exhaust the stack", () => {
    const piece = fc.constantFrom(
      ...[
        "*",
        "**",
        "_",
        "~~",
        "`",
        "```",
        "[",
        "](",
        ")",
        "!",
        "<",
        ">",
        "#",
        "- ",
        "1. ",
        "> ",
        "|",
        "|-|",
        "\n",
        "\n\n",
        "  ",
        "\\",
        "a",
        "é🦞",
      ],
      ...["https://a.example", "javascript:alert(1)", "<b onclick=x>", "data:", "\u0000", "\u202E"],
    );

    fc.assert(
      fc.property(fc.array(piece, { maxLength: 120 }), (pieces) => {
        const text = pieces.join("");
        const blocks = parseMarkdown(text);
        expectHarmless(blocks.map(({ block }) => block));
        expect(text.replaceAll("\0", "\uFFFD").includes(blocks[0]?.source ?? "")).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });

  test.each(
    Object.entries({
      stars: "*a ".repeat(30_000),
      "open and other close": "_a".repeat(30_000) + "a* ".repeat(30_000),
      nested: "**a ".repeat(20_000) + "**".repeat(20_000),
      brackets: "[".repeat(100_000),
      "half links": "[](".repeat(30_000),
      quotes: "> ".repeat(50_000),
      "a fence with spaces": `\`\`\`${" ".repeat(100_000)}\``,
      "table rules": `|${" ".repeat(4000)}-x\n`.repeat(30),
      "long addresses": `https://a${")".repeat(2000)} `.repeat(50),
      "lists in lists": Array.from({ length: 3000 }, (_, index) => `${" ".repeat(index % 20)}- x`).join("\n"),
    }),
  )("stays quick on %s", (_name, text) => {
    const startedAt = performance.now();

    const blocks = parseMarkdown(text);

    expect(performance.now() - startedAt).toBeLessThan(1500);
    expectHarmless(blocks.map(({ block }) => block));
  });

  test("what stands before a growing text keeps its source, so that the page keeps its elements", () => {
    const text = "one\n\n- a\n- b\n\n```\nx\n";
    const [first, second] = parseMarkdown(text);
    const [firstLater, secondLater] = parseMarkdown(`${text}y\n`);

    expect([firstLater, secondLater]).toEqual([first, second]);
  });
});

describe("what a person reads when it fails", () => {
  const failure = { status: 429, code: "tokens_per_day", message: "The tokens of this day are used up.", retryAfterSeconds: 11_520 };

  test("a used-up quota tells when it comes back", () => {
    expect(explain(failure)).toMatchObject({
      title: "Today's tokens are used up",
      text: "You can go on in 3 h 12 min.",
      waitSeconds: 11_520,
    });
  });

  test("only a try that may have arrived is repeated as the same turn", () => {
    expect(explain({ ...failure, status: 0, code: "unreachable" }).isSameTurn).toBe(true);
    expect(explain({ ...failure, status: 0, code: "broken_off" }).isSameTurn).toBe(true);
    expect(explain(failure).isSameTurn).toBe(false);
    expect(explain({ ...failure, status: 502, code: "provider_error" }).isSameTurn).toBe(false);
  });

  test("a suspended tenant is not told to try again", () => {
    expect(explain({ ...failure, status: 403, code: "tenant_suspended" }).mayRetry).toBe(false);
  });
});

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

function parse(chunks: readonly Uint8Array[]): SseEvent[] {
  const parser = new SseParser();
  return chunks.flatMap((chunk) => parser.push(chunk));
}

function cutAt(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).toSorted((a, b) => a - b), bytes.length];
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

const blocksOf = (text: string) => parseMarkdown(text).map(({ block }) => block);

const tags = new Set("p h3 h4 h5 h6 pre ul ol blockquote table hr strong em del code a br".split(" "));
const keys = new Set("tag children text language start items align head rows href".split(" "));

/** Every node of a tree, parents first. */
function* nodesOf(tree: unknown, depth = 0): Generator<{ readonly node: unknown; readonly depth: number }> {
  if (Array.isArray(tree)) {
    for (const child of tree) yield* nodesOf(child, depth);
    return;
  }
  yield { node: tree, depth };
  if (typeof tree === "object" && tree !== null) {
    const { children, items, head, rows } = tree as Record<string, unknown>;
    for (const inner of [children, items, head, rows]) if (inner !== undefined) yield* nodesOf(inner, depth + 1);
  }
}

function expectHarmless(tree: unknown): void {
  for (const { node, depth } of nodesOf(tree)) {
    if (depth > 40) expect.fail(`nested ${depth} deep`);
    if (typeof node === "string") continue;
    const { tag, href, ...rest } = node as { tag: string; href?: string };
    if (!tags.has(tag)) expect.fail(`unknown tag ${tag}`);
    if (Object.keys(rest).some((key) => !keys.has(key))) expect.fail(`unknown key in ${JSON.stringify(rest)}`);
    if (href !== undefined && !/^https?:\/\/[^@/]+\//.test(href)) expect.fail(`unsafe link ${href}`);
  }
}

function textOf(tree: unknown): string {
  const texts = [...nodesOf(tree)].map(({ node }) => (typeof node === "string" ? node : ((node as { text?: string }).text ?? "")));
  return texts.join("");
}

const linksIn = (tree: unknown): string[] => [...nodesOf(tree)].flatMap(({ node }) => (node as { href?: string }).href ?? []);
