import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { isWithinRules } from "../domain/egress-rule.ts";
import { sandboxLimitNames } from "../domain/sandbox-policy.ts";
import type { ModelKind } from "../domain/service-request.ts";
import { type AdminConfig, type ResolvedModel, defaultModelNames, resolveModel } from "./admin-config.ts";
import { issueToTell } from "./configuration-issue.ts";
import { type KeyPath, configurationError, readConfigurationText } from "./configuration-text.ts";
import { type OverlayFile, overlaySchema } from "./overlay-schema.ts";

/** A tenant's overlay, read and checked against the administrator's configuration. The blocks that are not spelt out keep the file's key names. */
export type Overlay = {
  readonly model: string | undefined;
  /** Models to try when the turn's own is not available, in order. */
  readonly fallbacks: readonly string[];
  readonly aliases: ReadonlyMap<string, string>;
  readonly maxTokens: number | undefined;
  readonly temperature: number | undefined;
  readonly systemPrompt: string | undefined;
  /** Undefined: all that are not denied. */
  readonly allowedTools: ReadonlySet<string> | undefined;
  readonly deniedTools: ReadonlySet<string>;
  readonly timezone: string | undefined;
  readonly api: {
    readonly mode: "agent" | "gateway" | undefined;
    /** The field `user` of a call names its session. */
    readonly sessionsByUser: boolean;
    /** Undefined: all that are configured and priced. */
    readonly models: ReadonlySet<string> | undefined;
  };
} & Pick<OverlayFile, "session" | "memory" | "channels" | "heartbeat" | "cron" | "sandbox" | "tts" | "skills">;

/** What of the administrator's configuration an overlay is checked against. */
export type OverlayGround = Pick<AdminConfig, "defaultModel" | "models" | "rateCard" | "sandbox">;

/** Contract §3. */
export const overlayMaxBytes = 64 * 1024;

/** How errors name an overlay, wherever its text came from. */
const file = "overlay";

export const digestOfOverlay = (text: string): string => createHash("sha256").update(text).digest("hex");

/** Of a tenant that never had an overlay. */
export const emptyOverlayDigest = digestOfOverlay("");

/** @throws {AppError} `overlay_refused` for more than 64 KB and for bytes that are not UTF-8 */
export function decodeOverlay(bytes: Uint8Array): string {
  if (bytes.length > overlayMaxBytes) throw refused(configurationError(file, 1, [], `is larger than ${overlayMaxBytes} bytes`));
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw refused(configurationError(file, 1, [], "is not UTF-8 text"));
  }
}

/** @throws {AppError} `overlay_refused` naming the key path and the line */
export function parseOverlay(text: string, ground: OverlayGround): Overlay {
  try {
    const source = readConfigurationText(text, { file, maxBytes: overlayMaxBytes });
    const fault = (path: KeyPath, says: string): AppError => configurationError(file, source.lineOf(path), path, says);
    const parsed = overlaySchema.safeParse(source.value);
    if (!parsed.success) {
      const { path, says } = issueToTell(parsed.error.issues);
      throw fault(path, says);
    }
    checkModels(parsed.data, ground, fault);
    checkSandbox(parsed.data, ground, fault);
    return toOverlay(parsed.data);
  } catch (error) {
    throw error instanceof AppError && error.code === "invalid_configuration" ? refused(error) : error;
  }
}

function refused({ client: { message = "", param } }: AppError): AppError {
  return new AppError("overlay_refused", { client: { message, ...(param === undefined || param === "" ? {} : { param }) } });
}

type Fault = (path: KeyPath, says: string) => AppError;

const quoted = (value: string): string => JSON.stringify(value.slice(0, 64));

function checkModels(overlay: OverlayFile, { models, rateCard, defaultModel }: OverlayGround, fault: Fault): void {
  const check = (path: KeyPath, id: string): void => {
    if (!models.has(id)) throw fault(path, `${quoted(id)} is not one of the configured models`);
    if (!rateCard.rates.has(id)) throw fault(path, `${quoted(id)} has no price in the rate card`);
  };
  const checkList = (path: KeyPath, ids: readonly string[] | undefined): void => {
    for (const [place, id] of (ids ?? []).entries()) check([...path, place], id);
  };
  const checkChat = (path: KeyPath, id: string): void => {
    check(path, id);
    if (models.get(id)?.kind !== "chat") throw fault(path, `${quoted(id)} is not a chat model`);
  };
  if (overlay.model !== undefined) checkChat(["model"], overlay.model);
  for (const [place, id] of (overlay.fallbacks ?? []).entries()) checkChat(["fallbacks", place], id);
  checkList(["api", "models"], overlay.api.models);
  if (overlay.heartbeat?.model !== undefined) checkChat(["heartbeat", "model"], overlay.heartbeat.model);
  for (const [alias, target] of Object.entries(overlay.aliases ?? {})) {
    // Such a name means something already, and the alias would never act.
    if (defaultModelNames.has(alias)) throw fault(["aliases", alias], "is the name of the default model: set model instead");
    if (models.has(alias)) throw fault(["aliases", alias], "is the id of a configured model and cannot mean another one");
    check(["aliases", alias], target);
  }
  if (overlay.model !== undefined && overlay.api.models !== undefined && !overlay.api.models.includes(overlay.model))
    throw fault(["api", "models"], `must hold the overlay's own model ${quoted(overlay.model)}`);
  const ownModel = models.get(overlay.model ?? defaultModel);
  if (overlay.max_tokens !== undefined && ownModel !== undefined && overlay.max_tokens > ownModel.maxOutputTokens)
    throw fault(
      ["max_tokens"],
      `must be a whole number from 1 to ${ownModel.maxOutputTokens}, the most that ${quoted(ownModel.id)} writes`,
    );
}

