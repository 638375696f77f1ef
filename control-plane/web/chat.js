import { createAnswerView } from "./answer-view.js";
import { randomHex, store } from "./chat-store.js";
import { GatewayError, listModels, streamTurn } from "./gateway-client.js";
import { make } from "./markdown-view.js";

/** @type {<T extends HTMLElement>(id: string) => T} */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

const [door, room, actions] = [byId("door"), byId("room"), byId("actions")];
const [scroll, messages, welcome, toEnd] = [byId("scroll"), byId("messages"), byId("welcome"), byId("to-end")];
const [composer, send, stop, status] = [byId("composer"), byId("send"), byId("stop"), byId("status")];
const tokenForm = byId("token-form");
const tokenInput = /** @type {HTMLInputElement} */ (byId("token"));
const draft = /** @type {HTMLTextAreaElement} */ (byId("draft"));
const modelSelect = /** @type {HTMLSelectElement} */ (byId("model"));

/** The turn that this page listens to now. @type {AbortController | undefined} */
let listening;
/** @type {{ remove(): void } | undefined} */
let usedUp;
let isAtEnd = true;

/* Who is there */

/** @param {string} problem */
function showDoor(problem = "") {
  room.hidden = actions.hidden = byId("tenant").hidden = true;
  door.hidden = false;
  byId("token-error").textContent = problem;
  tokenInput.toggleAttribute("aria-invalid", problem !== "");
  if (problem !== "") tokenInput.setAttribute("aria-invalid", "true");
  tokenInput.focus();
}

function showRoom() {
  door.hidden = true;
  room.hidden = actions.hidden = false;
  tokenInput.value = "";
  const tenant = /^tk_([a-z0-9-]{1,32})_/.exec(store.token)?.[1];
  byId("tenant").hidden = tenant === undefined;
  byId("tenant").textContent = tenant ?? "";
  keepToEnd();
  draft.focus();
}

/** @param {readonly string[]} models */
function showModels(models) {
  const choices = [{ id: "default", label: "Default model" }, ...models.filter((id) => id !== "default").map((id) => ({ id, label: id }))];
  modelSelect.replaceChildren(...choices.map(({ id, label }) => make("option", { value: id }, [label])));
  modelSelect.value = choices.some(({ id }) => id === store.model) ? store.model : "default";
}

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  void signIn(tokenInput.value.trim());
});

/** @param {string} token */
async function signIn(token) {
  if (!/^[\x21-\x7e]+$/.test(token)) return showDoor(token === "" ? "Paste your token first." : "That does not look like a token.");
  const enter = /** @type {HTMLButtonElement} */ (byId("enter"));
  enter.disabled = true;
  try {
    showModels(await listModels(token));
    store.token = token;
    showRoom();
    showConversation();
  } catch (error) {
    showDoor(problemOf(error));
  } finally {
    enter.disabled = false;
  }
}

/** @param {unknown} error */
function problemOf(error) {
  if (!(error instanceof GatewayError)) return "Something went wrong in this page. Please reload it.";
  if (error.status === 401) return "This token was not accepted. Is it complete, and not rotated since?";
  return error.message;
}

byId("leave").addEventListener("click", () => {
  listening?.abort();
  store.forgetAll();
  clearConversation();
  showDoor();
});

/* The conversation */

function clearConversation() {
  listening?.abort();
  messages.replaceChildren();
  welcome.hidden = false;
}

function showConversation() {
  messages.replaceChildren();
  const kept = store.messages;
  welcome.hidden = kept.length > 0;
  for (const message of kept) {
    if (message.role === "user") showMine(message.text);
    else {
      const view = createAnswerView(messages, keepToEnd);
      view.write(message.text);
      view.finish(message);
    }
  }
  const last = kept.at(-1);
  if (last?.role === "user") {
    const view = createAnswerView(messages, keepToEnd);
    const run = () => void listen(last, view);
    view.tell({
      title: "This answer was interrupted",
      text: "The turn went on without this page.",
      isCalm: true,
      action: { label: "Show the answer", run },
    });
  }
}

/** @param {string} text */
function showMine(text) {
  welcome.hidden = true;
  messages.append(make("li", { class: "mine", dir: "auto" }, [make("span", { class: "visually-hidden" }, ["You: "]), text]));
}

/** @param {string} text */
function ask(text) {
  const message = { role: /** @type {const} */ ("user"), text, turnKey: randomHex(16), model: modelSelect.value };
  store.add(message);
  showMine(text);
  isAtEnd = true;
  void listen(message);
}

/**
 * Runs one turn and shows it. The same `turnKey` is the same turn, however often it is asked for.
 *
 * @param {{ text: string, turnKey: string, model: string }} message
 * @param {{ remove(): void }} [replaced]
 */
