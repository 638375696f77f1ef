import { explain, duration } from "./chat-errors.js";
import { copyButton, createMarkdownView, make } from "./markdown-view.js";

/** @typedef {import("./gateway-client.js").TurnEvent} TurnEvent */
/** @typedef {import("./gateway-client.js").GatewayError} GatewayError */

/** Shortest time in which a waiting text is shown in full: bursts look even, and nobody waits for it. */
const frames = 8;
const isStill = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * One answer on the page: tools, text as it grows, what it used, and what went wrong.
 *
 * @param {HTMLElement} list
 * @param {() => void} onGrow
 */
export function createAnswerView(list, onGrow) {
  const tools = make("ul", { class: "tools" });
  const body = make("div", { class: "answer" });
  const waiting = make("div", { class: "waiting", "aria-hidden": "true" }, [make("i"), make("i"), make("i")]);
  const root = make("li", { class: "theirs" }, [tools, body, waiting]);
  const markdown = createMarkdownView(body);
  let text = "";
  let shown = 0;
  let frame = 0;
  list.append(root);
  onGrow();

  const draw = () => {
    frame = 0;
    const step = isStill.matches ? text.length : Math.ceil((text.length - shown) / frames);
    shown = cutAt(text, shown + step);
    markdown.show(text.slice(0, shown));
    onGrow();
    if (shown < text.length) schedule();
  };
  const schedule = () => (frame ||= requestAnimationFrame(draw));
  const settle = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    shown = text.length;
    markdown.show(text);
    waiting.remove();
    for (const tool of runningTools()) {
      tool.className = "left";
      tool.querySelector(".mark")?.replaceChildren("–");
    }
  };
  const runningTools = () => /** @type {HTMLElement[]} */ ([...tools.querySelectorAll(".running")]);

  return {
    get text() {
      return text;
    },
    /** @param {string} more */
    write(more) {
      text += more;
      waiting.remove();
      schedule();
    },
    /** @param {Extract<TurnEvent, { kind: "tool" }>} tool */
    showTool({ id, name, state, summary }) {
      const mark = state === "running" ? "Running" : state === "done" ? "✓" : "✕";
      const item = make("li", { class: state, "data-tool": id }, [make("span", { class: "mark" }, [mark]), make("span", {}, [name])]);
      if (summary !== "") item.append(make("code", { title: summary }, [summary]));
      // Without an id of its own a tool is known by its name: what ends is the one that has run longest.
      const begun = state === "running" ? undefined : runningTools().find(({ dataset }) => dataset["tool"] === id);
      if (begun) begun.replaceWith(item);
      else tools.append(item);
      onGrow();
    },
    /** @param {{ facts: readonly string[], requestId: string }} outcome */
    finish({ facts, requestId }) {
      settle();
      const line = make("span", requestId === "" ? {} : { title: requestId }, [facts.join(" · ")]);
      root.append(make("div", { class: "foot" }, [copyButton(() => text), line]));
      onGrow();
    },
    /**
     * @param {{ title: string, text: string, isCalm?: boolean, requestId?: string, action?: { label: string, waitSeconds?: number | undefined, run: () => void } }} notice
     */
    tell({ title, text: words, isCalm = false, requestId = "", action }) {
      settle();
      const message = make("p", {}, [make("strong", {}, [title]), words]);
      if (requestId !== "") message.append(make("small", {}, [requestId]));
      const notice = make("div", { class: isCalm ? "notice calm" : "notice" }, [message]);
      if (action) notice.append(actionButton(action));
      root.append(notice);
      onGrow();
    },
    /**
     * @param {GatewayError} error
     * @param {(isSameTurn: boolean) => void} retry
     */
    fail(error, retry) {
      const { title, text: words, mayRetry, action, waitSeconds, isSameTurn } = explain(error);
      const { requestId } = error;
      if (!mayRetry) return this.tell({ title, text: words, requestId });
      this.tell({ title, text: words, requestId, action: { label: action, waitSeconds, run: () => retry(isSameTurn) } });
    },
    remove() {
      cancelAnimationFrame(frame);
      root.remove();
    },
  };
}

/**
 * A button that counts down before it may be pressed.
 *
 * @param {{ label: string, waitSeconds?: number | undefined, run: () => void }} action
 */
function actionButton({ label, waitSeconds = 0, run }) {
  const button = make("button", { type: "button" }, [label]);
  const until = performance.now() + waitSeconds * 1000;
  const tick = () => {
    const left = (until - performance.now()) / 1000;
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${label} in ${duration(left)}` : label;
    if (left > 0 && (button.isConnected || left > waitSeconds - 1)) setTimeout(tick, 500);
  };
  tick();
  button.addEventListener("click", run, { once: true });
  return button;
}

/**
 * Never between the two halves of a character outside the basic plane.
 *
 * @type {(text: string, at: number) => number}
 */
function cutAt(text, at) {
  const code = text.charCodeAt(at - 1);
  return code >= 0xd800 && code < 0xdc00 && at < text.length ? at + 1 : at;
}
