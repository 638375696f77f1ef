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
  /** The first process of the sandbox's pid namespace, once it is known. */
  readonly initPid: Promise<number>;
  /** The program's exit status is known. */
  readonly exited: Promise<void>;
  readonly ended: Promise<void>;
};

/** Reads the status as it comes. */
export function readBwrapStatus(stream: Readable): StatusReader {
  const init = Promise.withResolvers<number>();
  const exit = Promise.withResolvers<void>();
  let status: BwrapStatus = { initPid: undefined, exitCode: undefined };
  let text = "";
  stream.setEncoding("utf8");
  stream.on("data", (chunk: string) => {
    text += chunk;
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) {
      const said = JSON.parse(line) as Partial<Record<"child-pid" | "exit-code", number>>;
      status = { initPid: said["child-pid"] ?? status.initPid, exitCode: said["exit-code"] ?? status.exitCode };
      if (said["child-pid"] !== undefined) init.resolve(said["child-pid"]);
      if (said["exit-code"] !== undefined) exit.resolve();
    }
  });
  const ended = new Promise<void>((resolve) => {
    stream.once("close", () => resolve());
    stream.on("error", () => stream.destroy());
  });
  return { status: () => status, initPid: init.promise, exited: exit.promise, ended };
}