async function listen(message, replaced) {
  replaced?.remove();
  const abort = new AbortController();
  listening?.abort();
  listening = abort;
  showBusy(true);
  status.textContent = "The answer is being written.";
  const view = createAnswerView(messages, keepToEnd);
  const startedAt = performance.now();
  let requestId = "";
  let facts = /** @type {string[]} */ ([]);
  try {
    for await (const event of streamTurn({ ...message, token: store.token, sessionId: store.sessionId, signal: abort.signal })) {
      if (event.kind === "started") requestId = event.requestId;
      else if (event.kind === "text") view.write(event.text);
      else if (event.kind === "tool") view.showTool(event);
      else if (event.kind === "usage") facts = [...factsOf(event.usage), ...facts];
      else if (event.reason === "length") facts = [...facts, "cut at the token limit"];
    }
    const answer = { text: view.text, facts: [...facts, seconds(performance.now() - startedAt)], requestId };
    if (abort.signal.aborted) return;
    store.add({ role: "assistant", ...answer });
    view.finish(answer);
    status.textContent = view.text.slice(0, 2000);
  } catch (error) {
    showFailure(error, { abort, message, view, requestId });
  } finally {
    if (listening === abort) {
      listening = undefined;
      showBusy(false);
    }
  }
}

/**
 * @param {unknown} error
 * @param {{ abort: AbortController, message: { text: string, turnKey: string, model: string }, view: ReturnType<typeof createAnswerView>, requestId: string }} turn
 */
function showFailure(error, { abort, message, view, requestId }) {
  if (abort.signal.aborted) {
    const text = "The turn goes on without this page, is billed, and stays in the conversation.";
    const run = () => void listen(message, view);
    view.tell({ title: "Stopped listening", text, isCalm: true, requestId, action: { label: "Show the answer", run } });
    status.textContent = "Stopped listening.";
    return;
  }
  if (error instanceof GatewayError && error.status === 401) {
    view.remove();
    store.token = "";
    return showDoor("This token is no longer accepted. Paste the current one to go on; your conversation is kept.");
  }
  const failure =
    error instanceof GatewayError ? error : new GatewayError({ status: 500, message: "This page could not show the answer." });
  if (!(error instanceof GatewayError)) console.error(error);
  if (failure.status === 429) {
    // One sentence tells of a used-up quota, however often it is tried.
    usedUp?.remove();
    usedUp = view;
  }
  view.fail(failure, (isSameTurn) => {
    const again = isSameTurn ? message : { ...message, turnKey: randomHex(16) };
    store.rekeyLast(again.turnKey);
    void listen(again, view);
  });
  status.textContent = "The turn did not work out.";
}

/** @param {import("./gateway-client.js").Usage} usage */
function factsOf({ prompt_tokens: input, completion_tokens: output }) {
  const number = new Intl.NumberFormat();
  return [
    ...(input === undefined ? [] : [`${number.format(input)} tokens in`]),
    ...(output === undefined ? [] : [`${number.format(output)} out`]),
  ];
}

/** @param {number} ms */
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

/* The composer */

/** @param {boolean} isBusy */
function showBusy(isBusy) {
  send.hidden = isBusy;
  stop.hidden = !isBusy;
}

function fitDraft() {
  send.toggleAttribute("disabled", draft.value.trim() === "");
  if (CSS.supports("field-sizing", "content")) return;
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight + 2}px`;
}

draft.addEventListener("input", fitDraft);
draft.addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  composer.dispatchEvent(new SubmitEvent("submit", { cancelable: true }));
});
composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = draft.value.trim();
  if (text === "" || listening) return;
  draft.value = "";
  fitDraft();
  ask(text);
});
stop.addEventListener("click", () => {
  listening?.abort();
  draft.focus();
});
byId("new").addEventListener("click", () => {
  clearConversation();
  store.forgetConversation();
  draft.focus();
});
byId("ideas").addEventListener("click", (event) => {
  if (event.target instanceof HTMLButtonElement && !listening) ask(event.target.textContent ?? "");
});
modelSelect.addEventListener("change", () => (store.model = modelSelect.value));

/* Scrolling: follow the answer unless the reader has scrolled up */

function keepToEnd() {
  if (isAtEnd) scroll.scrollTop = scroll.scrollHeight;
  toEnd.hidden = isAtEnd;
}
scroll.addEventListener("scroll", () => {
  isAtEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
  toEnd.hidden = isAtEnd;
});
toEnd.addEventListener("click", () => {
  isAtEnd = true;
  keepToEnd();
});
new ResizeObserver(keepToEnd).observe(scroll);

/* Start */

fitDraft();
if (store.token === "") {
  showDoor();
} else {
  showRoom();
  showConversation();
  try {
    showModels(await listModels(store.token));
  } catch (error) {
    if (error instanceof GatewayError && error.status === 401) {
      store.token = "";
      showDoor(problemOf(error));
    } else {
      showModels([]);
    }
  }
}
