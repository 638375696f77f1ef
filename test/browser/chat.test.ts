import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { startProduct } from "../product.ts";
import { chromiumPath, launchChromium, noChromium } from "./chromium.ts";

/** A person's browser against the running product. */
describe("the chat page in a real browser", () => {
  let product: Awaited<ReturnType<typeof startProduct>>;
  let browser: Browser;
  let context: BrowserContext;
  let page: Page;
  let complaints: string[] = [];

  beforeAll(async () => {
    if (chromiumPath === undefined) return;
    product = await startProduct();
    browser = await launchChromium();
  }, 120_000);

  afterAll(async () => {
    await browser?.close();
    await product?.stop();
  });

  beforeEach(async ({ skip }) => {
    skip(chromiumPath === undefined, noChromium);
    context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
    page = await context.newPage();
    page.setDefaultTimeout(20_000);
    complaints = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text());
    });
    await page.goto(product.url);
  });

  afterEach(async () => {
    await context?.close();
    expect(complaints).toEqual([]); // a breach of the content security policy is one
  });

  test("a person signs in, asks, and reads an answer with what it used", async () => {
    await signIn();
    await say("Hello, who are you?");

    await page.getByText(/\d+ tokens in · \d+ out · /).waitFor();
    expect((await page.locator(".answer").innerText()).trim()).not.toBe("");
    expect(await page.getByRole("combobox", { name: "Model" }).locator("option").count()).toBeGreaterThan(1);
  }, 60_000);

  test("a wrong token is told kindly, and the right one then works", async () => {
    await page.getByLabel("Tenant token").fill(`tk_nobody_${"0".repeat(32)}`);
    await page.keyboard.press("Enter");
    await page.getByText("This token was not accepted.").waitFor();

    await signIn();
  }, 60_000);

  test("the token is kept in this tab only", async () => {
    const addresses: string[] = [];
    page.on("request", (request) => addresses.push(request.url()));
    await signIn();
    await say("Hello");
    await page.locator(".foot").waitFor();

    const elsewhere = await page.evaluate(
      "JSON.stringify({ local: { ...localStorage }, cookie: document.cookie, html: document.documentElement.outerHTML })",
    );
    expect(String(elsewhere)).not.toContain(product.token);
    expect(addresses.join("\n")).not.toContain(product.token);
    expect(page.url()).not.toContain(product.token);

    const otherTab = await context.newPage();
    await otherTab.goto(product.url);
    await otherTab.getByLabel("Tenant token").waitFor();
  }, 60_000);

  test("a conversation is one session until a new one is begun, and survives a reload", async () => {
    const sessions: string[] = [];
    page.on("request", (request) => {
      const session = request.headers()["x-openclaw-session"];
      if (session !== undefined) sessions.push(session);
    });
    await signIn();
    await say("First");
    await page.locator(".foot").waitFor();
    await page.reload();
    await page.locator(".foot").waitFor();
    await say("Second");
    await page.locator(".foot").nth(1).waitFor();
    await page.getByRole("button", { name: "New conversation" }).click();
    await say("Third");
    await page.locator(".foot").waitFor();

    const [first, second, third] = sessions;
    expect(first).toMatch(/^web:[0-9a-f]{32}:default$/);
    expect(second).toBe(first);
    expect(third).not.toBe(first);
    expect(await page.locator(".mine").count()).toBe(1);
  }, 90_000);

  test("Shift+Enter starts a new line, Enter sends, and an empty message is not sent", async () => {
    await signIn();
    const draft = page.getByLabel("Message", { exact: true });
    await draft.fill("   ");
    await page.keyboard.press("Enter");
    expect(await page.locator(".mine").count()).toBe(0);

    await draft.fill("one");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("two");
    await page.keyboard.press("Enter");
    await page.locator(".foot").waitFor();
    expect(await page.locator(".mine").innerText()).toContain("one\ntwo");
  }, 60_000);

  test("a hostile answer stays text", async () => {
    const hostile = [
      "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
      "[a](javascript:window.pwned=1) ![spy](https://evil.example/x.png) [real](https://ok.example/)",
      "```html\n<script>window.pwned=1</script>\n```",
    ].join("\n\n");
    const foreign: string[] = [];
    page.on("request", (request) => void (request.url().startsWith(product.url) || foreign.push(request.url())));
    await answerWith({ body: sse({ choices: [{ delta: { content: hostile } }] }, "[DONE]") });
    await signIn();
    await say("Hello");
    await page.locator(".foot").waitFor();

    expect(await page.evaluate("window.pwned")).toBeUndefined();
    expect(await page.locator(".answer :is(script, img, iframe, [onerror])").count()).toBe(0);
    const links = await page
      .locator(".answer a")
      .evaluateAll((found) => found.map((link) => [link.getAttribute("href"), link.getAttribute("rel")]));
    expect(links.map(([href]) => href)).toEqual(["https://evil.example/x.png", "https://ok.example/"]);
    expect(links.every(([, rel]) => rel?.includes("noopener"))).toBe(true);
    expect(foreign).toEqual([]);
  }, 60_000);

  test("a used-up quota tells when to come back", async () => {
    const error = { message: "The requests of this minute are used up.", type: "quota_exceeded", param: null, code: "requests_per_minute" };
    await answerWith({ status: 429, headers: { "retry-after": "2" }, body: JSON.stringify({ error }) });
    await signIn();
    await say("Hello");

    await page.getByText("You can go on in 2 s.").waitFor();
    expect(await page.getByRole("button", { name: "Try again in" }).isDisabled()).toBe(true);
    await say("Hello again");
    await expect.poll(async () => await page.locator(".mine").count(), { timeout: 20_000 }).toBe(2);
    await expect.poll(async () => await page.locator(".notice").allInnerTexts(), { timeout: 20_000 }).toHaveLength(1);

    await page.unroute("**/v1/chat/completions");
    await page.getByRole("button", { name: "Try again", exact: true }).click();
    await page.locator(".foot").waitFor();
    expect(await page.locator(".notice").count()).toBe(0);
    expect(await page.locator(".mine").count()).toBe(2);
  }, 60_000);

  test("an error inside the stream is shown after what had come", async () => {
    const error = { message: "The model provider did not answer.", type: "provider_error", param: null, code: "provider_error" };
    await answerWith({ body: sse({ choices: [{ delta: { content: "Half an" } }] }, { error }) });
    await signIn();
    await say("Hello");

    await page.getByText("The model provider did not answer.").waitFor();
    expect(await page.locator(".answer").innerText()).toBe("Half an");
  }, 60_000);

  test("stopping leaves the turn to the server, and its answer can be fetched as the same turn", async () => {
    const keys: string[] = [];
    page.on("request", (request) => {
      const key = request.headers()["idempotency-key"];
      if (key !== undefined) keys.push(key);
    });
    await page.route("**/v1/chat/completions", () => undefined); // never answered
    await signIn();
    await say("Hello");
    await page.getByRole("button", { name: "Stop waiting" }).click();
    await page.getByText("The turn goes on without this page").waitFor();

    await page.unroute("**/v1/chat/completions");
    await page.getByRole("button", { name: "Show the answer" }).click();
    await page.locator(".foot").waitFor();
    expect(keys).toHaveLength(2);
    expect(keys[1]).toBe(keys[0]);
  }, 60_000);

  test("a token that stops being accepted leads back to the door, and the conversation is kept", async () => {
    await signIn();
    await say("First");
    await page.locator(".foot").waitFor();
    const error = { message: "The API key is missing or not valid.", type: "invalid_request_error", param: null, code: "invalid_api_key" };
    await answerWith({ status: 401, body: JSON.stringify({ error }) });
    await say("Second");
    await page.getByText("This token is no longer accepted.").waitFor();

    await page.unroute("**/v1/chat/completions");
    await signIn();
    await page.getByRole("button", { name: "Show the answer" }).click();
    await page.locator(".foot").nth(1).waitFor();
    expect(await page.locator(".mine").count()).toBe(2);
  }, 60_000);

  test("it fits a telephone", async () => {
    await page.setViewportSize({ width: 360, height: 640 });
    await signIn();
    await answerWith({
      body: sse({ choices: [{ delta: { content: `\`\`\`\n${"wide ".repeat(60)}\n\`\`\`\n\n${"word".repeat(80)}` } }] }, "[DONE]"),
    });
    await say("Hello");
    await page.locator(".foot").waitFor();

    expect(await page.evaluate("document.documentElement.scrollWidth")).toBeLessThanOrEqual(360);
    expect(await page.evaluate("document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth")).toBe(
      true,
    );
  }, 60_000);

  async function signIn(): Promise<void> {
    await page.getByLabel("Tenant token").fill(product.token);
    await page.keyboard.press("Enter");
    await page.getByLabel("Message", { exact: true }).waitFor();
  }

  async function say(text: string): Promise<void> {
    await page.getByLabel("Message", { exact: true }).fill(text);
    await page.keyboard.press("Enter");
  }

  /** The page meets the given answer instead of the product's. */
  async function answerWith({
    status = 200,
    headers = {},
    body,
  }: {
    status?: number;
    headers?: Record<string, string>;
    body: string;
  }): Promise<void> {
    const contentType = status === 200 ? "text/event-stream" : "application/json";
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ status, contentType, headers, body }));
  }
});

const sse = (...data: readonly unknown[]): string =>
  data.map((item) => `data: ${typeof item === "string" ? item : JSON.stringify(item)}\n\n`).join("");