/** Tighter than the administrator's, or refused. */
function checkSandbox({ sandbox }: OverlayFile, { sandbox: admin }: OverlayGround, fault: Fault): void {
  const checkMode = (path: KeyPath, mode: string): void => {
    if (!Object.hasOwn(admin.modes ?? {}, mode)) throw fault(path, `${quoted(mode)} is not one of the administrator's sandbox modes`);
  };
  if (sandbox?.default_mode !== undefined) checkMode(["sandbox", "default_mode"], sandbox.default_mode);
  for (const [tool, mode] of Object.entries(sandbox?.tools ?? {})) checkMode(["sandbox", "tools", tool], mode);
  for (const [mode, limits] of Object.entries(sandbox?.modes ?? {})) {
    checkMode(["sandbox", "modes", mode], mode);
    for (const limit of sandboxLimitNames) {
      const own = limits[limit];
      const given = admin.modes?.[mode]?.[limit];
      if (own === undefined) continue;
      if (given === undefined)
        throw fault(["sandbox", "modes", mode, limit], "is not set in the administrator's mode, so it cannot be lowered");
      if (own > Number(given)) throw fault(["sandbox", "modes", mode, limit], `must not be above the administrator's ${given}`);
    }
  }
  const bounds = [...(admin.network?.allow ?? []), ...(admin.tenant_may_allow ?? [])];
  for (const [place, rule] of (sandbox?.network?.allow ?? []).entries()) {
    if (!isWithinRules(bounds, rule))
      throw fault(["sandbox", "network", "allow", place], `${quoted(rule)} is not within what the administrator lets tenants allow`);
  }
}

function toOverlay({ model, fallbacks, aliases, max_tokens, temperature, system_prompt, api, timezone, ...rest }: OverlayFile): Overlay {
  const { allowed_tools, denied_tools, ...blocks } = rest;
  return {
    ...blocks,
    model,
    fallbacks: fallbacks ?? [],
    aliases: new Map(Object.entries(aliases ?? {})),
    maxTokens: max_tokens,
    temperature,
    systemPrompt: system_prompt,
    allowedTools: allowed_tools === undefined ? undefined : new Set(allowed_tools),
    deniedTools: new Set(denied_tools),
    timezone,
    api: {
      mode: api.mode,
      sessionsByUser: api.sessions === "by-user",
      models: api.models === undefined ? undefined : new Set(api.models),
    },
  };
}

/** Whether the tenant's agent may use a tool; what is denied is denied although it is allowed too. */
export const isToolAllowed = ({ allowedTools, deniedTools }: Pick<Overlay, "allowedTools" | "deniedTools">, tool: string): boolean =>
  (allowedTools?.has(tool) ?? true) && !deniedTools.has(tool);

/**
 * The model that a tenant's request means: a key of the configured models, an alias, or the default one's name.
 * @throws {AppError} `model_not_found` (404), also for one outside `api.models`; `model_not_priced` (400)
 */
export function resolveTenantModel(config: AdminConfig, { model, aliases, api }: Overlay, requested: string): ResolvedModel {
  const isDefault = defaultModelNames.has(requested) && !config.models.has(requested);
  const id = isDefault ? (model ?? config.defaultModel) : (aliases.get(requested) ?? requested);
  if (api.models?.has(id) === false) {
    const shown = requested.slice(0, 128);
    throw new AppError("model_not_found", { client: { message: `The model "${shown}" does not exist.`, param: "model" } });
  }
  return resolveModel(config, id);
}

const kindNames: Readonly<Record<ModelKind, string>> = {
  chat: "a chat model",
  embedding: "an embedding model",
  transcription: "a transcription model",
  moderation: "a moderation model",
};

/** The model that a request for something of this kind means. @throws {AppError} as `resolveTenantModel`; `invalid_request` for one of another kind */
export function resolveTenantModelOf(config: AdminConfig, kind: ModelKind, overlay: Overlay, requested: string): ResolvedModel {
  const model = resolveTenantModel(config, overlay, requested);
  if (model.kind !== kind) {
    const message = `The model "${model.id}" is ${kindNames[model.kind]}: this takes ${kindNames[kind]}.`;
    throw new AppError("invalid_request", { client: { message, param: "model" } });
  }
  return model;
}

export type TenantModel = { readonly id: string; readonly provider: string };

/** What a tenant may call: the models that it is allowed, and its aliases of them. */
export function modelsOfTenant({ models, rateCard }: OverlayGround, { aliases, api }: Overlay): readonly TenantModel[] {
  const allowed = [...models.values()].filter(({ id }) => rateCard.rates.has(id) && api.models?.has(id) !== false);
  const own = [...aliases].flatMap(([alias, target]) =>
    allowed.filter(({ id }) => id === target).map(({ provider }) => ({ id: alias, provider })),
  );
  return [...allowed.map(({ id, provider }) => ({ id, provider })), ...own];
}
