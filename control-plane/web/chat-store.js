/**
 * What this tab remembers: gone when it is closed, never in a URL, never in another tab. The server's transcript is the truth;
 * the messages here only let a reload show what was said.
 *
 * @typedef {{ role: "user", text: string, turnKey: string, model: string } | { role: "assistant", text: string, facts: string[], requestId: string }} StoredMessage
 */

const keys = { token: "openclaw.token", session: "openclaw.session", messages: "openclaw.messages", model: "openclaw.model" };
const mostKept = 200;

export const store = {
  get token() {
    return sessionStorage.getItem(keys.token) ?? "";
  },
  set token(token) {
    write(keys.token, token);
  },
  get model() {
    return sessionStorage.getItem(keys.model) ?? "default";
  },
  set model(model) {
    write(keys.model, model);
  },
  /** `web:<random>:default`, made when it is first asked for. */
  get sessionId() {
    const known = sessionStorage.getItem(keys.session);
    if (known !== null) return known;
    const made = `web:${randomHex(16)}:default`;
    write(keys.session, made);
    return made;
  },
  /** @returns {StoredMessage[]} */
  get messages() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(keys.messages) ?? "[]");
      return Array.isArray(kept) ? kept : [];
    } catch {
      return [];
    }
  },
  /** @param {StoredMessage} message */
  add(message) {
    write(keys.messages, JSON.stringify([...this.messages, message].slice(-mostKept)));
  },
  /** The key of the last message, which a fresh try of it replaces.
   * @param {string} turnKey */
  rekeyLast(turnKey) {
    const messages = this.messages;
    const last = messages.at(-1);
    if (last?.role === "user") write(keys.messages, JSON.stringify([...messages.slice(0, -1), { ...last, turnKey }]));
  },
  forgetConversation() {
    sessionStorage.removeItem(keys.session);
    sessionStorage.removeItem(keys.messages);
  },
  forgetAll() {
    Object.values(keys).forEach((key) => sessionStorage.removeItem(key));
  },
};

/** A full store is no reason to lose the answer that is on the screen.
 * @type {(key: string, value: string) => void} */
function write(key, value) {
  try {
    sessionStorage.setItem(key, value);
  } catch {
    console.warn("The tab's storage is full; a reload will not show this conversation.");
  }
}

/** `crypto.randomUUID` exists only where the origin is secure; this exists everywhere.
 * @param {number} bytes */
export function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
