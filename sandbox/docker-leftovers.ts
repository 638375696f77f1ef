import type Docker from "dockerode";
import { hasEnded, identify } from "./process-tree.ts";
import { ownerName } from "./run-owner.ts";
import type { SandboxLimits } from "./sandbox-driver.ts";

const OWNER = "openclaw.sandbox.owner";
const STARTED = "openclaw.sandbox.owner-started";
const END_BY = "openclaw.sandbox.end-by";
/** A container may wait this long for its program, and this long for its end. */
const SLACK_MS = 600_000;

const namespaceOf = (owner: string): string => owner.slice(0, owner.lastIndexOf("-"));

/** Says whose a container is and until when it can be of use. */
export const ownerLabels = ({ wallMs }: Pick<SandboxLimits, "wallMs">): Record<string, string> => ({
  [OWNER]: ownerName,
  [STARTED]: identify(process.pid).startedAtTicks,
  [END_BY]: String(Date.now() + wallMs + SLACK_MS),
});

/**
 * Removes what a gateway that was killed left behind. Of one in another pid namespace (a container beside this one) nothing tells whether it
 * lives: its containers go when their time is over.
 */
export async function removeLeftovers(docker: Docker): Promise<void> {
  const found = await docker.listContainers({ all: true, filters: { label: [OWNER] } });
  const orphaned = found.filter(({ Labels: { [OWNER]: owner = "", [STARTED]: startedAtTicks = "", [END_BY]: endBy } }) => {
    const pid = Number(owner.slice(owner.lastIndexOf("-") + 1));
    if (Number(endBy) < Date.now()) return true;
    return namespaceOf(owner) === namespaceOf(ownerName) && hasEnded({ pid, startedAtTicks });
  });
  // Another process that starts just now may be ahead of us.
  await Promise.all(
    orphaned.map(
      async ({ Id }) =>
        await docker
          .getContainer(Id)
          .remove({ force: true, v: true })
          .catch(() => undefined),
    ),
  );
}
