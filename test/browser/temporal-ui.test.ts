import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningProduct, startProduct } from "../product.ts";
import { chromiumPath, launchChromium, noChromium } from "./chromium.ts";

/** An operator's browser against the running product. */
describe("Temporal's Web UI in a real browser", () => {
  let product: RunningProduct;
  let browser: Browser;
  let context: BrowserContext;
  let page: Page;
  let complaints: string[] = [];
  let foreign: string[] = [];

  beforeAll(async () => {
    if (chromiumPath === undefined) return;
    product = await startProduct();
    browser = await launchChromium();
    const answer = await fetch(`${product.url}/v1/chat/completions`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${product.token}`,
        "content-type": "application/json",
        "x-openclaw-session": "web:browser:default",
      },
      body: JSON.stringify({ model: "default", messages: [{ role: "user", content: "hello" }] }),
    });
    expect(answer.status).toBe(200);
  }, 120_000);

  afterAll(async () => {
    await browser?.close();
    await product?.stop();
  });

  beforeEach(async ({ skip }) => {
    skip(chromiumPath === undefined, noChromium);
    context = await browser.newContext({ viewport: { width: 1400, height: 900 } });
    page = await context.newPage();
    page.setDefaultTimeout(30_000);
    complaints = [];
    foreign = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && /Content Security Policy|Trusted/i.test(message.text())) complaints.push(message.text());
    });
    page.on("request", (request) => {
      const { origin, protocol } = new URL(request.url());
      if (origin !== product.url && !["data:", "blob:"].includes(protocol)) foreign.push(request.url());
    });
  });

  afterEach(async () => {
    await context?.close();
    expect(complaints).toEqual([]);
    expect(foreign).toEqual([]);
  });

  async function signIn(): Promise<void> {
    await page.getByLabel("Admin key").fill(product.adminKey);
    await page.keyboard.press("Enter");
  }

  test("an operator asks for a workflow, signs in, and reads it", async () => {
    const workflow = "turn:demo:web:browser:default";
    await page.goto(`${product.url}/temporal/namespaces/default/workflows?query=${encodeURIComponent("WorkflowType = 'turn'")}`);
    await signIn();
    const decoded = page.waitForResponse((response) => response.url() === `${product.url}/temporal-codec/decode`);
    await page.getByRole("link", { name: workflow }).first().click();
    await page.waitForURL(/\/temporal\/namespaces\/default\/workflows\/turn/);
    await page
      .getByText(/model call 1 of trn_/)
      .first()
      .waitFor();
    await page.getByText('"web:browser:default"').first().waitFor(); // of the workflow's input

    expect(page.url()).toMatch(new RegExp(`^${product.url}/temporal/namespaces/default/workflows/turn`));
    expect((await decoded).status()).toBe(200);
    await page.screenshot({ path: join(tmpdir(), "openclaw-temporal-ui.png") });
    expect(await page.evaluate("document.cookie")).not.toContain("openclaw_admin");
  }, 120_000);

  test("a wrong key is told kindly, and a way that leads elsewhere is not followed", async () => {
    await page.goto(`${product.url}/admin?next=${encodeURIComponent("//evil.example/temporal")}`);
    await page.getByLabel("Admin key").fill(`ak_nobody_${"0".repeat(32)}`);
    await page.keyboard.press("Enter");
    await page.getByText("This key was not accepted.").waitFor();

    await signIn();
    await page.getByRole("heading", { name: "Signed in" }).waitFor();
    expect(new URL(page.url()).origin).toBe(product.url);
    await page.screenshot({ path: join(tmpdir(), "openclaw-admin.png") });

    for (const next of [
      "https://evil.example/temporal",
      "/\\evil.example",
      "/temporal/../v1/tenants",
      "javascript:alert(1)",
      "/temporalevil",
    ]) {
      await page.goto(`${product.url}/admin?next=${encodeURIComponent(next)}`);
      await page.getByRole("heading", { name: "Signed in" }).waitFor();
      expect(new URL(page.url()).pathname).toBe("/admin");
    }
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Admin key").waitFor();
    await page.goto(`${product.url}/temporal`);
    await page.getByLabel("Admin key").waitFor();
  }, 120_000);

  test("the end of a key ends the sign-in of an open page, and a read key ends no workflow", async () => {
    const call = async (path: string, method: string, body?: unknown): Promise<Response> =>
      await fetch(product.url + path, {
        method,
        headers: { authorization: `Bearer ${product.adminKey}`, ...(body === undefined ? {} : { "content-type": "application/json" }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
    const { key } = (await (await call("/v1/admin-keys", "POST", { id: "guest", scopes: ["read"] })).json()) as { key: string };
    await page.goto(`${product.url}/temporal/namespaces/default/workflows`);
    await page.getByLabel("Admin key").fill(key);
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: "turn:demo:web:browser:default" }).first().waitFor();

    const statusOf = async (path: string, method: string): Promise<unknown> =>
      await page.evaluate(`fetch(${JSON.stringify(path)}, { method: ${JSON.stringify(method)} }).then(({ status }) => status)`);
    const workflows = "/temporal/api/v1/namespaces/default/workflows";
    expect(await statusOf(workflows, "GET")).toBe(200);
    expect(await statusOf(`${workflows}/tenant%3Ademo/terminate`, "POST")).toBe(403);

    expect((await call("/v1/admin-keys/guest", "DELETE")).status).toBe(202);

    expect(await statusOf(workflows, "GET")).toBe(401);
    await page.reload();
    await page.getByLabel("Admin key").waitFor();
    expect(new URL(page.url()).pathname).toBe("/admin");
  }, 120_000);

  test("a browser that keeps no cookie is told why it is not signed in", async () => {
    // As over plain http off this machine, where the cookie is bound to TLS.
    await page.route("**/admin/session", async (route) => {
      const { cookie: _kept, ...headers } = await route.request().allHeaders();
      await context.clearCookies();
      await route.continue({ headers });
    });
    await page.goto(`${product.url}/admin?next=/temporal`);

    await signIn();

    await page.getByText("This browser did not keep the sign-in.").waitFor();
    expect(new URL(page.url()).pathname).toBe("/admin");
  }, 60_000);
});
