import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach } from "vitest";

/** Homes of the products that this file's tests started. */
export const homes = new Set<string>();

/** A failure on another machine leaves only the tests' output, so what the products logged last is part of it. */
afterEach(({ task }) => {
  if (task.result?.state !== "fail") return;
  for (const home of homes) console.error(`${home} logged last:\n${lastLines(join(home, "gateway.log"))}`);
});

function lastLines(path: string): string {
  try {
    return readFileSync(path, "utf8").split("\n").slice(-40).join("\n");
  } catch (error) {
    return String(error);
  }
}
