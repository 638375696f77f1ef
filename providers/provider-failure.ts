import type { StoppedBy } from "./call-deadline.ts";
import { ModelCallError, type ModelRequest } from "./model-provider.ts";

type Kind = ModelCallError["kind"];

/** The longest text of a provider that is shown to a caller. */
const longestMessage = 1_000;

const secretPatterns: readonly RegExp[] = [
  /\b(?:Bearer|Basic)\s+[^\s"',]+/gi,
  /\b(?:sk|pk|rk|tk|ak|gsk|xai|nvapi|hf|key)[-_][A-Za-z0-9_*.-]{6,}/g,
  /\bAIza[A-Za-z0-9_-]{10,}/g,
  /(?<=:\/\/)[^\s/@]+(?=@)/g,
];

/** `text` without `secrets`, without what looks like a credential, without control characters, cut to 1,000 characters. */
function cleanProviderText(text: string, secrets: readonly string[]): string {
  let clean = text;
  for (const secret of secrets) if (secret !== "") clean = clean.replaceAll(secret, "[redacted]");
  for (const pattern of secretPatterns) clean = clean.replace(pattern, "[redacted]");
  clean = clean.replace(/[\p{Cc}\s]+/gu, " ").trim();
  if (clean.length <= longestMessage) return clean;
  return `${clean
    .slice(0, longestMessage - 1)
    .toWellFormed()
    .replace(/\ufffd$/, "")}…`;
}

/** What kind of failure an HTTP status is (contract §3). */
export function kindOfStatus(status: number): Kind {
  if (status === 429 || status === 529) return "busy";
  if (status === 400 || status === 404 || status === 413 || status === 422) return "refused";
  if (status === 408 || status === 409 || status === 425 || status >= 500) return "unreachable"; // a new attempt may do better
  if (status >= 400) return "rejected"; // 401, 403; 402, 405, 415 …: our account or our set-up
  return "garbage"; // a redirect, which is never followed: it would carry the key elsewhere
}

/** What kind of failure an error inside an answer is, by the words that providers use for its type and code. */
export function kindOfErrorEvent(...words: readonly unknown[]): Kind {
  for (const word of words) {
    const status = Number(word);
    if (Number.isInteger(status) && status >= 400 && status < 600) return kindOfStatus(status);
    if (typeof word !== "string") continue;
    if (/rate_limit|overloaded|insufficient_quota|too_many_requests/.test(word)) return "busy";
    if (/invalid_(?:request|prompt)|image|policy|context_length|not_found|too_large|unprocessable|bad_?request/i.test(word))
      return "refused";
    if (/auth|permission|api_key|billing/.test(word)) return "rejected";
  }
  return "unreachable";
}

const asRecord = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

/** The sentence inside an error body of any of the shapes in use, undefined if there is none. */
export function errorText(body: unknown): string | undefined {
  if (typeof body === "string") return body.trimStart().startsWith("<") || body === "" ? undefined : body;
  const { message, error, detail, msg } = asRecord(body);
  for (const text of [message, detail, msg]) {
    if (typeof text === "string" && text !== "") return text;
    if (typeof text === "object" && text !== null) return JSON.stringify(text);
  }
  return error === undefined || error === null ? undefined : errorText(error);
}

const longestRetryAfterMs = 86_400_000;

/** `retry-after-ms`, else `Retry-After` in seconds or as a date, in milliseconds from now; at most a day. */
export function retryAfterMs(headers: Headers | undefined, nowMs: number): number | undefined {
  const milliseconds = headers?.get("retry-after-ms");
  const retryAfter = headers?.get("retry-after");
  const waits = [
    milliseconds ? Number(milliseconds) : Number.NaN,
    retryAfter ? Number(retryAfter) * 1_000 : Number.NaN,
    retryAfter ? Date.parse(retryAfter) - nowMs : Number.NaN,
  ];
  const wait = waits.find((value) => Number.isFinite(value));
  return wait === undefined ? undefined : Math.min(longestRetryAfterMs, Math.max(0, Math.ceil(wait)));
}

const says: Readonly<Record<Exclude<Kind, "refused">, string>> = {
  busy: "The model provider is busy.",
  unreachable: "The model provider did not answer.",
  rejected: "The model provider did not accept our credential or account.",
  garbage: "The model provider's answer could not be understood.",
  aborted: "The model call was aborted.",
};

/** What the provider said about a failure, as an adapter found it. */
export type FailureFacts = {
  readonly kind: Kind;
  /** The provider's own words, not yet cleaned; shown to the caller of a refused request, else only in the error's cause. */
  readonly text?: string | undefined;
  readonly status?: number | undefined;
  readonly retryAfterMs?: number | undefined;
};

/**
 * The error of the port. What a provider says to us (about our account, its limits, its machines) is not for tenants: it
 * goes into the cause, for logs, unless it is about the request.
 */
export function providerFailure({ kind, text, status, retryAfterMs: wait }: FailureFacts, secrets: readonly string[]): ModelCallError {
  const clean = text === undefined ? undefined : cleanProviderText(text, secrets) || undefined;
  const facts = { status, retryAfterMs: wait };
  if (kind === "refused")
    return new ModelCallError(
      kind,
      clean ?? `The model provider refused the request${status === undefined ? "" : ` with status ${status}`}.`,
      facts,
    );
  return new ModelCallError(kind, says[kind], { ...facts, cause: clean === undefined ? undefined : new Error(clean) });
}

/** Refuses what a model's provider cannot honour, by its name: nothing is dropped in silence. */
export type Refuse = (parameter: string, why: string) => ModelCallError;

export const refuseFor =
  (provider: string, { model }: Pick<ModelRequest, "model">): Refuse =>
  (parameter, why) =>
    new ModelCallError(
      "refused",
      `The parameter '${parameter}' is not supported by the model '${model}' of the provider '${provider}': ${why}.`,
      { status: 400, unsupported: parameter },
    );

const limitNames: Readonly<Record<Exclude<StoppedBy, "caller">, string>> = {
  headersMs: "sent no answer in time",
  idleMs: "stopped sending in the middle of its answer",
  totalMs: "took too long for its whole answer",
};

/** The error of a call that the caller or a time limit ended. */
export const stoppedFailure = (by: StoppedBy): ModelCallError =>
  by === "caller" ? providerFailure({ kind: "aborted" }, []) : new ModelCallError("unreachable", `The model provider ${limitNames[by]}.`);
