import { PassThrough, type Readable } from "node:stream";

const READY = Buffer.from("ready\n");

/** Of one stream of a container: what lies between the runner's `ready` and the word that closes it. */
export class DockerOutput {
  readonly #stream = new PassThrough();
  readonly #ready = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<string>();
  readonly #behindBytes: number;
  #isReady = false;
  #word: Buffer | undefined;
  #isClosed = false;
  /** What may yet turn out to be the beginning of a word of the runner's. */
  #held: Buffer = Buffer.alloc(0);

  /** @param behindBytes what the runner says after the word */
  constructor({ behindBytes }: { readonly behindBytes: number }) {
    this.#behindBytes = behindBytes;
  }

  /** What the program wrote. */
  get stream(): Readable {
    return this.#stream;
  }

  /** The runner waits for its job. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** What the runner said behind the word; never settles for a container that ends before. */
  get closed(): Promise<string> {
    return this.#closed.promise;
  }

  expect(word: string): void {
    this.#word = Buffer.from(word);
  }

  /** The name that dockerode writes to. */
  write(chunk: Buffer): void {
    if (this.#isClosed) return;
    this.#held = Buffer.concat([this.#held, chunk]);
    if (!this.#isReady) this.#awaitReady();
    if (this.#isReady && this.#word !== undefined) this.#passOn(this.#word);
  }

  /** The container is gone: what was held back was the program's. */
  end(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#isReady && this.#word !== undefined) this.#stream.write(this.#held);
    this.#stream.end();
  }

  #awaitReady(): void {
    const at = this.#held.indexOf(READY);
    if (at === -1) return;
    this.#held = this.#held.subarray(at + READY.length);
    this.#isReady = true;
    this.#ready.resolve();
  }

  #passOn(word: Buffer): void {
    const at = this.#held.indexOf(word);
    const kept = at === -1 ? this.#held.length - beginningAtEnd(this.#held, word) : at;
    if (kept > 0) this.#stream.write(this.#held.subarray(0, kept));
    this.#held = this.#held.subarray(kept);
    if (at === -1 || this.#held.length < word.length + this.#behindBytes) return;
    this.#isClosed = true;
    this.#closed.resolve(this.#held.subarray(word.length, word.length + this.#behindBytes).toString("latin1"));
    this.#stream.end();
  }
}

/** How many of the last bytes could be the first ones of the word. */
function beginningAtEnd(bytes: Buffer, word: Buffer): number {
  for (let length = Math.min(bytes.length, word.length - 1); length > 0; length -= 1)
    if (bytes.subarray(bytes.length - length).equals(word.subarray(0, length))) return length;
  return 0;
}
