import { execFile } from "node:child_process";
import { closeSync, constants, openSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

/** What a program writes: our end as a stream, the program's end as a descriptor that the caller closes after the start. */
export type OutputPipe = { readonly reader: Socket; readonly programFd: number };

const BATCH = 16;
/** Fewer than that, two runs' worth, and more are made meanwhile. */
const LOW = 6;

/**
 * Real pipes for what programs write. Node's own `stdio: "pipe"` is a socket, which cannot be opened again by name, so that
 * `echo oops > /dev/stderr` would fail. The pipes begin as FIFOs whose names are gone before a program starts.
 */
export class PipePool {
  readonly #fds: number[] = [];
  #refill: Promise<void> | undefined;
  #isDisposed = false;

  /** @param lasting true lets the program write on when we are gone, instead of being killed by SIGPIPE */
  async take({ lasting = false } = {}): Promise<OutputPipe> {
    const fd = await this.#take();
    // Open for reading too, its end always has a reader.
    const programFd = openSync(`/proc/self/fd/${fd}`, lasting ? constants.O_RDWR : constants.O_WRONLY);
    return { reader: new Socket({ fd, readable: true, writable: false }), programFd };
  }

  /** Closes the pipes that nobody took. */
  dispose(): void {
    this.#isDisposed = true;
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }

  async #take(): Promise<number> {
    while (this.#fds.length === 0) await this.#more();
    const fd = this.#fds.pop() as number;
    // Whoever finds none left is told why none could be made.
    if (this.#fds.length < LOW) void this.#more().catch(() => undefined);
    return fd;
  }

  async #more(): Promise<void> {
    if (this.#isDisposed) throw new Error("The sandbox driver was disposed of.");
    this.#refill ??= makeBatch()
      .then((fds) => {
        if (this.#isDisposed) for (const fd of fds) closeSync(fd);
        else this.#fds.push(...fds);
      })
      .finally(() => (this.#refill = undefined));
    await this.#refill;
  }
}

/** Reading ends of new pipes. */
async function makeBatch(): Promise<number[]> {
  const directory = await mkdtemp(join(tmpdir(), "openclaw-pipes-"));
  try {
    const paths = Array.from({ length: BATCH }, (_, index) => join(directory, String(index)));
    // Open to the uid that the program runs as, which may open its end again as /dev/stdout; nobody else gets into the directory.
    await promisify(execFile)("mkfifo", ["-m", "0666", "--", ...paths], { env: { PATH: "/usr/bin:/bin" } });
    return paths.map((path) => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
