import fc from "fast-check";
import { expect, test } from "vitest";
import {
  invoiceWorkflowIdOf,
  ownerOfWorkflowId,
  parseTenantId,
  systemOwner,
  taskQueueOf,
  tenantOfInvoiceWorkflow,
  tenantOfLifeWorkflow,
  tenantOfName,
  tenantSchemaOf,
} from "../../domain/tenant.ts";

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

test.each([
  ["tenant:_system", "_system"],
  ["rekey:_system:2", "_system"],
  ["provision:acme", "_system"],
  ["erase:acme", "_system"],
  ["tenant:acme", "acme"],
  ["turn:acme:erase:x", "acme"],
  ["provisions:acme", "acme"],
])("the workflow %s belongs to %s", (workflowId, owner) => {
  expect(ownerOfWorkflowId(workflowId)).toBe(owner);
});

test.each(["erase", "erase:", "erase:acme:", "erase:acme:x", "provision:acme:api.0", "provision:Acme", "tenant:_systems"])(
  "the workflow %j belongs to nobody",
  (workflowId) => {
    expect(() => ownerOfWorkflowId(workflowId)).toThrow(expect.objectContaining({ code: "tenant_violation" }));
  },
);

test("the two workflows of a tenant's life are about a tenant without being its own", () => {
  expect([tenantOfLifeWorkflow("provision:acme"), tenantOfLifeWorkflow("erase:acme-eu")]).toEqual(["acme", "acme-eu"]);
  for (const name of ["tenant:acme", "turn:acme:api.0", "erase:acme:x", "erase:_system", "tenant:_system"]) {
    expect(() => tenantOfLifeWorkflow(name)).toThrow(expect.objectContaining({ code: "tenant_violation" }));
  }
});

test("a run of a tenant's invoicing is the system's, and names its tenant in one way", () => {
  const workflowId = invoiceWorkflowIdOf(parseTenantId("acme-co"), "scheduled-2026-11-24T00:10:00Z");

  expect(workflowId).toBe("invoice:acme-co:scheduled-2026-11-24T00:10:00Z");
  expect(ownerOfWorkflowId(workflowId)).toBe(systemOwner);
  expect(tenantOfInvoiceWorkflow(workflowId)).toBe("acme-co");
  for (const name of ["invoice:acme-co", "invoice::x", "invoice:Acme:x", "invoice:acme co:x", "turn:acme-co:x", "invoice"])
    expect(() => tenantOfInvoiceWorkflow(name)).toThrow();
  for (const name of ["invoice:acme-co", "invoice::x", "invoice:Acme:x"]) expect(() => ownerOfWorkflowId(name)).toThrow();
});
