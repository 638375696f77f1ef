import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import { parseAdminKey, parseCredential } from "./credentials.ts";

/** Where this program is installed: the folder of package.json. */
export const packageRoot = fileURLToPath(new URL("..", import.meta.url)).replace(/[/\\]$/, "");

export type HomeFacts = { readonly root: string; readonly uid: number | undefined; readonly userHome: string };

/** A checkout keeps its data beside itself; an installed package (below `node_modules`) does not. */
export const isCheckout = (root: string): boolean =>
  !root.split(sep).includes("node_modules") && existsSync(join(root, "scripts", "setup.mjs"));

/** Where a home is when nobody says: `./data` of a checkout, else `/var/lib/openclaw` for root, else `~/.openclaw`. */
export function defaultHome({ root, uid, userHome }: HomeFacts): string {
  if (isCheckout(root)) return join(root, "data");
  return uid === 0 ? "/var/lib/openclaw" : join(userHome, ".openclaw");
}

const ownHome = (): string => defaultHome({ root: packageRoot, uid: process.getuid?.(), userHome: homedir() });

const port = z
  .string()
  .regex(/^\d{1,5}$/, "must be a port number")
  .transform(Number)
  .refine((number) => number <= 65_535, "must be a port number");
const url = (...protocols: string[]) =>
  z
    .string()
    .refine(
      (text) => URL.canParse(text) && protocols.includes(new URL(text).protocol),
      `must be a URL that begins with ${protocols.join(" or ")}`,
    );

/**
 * Every environment variable that the product reads, except the provider keys named by `api_key_env`. An empty value counts
 * as absent. The gateway, the worker and the CLI read the same schema.
 */
export const environmentSchema = z.object({
  OPENCLAW_HOME: z
    .string()
    .default(ownHome)
    .transform((path) => (isAbsolute(path) ? path : resolve(path))),
  OPENCLAW_HOST: z.string().default("127.0.0.1"),
  OPENCLAW_PORT: port.optional(),
  OPENCLAW_METRICS_PORT: port.optional(),
  OPENCLAW_ADMIN_KEY: z
    .string()
    .refine((key) => parseAdminKey(key) !== undefined, "must have the form ak_<key id>_<32 lower-case hex>")
    .optional(),
  OPENCLAW_KEK: z
    .string()
    .refine(
      (text) => /^[A-Za-z0-9+/]{43}=(,[A-Za-z0-9+/]{43}=){0,7}$/.test(text),
      "must be 32 bytes in base64, or up to 8 such keys with commas between: the first is current, the others only unwrap",
    )
    .optional(),
  OPENCLAW_AUDIT_KEY: z
    .string()
    .refine((text) => /^[A-Za-z0-9+/]{43}=$/.test(text), "must be 32 bytes in base64")
    .optional(),
  OPENCLAW_AUDIT_ANCHORS: z
    .string()
    .refine((path) => isAbsolute(path), "must be the absolute path of a directory")
    .optional(),
  OPENCLAW_URL: url("http:", "https:").optional(),
  OPENCLAW_TOKEN: z
    .string()
    .refine((token) => parseCredential(token) !== undefined, "must be a tenant token (tk_…) or an admin key (ak_…)")
    .optional(),
  DATABASE_URL: url("postgres:", "postgresql:").optional(),
  TEMPORAL_ADDRESS: z
    .string()
    .regex(/^[^\s/:]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$/, "must be host:port")
    .optional(),
  TEMPORAL_NAMESPACE: z.string().optional(),
  TEMPORAL_CLI_PATH: z.string().optional(),
  TEMPORAL_UI_URL: url("http:", "https:").optional(),
});

export type Environment = {
  /** Absolute. */
  readonly home: string;
  readonly host: string;
  /** Undefined: nobody asked for a port, so 18789 or, where that is taken, a free one. */
  readonly port: number | undefined;
  /** Of a worker without a gateway: where it serves its metrics; undefined: nowhere. */
  readonly metricsPort: number | undefined;
  readonly adminKey: string | undefined;
  /** One key in base64, or several with commas between. */
  readonly keyEncryptionKey: string | undefined;
  /** Seed of the key that signs the audit's anchors. */
  readonly auditKey: string | undefined;
  /** Absolute: a directory that gets every anchor, beside the home's own. */
  readonly auditAnchors: string | undefined;
  readonly url: string | undefined;
  readonly token: string | undefined;
  readonly databaseUrl: string | undefined;
  readonly temporalAddress: string | undefined;
  readonly temporalNamespace: string | undefined;
  readonly temporalCliPath: string | undefined;
  /** Of a Web UI that somebody else runs with the public path `/temporal`. */
  readonly temporalUiUrl: string | undefined;
};

export const defaultPort = 18_789;

/** @throws {AppError} `invalid_configuration` naming the variable, never its value. */
export function readEnvironment(variables: Readonly<Record<string, string | undefined>>): Environment {
  const given = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== ""));
  const parsed = environmentSchema.safeParse(given);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    const name = String(issue?.path[0] ?? "environment");
    throw new AppError("invalid_configuration", { client: { message: `${name} ${issue?.message ?? "is not valid"}`, param: name } });
  }
  const { data } = parsed;
  return {
    home: data.OPENCLAW_HOME,
    host: data.OPENCLAW_HOST,
    port: data.OPENCLAW_PORT,
    metricsPort: data.OPENCLAW_METRICS_PORT,
    adminKey: data.OPENCLAW_ADMIN_KEY,
    keyEncryptionKey: data.OPENCLAW_KEK,
    auditKey: data.OPENCLAW_AUDIT_KEY,
    auditAnchors: data.OPENCLAW_AUDIT_ANCHORS,
    url: data.OPENCLAW_URL,
    token: data.OPENCLAW_TOKEN,
    databaseUrl: data.DATABASE_URL,
    temporalAddress: data.TEMPORAL_ADDRESS,
    temporalNamespace: data.TEMPORAL_NAMESPACE,
    temporalCliPath: data.TEMPORAL_CLI_PATH,
    temporalUiUrl: data.TEMPORAL_UI_URL,
  };
}
