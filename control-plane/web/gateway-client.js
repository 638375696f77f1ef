import { readSse } from "./sse.js";

/**
 * @typedef {object} Usage
 * @property {number} [prompt_tokens]
 * @property {number} [completion_tokens]
 *
 * @typedef {{ readonly kind: "started", readonly requestId: string }
 *   | { readonly kind: "text", readonly text: string }
 *   | { readonly kind: "tool", readonly id: string, readonly name: string, readonly state: "running" | "done" | "failed", readonly summary: string }
 *   | { readonly kind: "usage", readonly usage: Usage }
 *   | { readonly kind: "finish", readonly reason: string }} TurnEvent
 */

/** An answer that was not the wanted one; `status` 0 means that none came, or that it broke off. */
export class GatewayError extends Error {
  name = "GatewayError";

  /**
   * @param {{ status: number, code?: string, message: string, retryAfterSeconds?: number | undefined, requestId?: string }} failure
   */
  constructor({ status, code = "", message, retryAfterSeconds, requestId = "" }) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
    this.requestId = requestId;
  }
}

/**
 * @param {string} token
 * @returns {Promise<string[]>} model ids
 */
export async function listModels(token) {
  const response = await call("/v1/models", { headers: { authorization: `Bearer ${token}` } });
  /** @type {{ data?: { id?: unknown }[] }} */
  const body = await response.json();
  return (body.data ?? []).flatMap(({ id }) => (typeof id === "string" ? [id] : []));
}

/**
 * One turn of a session, as it is written. The server keeps the transcript, so only the new message goes out.
 *
 * @param {{ token: string, sessionId: string, turnKey: string, model: string, text: string, signal: AbortSignal }} turn
 * @returns {AsyncGenerator<TurnEvent, void, undefined>}
 */
export async function* streamTurn({ token, sessionId, turnKey, model, text, signal }) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      "idempotency-key": turnKey,
      "x-openclaw-mode": "agent",
      "x-openclaw-session": sessionId,
    },
    body: JSON.stringify({ model, stream: true, stream_options: { include_usage: true }, messages: [{ role: "user", content: text }] }),
    signal,
  });
  const requestId = response.headers.get("x-request-id") ?? "";
  yield { kind: "started", requestId };
  if (!response.body) throw brokenOff(requestId);
  try {
    for await (const { data } of readSse(response.body)) {
      if (data === "[DONE]") return;
      yield* eventsOf(JSON.parse(data), requestId);
    }
  } catch (error) {
    if (error instanceof GatewayError || signal.aborted) throw error;
    throw brokenOff(requestId);
  }
  throw brokenOff(requestId);
}

/** @param {string} requestId */
const brokenOff = (requestId) => new GatewayError({ status: 0, code: "broken_off", message: "The connection broke off.", requestId });

/**
 * @param {any} chunk
 * @param {string} requestId
 * @returns {Generator<TurnEvent, void, undefined>}
 */
function* eventsOf(chunk, requestId) {
  if (chunk?.error) {
    const { code, message, type } = chunk.error;
    throw new GatewayError({ status: 200, code: String(code ?? type ?? ""), message: String(message ?? "The turn failed."), requestId });
  }
  const tool = chunk?.openclaw?.tool;
  if (tool) {
    const state = tool.state === "done" || tool.state === "failed" ? tool.state : "running";
    yield { kind: "tool", id: String(tool.id ?? tool.name), name: String(tool.name), state, summary: String(tool.summary ?? "") };
  }
  const choice = chunk?.choices?.[0];
  const text = choice?.delta?.content;
  if (typeof text === "string" && text !== "") yield { kind: "text", text };
  if (typeof choice?.finish_reason === "string") yield { kind: "finish", reason: choice.finish_reason };
  if (chunk?.usage) yield { kind: "usage", usage: chunk.usage };
}

/**
 * @param {string} path
 * @param {RequestInit} init
 */
async function call(path, init) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, { ...init, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new GatewayError({ status: 0, code: "unreachable", message: "The gateway cannot be reached." });
  }
  if (response.ok) return response;
  const { code, message, type } = (await response.json().catch(() => ({})))?.error ?? {};
  throw new GatewayError({
    status: response.status,
    code: String(code ?? type ?? ""),
    message: String(message ?? `The gateway answered ${response.status}.`),
    retryAfterSeconds: secondsOf(response.headers.get("retry-after")),
    requestId: response.headers.get("x-request-id") ?? "",
  });
}

/** @param {string | null} header */
const secondsOf = (header) => (header !== null && /^\d{1,7}$/.test(header) ? Number(header) : undefined);
