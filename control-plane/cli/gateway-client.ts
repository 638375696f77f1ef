import { readFileSync } from "node:fs";
import { z } from "zod";
import { adminKeyPath, parseCredential, type ParsedCredential } from "../credentials.ts";
import { readEnvironment, type Environment } from "../environment.ts";
import { gatewayRecordPath, readGatewayRecord, runningGateway } from "../gateway-record.ts";
import { CliError, exitCodes, type ExitCode } from "./exit-code.ts";

export type Variables = Readonly<Record<string, string | undefined>>;

/** A credential and where it came from, for messages. */
export type FoundCredential = { readonly text: string; readonly parsed: ParsedCredential; readonly source: string };

export type GatewayRequest = {
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly path: string;
  readonly query?: Readonly<Record<string, string | undefined>>;
  readonly body?: unknown;
  /** A body that is not JSON. */
  readonly text?: { readonly contentType: string; readonly content: string };
  readonly headers?: Readonly<Record<string, string>>;
  /** Default: the whole answer within 30 s; 0 for streams. */
  readonly timeoutMs?: number;
};

const errorBody = z.object({ error: z.object({ message: z.string(), code: z.string().nullish(), param: z.string().nullish() }) });

/** @throws {CliError} usage: a variable is malformed. */
export function environmentOf(variables: Variables): Environment {
  try {
    return readEnvironment(variables);
  } catch (error) {
    throw new CliError(exitCodes.usage, (error as Error).message, { cause: error });
  }
}

/** `OPENCLAW_URL`, else the gateway that runs on the home. @throws {CliError} unreachable */
export function gatewayUrlOf({ url, home }: Environment): string {
  if (url !== undefined) return url.replace(/\/+$/, "");
  const path = gatewayRecordPath(home);
  // A gateway.json of a dead gateway is not followed: its port may be another program's by now, which would be shown the credential.
  const running = runningGateway(home);
  if (running?.url !== undefined) return running.url.replace(/\/+$/, "");
  if (running !== undefined) throw new CliError(exitCodes.unreachable, `The gateway (process ${running.pid}) is still starting.`);
  const trace = readGatewayRecord(home) === undefined ? `there is no ${path}` : `${path} is left over from one that has ended`;
  throw new CliError(exitCodes.unreachable, `No gateway is running: ${trace}. Start one with "openclaw start", or set OPENCLAW_URL.`);
}

/** `OPENCLAW_TOKEN`, else `OPENCLAW_ADMIN_KEY`, else `<home>/admin-key`. @throws {CliError} refused: none of them is there. */
export function findCredential({ token, adminKey, home }: Environment): FoundCredential {
  const path = adminKeyPath(home);
  const candidates = [
    { text: token, source: "OPENCLAW_TOKEN" },
    { text: adminKey, source: "OPENCLAW_ADMIN_KEY" },
    { text: readIfThere(path), source: path },
  ];
  const [found] = candidates.flatMap(({ text, source }) => (text === undefined ? [] : [{ text, source }]));
  if (found === undefined) {
    throw new CliError(
      exitCodes.refused,
      `No credential: set OPENCLAW_TOKEN or OPENCLAW_ADMIN_KEY, or use a home whose ${path} you may read.`,
    );
  }
  const parsed = parseCredential(found.text);
  if (parsed === undefined)
    throw new CliError(exitCodes.refused, `${found.source} does not hold a tenant token (tk_…) or an admin key (ak_…).`);
  return { ...found, parsed };
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if (["ENOENT", "EACCES"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}

/** The HTTP side of every command. */
export class GatewayClient {
  readonly #url: string;
  readonly #credential: FoundCredential;

  constructor(url: string, credential: FoundCredential) {
    this.#url = url;
    this.#credential = credential;
  }

  /** @returns a successful answer whose body has not been read. @throws {CliError} unreachable, refused, usage or failed, by the answer. */
  async request({ method = "GET", path, query = {}, body, text, headers = {}, timeoutMs = 30_000 }: GatewayRequest): Promise<Response> {
    const target = new URL(this.#url + path);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) target.searchParams.set(name, value);
    let response: Response;
    try {
      response = await fetch(target, {
        method,
        redirect: "error", // a redirect would carry the credential elsewhere
        headers: {
          authorization: `Bearer ${this.#credential.text}`,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(text === undefined ? {} : { "content-type": text.contentType }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        ...(text === undefined ? {} : { body: text.content }),
        ...(timeoutMs === 0 ? {} : { signal: AbortSignal.timeout(timeoutMs) }),
      });
    } catch (error) {
      throw new CliError(exitCodes.unreachable, `The gateway at ${this.#url} does not answer: ${reasonOf(error)}.`, { cause: error });
    }
    if (response.ok) return response;
    throw await this.#refusal(response);
  }

  async json<T>(schema: z.ZodType<T>, request: GatewayRequest): Promise<T> {
    const response = await this.request(request);
    const parsed = schema.safeParse(await response.json().catch(() => undefined));
    if (!parsed.success) throw new CliError(exitCodes.failed, `${this.#url}${request.path} answered something else than a gateway does.`);
    return parsed.data;
  }

  async #refusal(response: Response): Promise<CliError> {
    const text = await response.text().catch(() => "");
    const message = errorBody.safeParse(parseJson(text)).data?.error.message ?? `The gateway answered ${response.status}.`;
    const hint = response.status === 401 ? ` (credential from ${this.#credential.source})` : "";
    return new CliError(exitCodeOf(response.status), message + hint);
  }
}

/** Refused is what another credential or a later moment would change. */
function exitCodeOf(status: number): ExitCode {
  if ([401, 403, 409, 429].includes(status)) return exitCodes.refused;
  return exitCodes.failed;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function reasonOf(error: unknown): string {
  const { cause } = error as { cause?: { code?: string; message?: string } };
  if (error instanceof DOMException && error.name === "TimeoutError") return "no answer in time";
  return cause?.code ?? cause?.message ?? (error as Error).message;
}

/** A client for the gateway that the environment names. */
export function connectGateway(variables: Variables): GatewayClient {
  const environment = environmentOf(variables);
  return new GatewayClient(gatewayUrlOf(environment), findCredential(environment));
}
