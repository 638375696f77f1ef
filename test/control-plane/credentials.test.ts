import fc from "fast-check";
import { expect, test } from "vitest";
import {
  bearerOf,
  hashPrefixOf,
  loggedToken,
  mintAdminKey,
  mintTenantToken,
  parseAdminKey,
  parseCredential,
  parseTenantToken,
} from "../../control-plane/credentials.ts";
import { parseTenantId } from "../../domain/tenant.ts";

const hex = "0123456789abcdef0123456789abcdef";
const slugs = fc.stringMatching(/^[a-z0-9](-?[a-z0-9]){0,15}$/);

test("a minted token is parsed to its tenant and its hash", () => {
  fc.assert(
    fc.property(slugs, (slug) => {
      const { token, hash } = mintTenantToken(parseTenantId(slug));

      expect(token).toMatch(/^tk_.+_[0-9a-f]{32}$/);
      expect(parseTenantToken(token)).toEqual({ kind: "tenant", tenantId: slug, hash });
      expect(parseAdminKey(token)).toBeUndefined();
    }),
  );
});

test("a minted admin key is parsed to its id, and another id cannot be minted", () => {
  const { key, keyId, hash } = mintAdminKey("ops1");

  expect(parseCredential(key)).toEqual({ kind: "admin", keyId, hash });
  expect(() => mintAdminKey("Ops")).toThrow(TypeError);
  expect(() => mintAdminKey("a".repeat(17))).toThrow(TypeError);
});

test.each([
  `tk_acme_${hex.toUpperCase()}`,
  `tk_acme_${hex}0`,
  `tk_acme_${hex.slice(1)}`,
  `tk_acme_${hex}\n`,
  ` tk_acme_${hex}`,
  `tk__${hex}`,
  `tk_a_b_${hex}`,
  `tk_-acme_${hex}`,
  `tk_acme-_${hex}`,
  `tk_a--b_${hex}`,
  `tk_Acme_${hex}`,
  `tk_acmé_${hex}`,
  `tk_${"a".repeat(33)}_${hex}`,
  `TK_acme_${hex}`,
  `ak_Root_${hex}`,
  `ak_a-b_${hex}`,
  `ak_${"a".repeat(17)}_${hex}`,
  `ak_root_${hex} `,
  "",
  "tk_acme_",
])("%j is no credential", (raw) => {
  expect(parseCredential(raw)).toBeUndefined();
});

test("a tenant of 32 characters has tokens", () => {
  expect(parseTenantToken(`tk_${"a".repeat(32)}_${hex}`)?.tenantId).toBe("a".repeat(32));
});

test("parsing is total: no text makes it throw", () => {
  const hostile = fc.oneof(
    fc.string({ unit: "binary", maxLength: 200 }),
    fc.array(fc.constantFrom("tk_", "ak_", "_", "-", "a", "0", hex, "\0", "\n"), { maxLength: 40 }).map((parts) => parts.join("")),
  );
  fc.assert(
    fc.property(hostile, (raw) => {
      const parsed = parseCredential(raw);
      if (parsed?.kind === "tenant") expect(parseTenantId(parsed.tenantId)).toBe(parsed.tenantId);
      bearerOf(raw);
      bearerOf(`Bearer ${raw}`);
    }),
  );
});

test("parsing is linear: a megabyte of the worst text costs nothing", () => {
  const worst = [
    `tk_${"a-".repeat(500_000)}`,
    `tk_${"a".repeat(1_000_000)}`,
    `Bearer ${" ".repeat(1_000_000)}`,
    `Bearer ${"tk_".repeat(300_000)}`,
  ];
  const startedAt = performance.now();

  for (let round = 0; round < 100; round++) for (const text of worst) expect(parseCredential(bearerOf(text) ?? text)).toBeUndefined();

  expect(performance.now() - startedAt).toBeLessThan(1_000);
});

test.each([
  [undefined, undefined],
  ["", undefined],
  [`Bearer tk_acme_${hex}`, `tk_acme_${hex}`],
  [`bearer tk_acme_${hex}`, `tk_acme_${hex}`],
  [`Basic tk_acme_${hex}`, undefined],
  [`Bearer  tk_acme_${hex}`, undefined],
  [`Bearer tk_acme_${hex}, Bearer x`, undefined],
  [`Bearer tk_acme_${hex} `, undefined],
])("the header %j holds %j", (header, credential) => {
  expect(bearerOf(header)).toBe(credential);
});

test("a log learns the tenant and 8 hex of the hash, nothing of the secret", () => {
  const tenantId = parseTenantId("acme");
  const { token, hash } = mintTenantToken(tenantId);

  const logged = loggedToken(tenantId, hash);

  expect(logged).toBe(`tk_acme_…${hashPrefixOf(hash)}`);
  expect(logged).not.toContain(token.slice(-32, -24));
});
