import { isToolAllowed } from "../control-plane/overlay.ts";
import type { OverlayReader } from "../control-plane/overlays.ts";
import type { CommandEnd, TenantSandboxes } from "../gateway/sandbox-routes.ts";
import { createBuiltinTools } from "../sandbox/builtin-tools.ts";
import type { SandboxDriver, SandboxResult } from "../sandbox/sandbox-driver.ts";
import type { ToolPlace } from "../sandbox/tool.ts";
import { hadNoProgram } from "../sandbox/sandbox-result.ts";
import { openSandboxFile } from "../storage/sandbox-file.ts";
import { createSandboxPlaces, type SandboxPlacesDeps } from "./sandbox-places.ts";

export type TenantSandboxDeps = Omit<SandboxPlacesDeps, "driver"> & {
  readonly driver: SandboxDriver;
  readonly overlays: Pick<OverlayReader, "of">;
};

/** What the gateway reaches of the sandboxes; the tenant's overlay holds for an administrator's command too. */
export function createTenantSandboxes({ driver, overlays, ...rest }: TenantSandboxDeps): TenantSandboxes {
  const placeOf = createSandboxPlaces({ ...rest, driver });
  const tools = createBuiltinTools({ driver });
  return {
    async explain(tenantId, tool) {
      const { overlay } = await overlays.of(tenantId);
      const installed = tools.get(tool);
      const { policy, refused, place } = await placeOf(tenantId, { overlay: overlay.sandbox, tool, annotation: installed?.sandboxMode });
      return {
        policy,
        refused,
        allowed: isToolAllowed(overlay, tool),
        installed: installed !== undefined,
        enforcement: enforcementIn(driver, place),
      };
    },
    async open(tenantId, mode) {
      const { overlay } = await overlays.of(tenantId);
      const { policy, refused, place } = await placeOf(tenantId, { overlay: overlay.sandbox, mode });
      return { policy, refused, run: async (command, signal) => endOf(await driver.run({ ...place, ...command }, signal)) };
    },
    async openFile(tenantId, path) {
      // Its place is resolved first, for a directory may have to be mounted.
      await placeOf(tenantId, { overlay: undefined });
      return await openSandboxFile(rest.home, tenantId, path);
    },
  };
}

/** How the limits would be held there. */
function enforcementIn(driver: Pick<SandboxDriver, "enforcement">, { container, heldByVolume = [] }: ToolPlace) {
  const held = driver.enforcement(container);
  if (held === undefined) return undefined;
  const volume = { diskBytes: { disk: "group" }, inodes: { inodes: "group" } } as const;
  return heldByVolume.reduce<typeof held>((all, name) => ({ ...all, ...volume[name] }), held);
}

function endOf({ stdout: _stdout, stderr, ...result }: SandboxResult): CommandEnd {
  return { ...result, detail: hadNoProgram(result) ? Buffer.from(stderr).toString("utf8").slice(0, 1_000) : undefined };
}
