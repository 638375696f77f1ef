import { parseAdminConfig } from "../../control-plane/admin-config.ts";
import { type Overlay, emptyOverlayDigest, parseOverlay } from "../../control-plane/overlay.ts";
import type { OverlayReader } from "../../control-plane/overlays.ts";

/** An administrator's configuration with everything that an overlay may lean on. */
export const adminConfigText = `
default_model: small
providers:
  local: { kind: openai-compatible, base_url: "http://127.0.0.1:9/v1" }
models:
  small: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  large: { provider: local, context_window: 200000, max_output_tokens: 16000 }
  vectors: { provider: local, kind: embedding, context_window: 8000, max_output_tokens: 1 }
  free: { provider: local, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
    small: { input: 1, output: 2 }
    large: { input: 15, output: 75 }
    vectors: { input: 1, output: 0 }
    unconfigured: { input: 1, output: 2 }
sandbox:
  default_mode: strict
  modes:
    strict: { memory_limit_mb: 256, cpu_quota: 0.5, wall_seconds: 30 }
    docker: { runtime: docker, image: "debian:12" }
  network: { default: deny, allow: ["registry.example:443"] }
  tenant_may_allow: ["*.example.com:443", "*.example.com:8443", "api.example.org:443", "10.0.0.7:5432"]
`;

export const someGround = parseAdminConfig(adminConfigText);

export const someOverlay = (text: string): Overlay => parseOverlay(text, someGround);

/** A reader whose every tenant has this overlay. */
export const overlaysOf = (overlay: Overlay): Pick<OverlayReader, "of"> => ({ of: async () => ({ digest: emptyOverlayDigest, overlay }) });
