import { createHash } from "node:crypto";
import type { FastifyPluginAsync } from "fastify";
import { type Changes, opIdOf } from "../control-plane/changes.ts";
import { rotationWorkflowIdOf } from "../domain/key-rotation.ts";
import { systemOwner } from "../domain/tenant.ts";
import { acceptEmptyBodies, changeOptionsOf, noBody } from "./admin-change.ts";

/** Rotation of the key-encryption key and the data keys. */
export const createKeyRoutes =
  ({ changes }: { readonly changes: Changes }): FastifyPluginAsync =>
  async (app) => {
    acceptEmptyBodies(app);

    app.post(
      "/v1/keys/rotate",
      { config: { access: "admin:all", describes: { summary: "Rotates the keys at rest" } } },
      async (request, reply) => {
        noBody.parse(request.body);
        const options = changeOptionsOf(request);
        // The same operation is the same rotation, so a repeat answers the same workflow.
        const rotationId = createHash("sha256").update(opIdOf(options)).digest("hex").slice(0, 20);
        await changes.make(systemOwner, { type: "keys.rotate", rotationId }, options);
        return await reply.code(202).send({ workflow_id: rotationWorkflowIdOf(rotationId) });
      },
    );
  };
