import { parseApiKey, parseBaseUrl } from "./provider-endpoint.ts";
import type { ProviderConfig } from "./provider-registry.ts";

export type Reachability = {
  /** `refused`: it does not take the key. `failing`: it answers, but not as a provider in order does. */
  readonly state: "reachable" | "refused" | "failing" | "unreachable";
  /** Half a sentence; never with the key or the address. */
  readonly says: string;
  /** The provider's clock, in whole seconds, and when we asked and had the answer. */
  readonly clock?: { readonly atMs: number; readonly askedAtMs: number; readonly answeredAtMs: number };
};

const answerTimeoutMs = 5_000;
const anthropicVersion = "2023-06-01"; // https://docs.anthropic.com/en/api/versioning

/**
 * Asks a provider for its list of models, which costs nothing, to see whether it can be reached and takes the key.
 * @throws {AppError} `invalid_configuration` for a missing or malformed key or address
 */
export async function askProvider(config: ProviderConfig, apiKey: string | undefined): Promise<Reachability> {
  const { url, headers } = modelsRequest(config, apiKey);
  const askedAtMs = Date.now();
  let answer: Response;
  try {
    answer = await fetch(url, { headers, redirect: "manual", signal: AbortSignal.timeout(answerTimeoutMs) });
  } catch (error) {
    return { state: "unreachable", says: reasonOf(error) };
  }
  const answeredAtMs = Date.now();
  await answer.body?.cancel();
  const atMs = Date.parse(answer.headers.get("date") ?? "");
  return { ...judge(answer.status), ...(Number.isNaN(atMs) ? {} : { clock: { atMs, askedAtMs, answeredAtMs } }) };
}

function modelsRequest(
  { name, kind, baseUrl }: ProviderConfig,
  apiKey: string | undefined,
): { url: string; headers: Readonly<Record<string, string>> } {
  const key = parseApiKey(name, apiKey, { needed: kind === "openai" || kind === "anthropic" });
  if (kind === "anthropic") {
    const base = parseBaseUrl(name, baseUrl, "https://api.anthropic.com").replace(/\/v1$/, "");
    return { url: `${base}/v1/models`, headers: { "x-api-key": key ?? "", "anthropic-version": anthropicVersion } };
  }
  const base = parseBaseUrl(name, baseUrl, kind === "openai" ? "https://api.openai.com/v1" : undefined);
  return { url: `${base}/models`, headers: key === undefined ? {} : { authorization: `Bearer ${key}` } };
}

/** A server without such a list (404, 405) is one that answers. */
function judge(status: number): Pick<Reachability, "state" | "says"> {
  if (status === 401 || status === 403) return { state: "refused", says: `refuses the key (${status})` };
  if (status >= 500 || (status >= 300 && status < 400)) return { state: "failing", says: `answers ${status}` };
  return { state: "reachable", says: status === 429 ? "answers, and is busy (429)" : "answers" };
}

/** The code alone (`ECONNREFUSED`): messages of the network hold addresses. */
function reasonOf(error: unknown): string {
  if (error instanceof DOMException && error.name === "TimeoutError") return `gave no answer within ${answerTimeoutMs / 1_000} s`;
  for (let cause: unknown = error, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth += 1) {
    if ("code" in cause && typeof cause.code === "string") return `cannot be reached (${cause.code})`;
  }
  return "cannot be reached";
}
