/**
 * What a person reads when a turn did not work out, from the contract's error shape.
 *
 * @typedef {object} GatewayFailure
 * @property {number} status HTTP status; 0 when no answer came, 200 for an error inside a stream
 * @property {string} code
 * @property {string} message
 * @property {number | undefined} retryAfterSeconds
 *
 * @typedef {object} Explanation
 * @property {string} title
 * @property {string} text
 * @property {number | undefined} waitSeconds how long until trying again makes sense; undefined when waiting does not help
 * @property {boolean} mayRetry
 * @property {string} action what the button says
 * @property {boolean} isSameTurn a retry must carry the same idempotency key: the first try may have been accepted
 */

const quotas = /** @type {Readonly<Record<string, string>>} */ ({
  tokens_per_day: "Today's tokens are used up",
  cost_per_day_usd: "Today's budget is used up",
  requests_per_minute: "That was a lot of messages in one minute",
});

/**
 * @param {GatewayFailure} failure
 * @returns {Explanation}
 */
export function explain({ status, code, message, retryAfterSeconds }) {
  const wait = retryAfterSeconds;
  const retry = { waitSeconds: wait, mayRetry: true, action: "Try again", isSameTurn: false };
  const quota = quotas[code];
  if (quota !== undefined) {
    return { title: quota, text: wait === undefined ? message : `You can go on in ${duration(wait)}.`, ...retry };
  }
  if (code === "provider_busy") return { title: "The model is busy", text: message, ...retry };
  if (status === 429) return { title: "Too many attempts", text: message, ...retry };
  if (status === 503) return { title: "The gateway has no room right now", text: message, ...retry };
  if (code === "tenant_suspended") return { title: "This tenant is suspended", text: message, ...retry, mayRetry: false };
  if (status === 403) return { title: "This is not allowed", text: message, ...retry, mayRetry: false };
  if (status === 409) return { title: "The answer is still being written", text: message, ...retry, isSameTurn: true };
  if (code === "broken_off") {
    const text = "The turn goes on without this page, and its answer is kept.";
    return { title: "The connection broke off", text, ...retry, action: "Show the answer", isSameTurn: true };
  }
  if (status === 0) {
    const text = "Your message may have arrived: trying again asks for the same turn, so it is not answered twice.";
    return { title: "The gateway does not answer", text, ...retry, isSameTurn: true };
  }
  if (status >= 400 && status < 500) return { title: "The gateway refused this message", text: message, ...retry, mayRetry: false };
  return { title: "The answer failed", text: message, ...retry };
}

/**
 * `3 h 12 min`, `4 min`, `12 s`: two units at most, rounded up so that nobody comes back too early.
 *
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 100) return `${Math.max(1, Math.ceil(seconds))} s`;
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const rest = minutes % 60;
  return rest === 0 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 60)} h ${rest} min`;
}
