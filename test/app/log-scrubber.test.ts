import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, onTestFinished, test, vi } from "vitest";
import { createLog } from "../../app/log.ts";
import { scrubLine, scrubText } from "../../app/log-scrubber.ts";
import { temporaryHome } from "../storage/fresh-database.ts";

const letters = (length: number): string => randomBytes(length).toString("base64url").replaceAll(/[_-]/g, "x").slice(0, length);
const hex = randomBytes(16).toString("hex");

/** Secrets in the shapes that they have: each with the part that must not be seen. */
const secrets: readonly (readonly [what: string, text: string, secret: string])[] = [
  ["a tenant's token", `tk_acme-1_${hex}`, hex],
  ["an admin key", `ak_root1_${hex}`, hex],
  ["a token in capitals", `tk_acme_${hex.toUpperCase()}`, hex.toUpperCase()],
  ...["sk-", "sk-proj-", "sk-ant-api03-", "rk-"].map((prefix) => {
    const secret = letters(40);
    return [`a provider's key ${prefix}`, `${prefix}${secret}`, secret] as const;
  }),
  ...["gsk_", "xai-", "AIza", "ghp_", "github_pat_", "xoxb-", "xapp-", "AGE-SECRET-KEY-1"].map((prefix) => {
    const secret = prefix === "AGE-SECRET-KEY-1" ? letters(58).toUpperCase() : letters(40);
    return [`a key ${prefix}`, `${prefix}${secret}`, secret] as const;
  }),
  ["a key of a cloud", "AKIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"],
  ["Telegram's bot token", `123456789:${"A".repeat(35)}`, "A".repeat(35)],
  ["Discord's bot token", `${"M".repeat(24)}.${"G".repeat(6)}.${"d".repeat(38)}`, "d".repeat(38)],
  ["a signed token", `eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.${letters(43)}`, "eyJzdWIiOiIxIn0"],
  ["a bearer header", `Authorization: Bearer ${hex}${hex}`, hex],
  ["a bearer header in small letters", `authorization: bearer ${hex}`, hex],
  ["a basic header", "Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"],
  ["a password in a URL", "postgres://claw:s3cr3t-word@127.0.0.1/db", "s3cr3t-word"],
  ["a private key", `-----BEGIN PRIVATE KEY-----\n${hex}\n${hex}\n-----END PRIVATE KEY-----`, hex],
  ["a private key of RSA that was cut", `-----BEGIN RSA PRIVATE KEY-----\n${hex}\n${hex}`, hex],
];

test.each(secrets)("%s is taken out, wherever it stands", (_what, text, secret) => {
  for (const around of [
    text,
    `before ${text} after`,
    `"${text}"`,
    `key=${text}&x=1`,
    `${"x ".repeat(4_090)}${text}`,
    `\u001b[31m${text}\u001b[0m`,
  ])
    expect(scrubText(around)).not.toContain(secret);
  const line = scrubLine(JSON.stringify({ msg: text, deep: { list: [{ text }] }, [text]: 1, json: JSON.stringify({ text }) }));
  expect(line).not.toContain(secret);
});

test("none of them reaches gateway.log: as message, field, error, cause or field of an error", async () => {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  const log = await createLog(home);

  for (const [, text] of secrets) {
    const error = Object.assign(new Error(`failed with ${text}`, { cause: new Error(text) }), {
      url: text,
      headers: { authorization: text },
    });
    log.info(text);
    log.warn({ field: text, list: [text], child: { cookie: text } }, `message ${text}`);
    log.error({ err: error }, "a request failed");
  }
  log.info({ password: "short", token: "abc", apiKey: "k1", authorization: "x" }, "named secrets");
  const text = await vi.waitFor(() => {
    const written = readFileSync(join(home, "gateway.log"), "utf8");
    expect(written.split("\n")).toHaveLength(3 * secrets.length + 2);
    return written;
  }, 30_000);

  for (const [what, , secret] of secrets) expect(text, what).not.toContain(secret);
  for (const line of text.trimEnd().split("\n"))
    expect(JSON.parse(line)).toMatchObject({ time: expect.any(String), level: expect.any(Number) });
  expect(JSON.parse(text.trimEnd().split("\n").at(-1) ?? "")).toMatchObject({
    password: "[redacted]",
    token: "[redacted]",
    apiKey: "[redacted]",
    authorization: "[redacted]",
  });
  expect(text).toContain("tk_acme-1_…");
});

test("what is no secret is kept as it was", () => {
  const plain = {
    msg: "a turn failed\n    at run (file:///app/main.ts:12:3)",
    turnId: "trn_01JDZX5W6Q7R8S9T0V1W2X3Y4Z",
    requestId: "req_01JDZX5W6Q7R8S9T0V1W2X3Y4Z",
    hash: "0".repeat(64),
    url: "http://127.0.0.1:18789/v1/chat/completions",
    time: "2026-11-23T10:00:00.000Z",
    session: "wa:+15551234567:default",
    tokens: 42,
    nothing: null,
    ok: true,
  };

  expect(JSON.parse(scrubLine(JSON.stringify(plain)))).toEqual(plain);
});

test("no control character, no endless field and no second line gets through", () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 12 }), fc.string({ unit: "binary" }), (value, text) => {
      const line = scrubLine(JSON.stringify({ value, text, large: text.repeat(2_000) }));
      // oxlint-disable-next-line no-control-regex
      expect(line).toMatch(/^[^\u0000-\u001f\u007f-\u009f]*\n$/u);
      expect(Buffer.byteLength((JSON.parse(line) as { large: string }).large)).toBeLessThanOrEqual(8 * 1024);
    }),
    { numRuns: 300 },
  );
  expect(scrubText(`\u001b]0;title\u0007\u009b31mred\u0085`)).toBe("red ");
  expect(Buffer.byteLength(scrubText("é".repeat(100_000)))).toBeLessThanOrEqual(8 * 1024);
  expect(scrubLine("not JSON \u001b[0m")).toBe('{"msg":"not JSON "}\n');
});

test("hostile text costs linear time", () => {
  for (const text of [
    "eyJ".repeat(20_000),
    "-----BEGIN ".repeat(6_000),
    "1:".repeat(30_000),
    "a.".repeat(30_000),
    `${"M".repeat(60_000)}.`,
    "://".repeat(20_000),
    "Bearer ".repeat(9_000),
  ]) {
    const startedAt = performance.now();
    scrubText(text);
    expect(performance.now() - startedAt, text.slice(0, 12)).toBeLessThan(2_000);
  }
});
