/** What the person at the terminal sees: one line for each thing done, missing or odd, and nothing when there is nothing to say. */

const isTerminal = process.stderr.isTTY === true;
const colour = (/** @type {number} */ code, /** @type {string} */ text) =>
  isTerminal && process.env["NO_COLOR"] === undefined ? `\u001b[${code}m${text}\u001b[0m` : text;
const clearLine = "\r\u001b[2K";
/** Without a terminal, progress is a new line this often, so that a CI log shows life without drowning in it. */
const progressEveryMs = 15_000;

export class Report {
  problems = 0;

  /** @param {string} text */
  done(text) {
    process.stdout.write(`${colour(32, "✓")} ${text}\n`);
  }

  /** Something is off, but what was asked for still works. @param {string} text */
  warn(text) {
    process.stderr.write(`${colour(33, "!")} ${oneLine(text)}\n`);
  }

  /** Something is missing and has to be put right before it works. @param {string} text */
  problem(text) {
    this.problems += 1;
    process.stderr.write(`${colour(31, "✗")} ${oneLine(text)}\n`);
  }

  /**
   * Shows that long work goes on: elapsed seconds and the last thing said, until the returned function is called.
   * @param {string} title
   * @returns {{ note: (text: string) => void, end: () => void }}
   */
  progress(title) {
    const startedAt = Date.now();
    let last = "";
    const show = () => {
      const line = `… ${title} (${Math.round((Date.now() - startedAt) / 1000)} s)${last === "" ? "" : ` ${last}`}`;
      const width = process.stderr.columns ?? 80;
      process.stderr.write(isTerminal ? `${clearLine}${line.slice(0, width - 1)}` : `${line}\n`);
    };
    show();
    const timer = setInterval(show, isTerminal ? 500 : progressEveryMs);
    return {
      note: (text) => void (last = oneLine(text)),
      end: () => {
        clearInterval(timer);
        if (isTerminal) process.stderr.write(clearLine);
      },
    };
  }
}

/** @param {string} text */
const oneLine = (text) => text.trim().replaceAll(/\s*\n\s*/g, " ");
