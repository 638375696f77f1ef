import type { Readable } from "node:stream";

/** What bubblewrap says on its `--json-status-fd`: one JSON object per line. */
export type BwrapStatus = {
  /** Host pid of the first process of the sandbox's pid namespace. */
  readonly initPid: number | undefined;
  /** Given only when the program was really started and has ended; 128 + n when signal n ended it. */
  readonly exitCode: number | undefined;
};

export type StatusReader = {
  readonly status: () => BwrapStatus;
  /** The first process is known, or nothing more will be said. */
  readonly begun: Promise<void>;
  readonly ended: Promise<void>;
};

/** Reads the status as it comes. */
export function readBwrapStatus(stream: Readable, onInit: (pid: number) => void): StatusReader {
  let status: BwrapStatus = { initPid: undefined, exitCode: undefined };
  let text = "";
  let begin = (): void => {};
  const begun = new Promise<void>((resolve) => (begin = resolve));
  stream.setEncoding("utf8");
  stream.on("data", (chunk: string) => {
    text += chunk;
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) {
      const said = JSON.parse(line) as Partial<Record<"child-pid" | "exit-code", number>>;
      status = { initPid: said["child-pid"] ?? status.initPid, exitCode: said["exit-code"] ?? status.exitCode };
      if (said["child-pid"] === undefined) continue;
      onInit(said["child-pid"]);
      begin();
    }
  });
  const ended = new Promise<void>((resolve) => {
    stream.once("close", () => {
      begin();
      resolve();
    });
    stream.on("error", () => stream.destroy());
  });
  return { status: () => status, begun, ended };
}
