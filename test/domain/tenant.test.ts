import fc from "fast-check";
import { expect, test } from "vitest";
import { parseTenantId, taskQueueOf, tenantOfName, tenantSchemaOf } from "../../domain/tenant.ts";

const slug = fc.stringMatching(/^[a-z0-9]([-]?[a-z0-9]){0,15}$/).filter((text) => text.length <= 32);

test.each(["a", "7", "acme", "acme-eu", "a-b-c", "0-0", "a".repeat(32)])("%s is a tenant id", (raw) => {
  expect(parseTenantId(raw)).toBe(raw);
});

test.each([
  "",
  "-",
  "-acme",
  "acme-",
  "ac--me",
  "Acme",
  "ac_me",
  "ac.me",
  "ac me",
  "acmé",
  "acme\n",
  "acme;drop",
  "a".repeat(33),
  `${"a-".repeat(30_000)}!`,
])("%j is not", (raw) => {
  expect(() => parseTenantId(raw)).toThrow(expect.objectContaining({ code: "invalid_tenant_id" }));
});

test("two tenants never share a schema, and a schema's name fits into Postgres'", () => {
  fc.assert(
    fc.property(slug, slug, (one, other) => {
      const [a, b] = [tenantSchemaOf(parseTenantId(one)), tenantSchemaOf(parseTenantId(other))];

      expect(a === b).toBe(one === other);
      expect(a).toMatch(/^tenant_[a-z0-9_]+$/);
      expect(a.length).toBeLessThanOrEqual(63);
    }),
  );
});

test("a queue or a workflow id leads back to its tenant", () => {
  fc.assert(
    fc.property(slug, (raw) => {
      const tenantId = parseTenantId(raw);

      expect(tenantOfName(taskQueueOf(tenantId))).toBe(tenantId);
      expect(tenantOfName(`turn:${tenantId}:api:jane:default`)).toBe(tenantId);
    }),
  );
});

test.each(["", "system", "turn", "turn:", "tenant:_system", "tenant:Acme", "turn:acme globex:x"])(
  "the name %j belongs to no tenant",
  (name) => {
    expect(() => tenantOfName(name)).toThrow(expect.objectContaining({ code: "tenant_violation" }));
  },
);
