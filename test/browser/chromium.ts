import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { type Browser, chromium } from "playwright-core";

/** Playwright brings no browser of its own; the machine's is used. */
export const chromiumPath = findOnPath(["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"]);

export const noChromium = "there is no Chromium or Chrome on PATH (Debian: apt-get install chromium)";

export const launchChromium = async (): Promise<Browser> =>
  await chromium.launch({
    ...(chromiumPath === undefined ? {} : { executablePath: chromiumPath }),
    // As root there is no Chromium sandbox; the rest keeps the browser from calling home.
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });

function findOnPath(names: readonly string[]): string | undefined {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  return folders.flatMap((folder) => names.map((name) => join(folder, name))).find((path) => existsSync(path));
}
