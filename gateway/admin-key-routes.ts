import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import { type AdminKeyFacts, listAdminKeys } from "../control-plane/admin-keys.ts";
import { adminScopes } from "../control-plane/authentication.ts";
import type { Changes } from "../control-plane/changes.ts";
import { mintAdminKey } from "../control-plane/credentials.ts";
import { systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { acceptEmptyBodies, changeOptionsOf } from "./admin-change.ts";

export type AdminKeyDeps = { readonly database: Database; readonly changes: Changes };

const keyId = z.string().regex(/^[a-z0-9]{1,16}$/, "A key id has 1 to 16 lower-case letters and digits.");
const newKey = z.strictObject({ id: keyId, scopes: z.array(z.enum(adminScopes)).min(1).max(adminScopes.length) });
const namedKey = z.strictObject({ id: keyId });

const timeOf = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString());

const toJson = ({ id, scopes, createdAtMs, lastUsedAtMs, revokedAtMs }: AdminKeyFacts) => ({
  id,
  scopes,
  created_at: timeOf(createdAtMs),
  last_used_at: timeOf(lastUsedAtMs),
  revoked_at: timeOf(revokedAtMs),
});

/** Admin keys. Whoever makes one could make one with any scope, so that takes the scope all. */
export const createAdminKeyRoutes =
  ({ database, changes }: AdminKeyDeps): FastifyPluginAsync =>
  async (app) => {
    acceptEmptyBodies(app);

    app.get("/v1/admin-keys", { config: { access: "admin:read", describes: { summary: "Admin keys, without the keys" } } }, async () => ({
      object: "list",
      data: (await listAdminKeys(database)).map(toJson),
    }));

    app.post(
      "/v1/admin-keys",
      { config: { access: "admin:all", describes: { summary: "Creates an admin key; it is shown once", body: newKey } } },
      async (request, reply) => {
        const { id, scopes: named } = newKey.parse(request.body);
        const scopes = [...new Set(named)];
        const { key, hash } = mintAdminKey(id);
        const answer = await changes.issue(
          systemOwner,
          { type: "admin-key.create", keyId: id, keyHash: hash.toString("hex"), scopes },
          changeOptionsOf(request),
          { id, scopes, key },
        );
        return await reply.code(201).header("cache-control", "no-store").send(answer);
      },
    );

    const revoke = async (request: FastifyRequest, reply: FastifyReply, named: unknown): Promise<FastifyReply> => {
      const { id } = namedKey.parse(named);
      await changes.make(systemOwner, { type: "admin-key.revoke", keyId: id }, changeOptionsOf(request));
      return await reply.code(202).send({ workflow_id: `tenant:${systemOwner}`, id, revoked: true });
    };
    app.delete(
      "/v1/admin-keys/:id",
      { config: { access: "admin:all", describes: { summary: "Ends an admin key" } } },
      async (request, reply) => await revoke(request, reply, request.params),
    );
    app.delete(
      "/v1/admin-keys",
      { config: { access: "admin:all", describes: { summary: "Ends the admin key that the query or the body names", query: namedKey } } },
      async (request, reply) => await revoke(request, reply, request.body ?? request.query),
    );
  };
