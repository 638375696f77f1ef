/** SHA-256 without node:crypto: workflows, which cannot import it, check the hashes that activities return. FIPS 180-4. */

/** The first 32 bits of the fractional parts of the `power`-th roots of the first `count` primes. */
function rootConstants(count: number, power: 2 | 3): readonly number[] {
  const constants: number[] = [];
  for (let candidate = 2; constants.length < count; candidate++) {
    let isPrime = true;
    for (let divisor = 2; divisor * divisor <= candidate; divisor++) if (candidate % divisor === 0) isPrime = false;
    if (isPrime) constants.push(fractionBits(candidate, power));
  }
  return constants;
}

/** Exact, in integers: the low 32 bits of floor(root(number) * 2^32). */
function fractionBits(number: number, power: 2 | 3): number {
  const exponent = BigInt(power);
  const scaled = BigInt(number) << (32n * exponent);
  let low = 0n;
  let high = BigInt(number) << 32n;
  while (low < high) {
    const middle = (low + high + 1n) / 2n;
    if (middle ** exponent <= scaled) low = middle;
    else high = middle - 1n;
  }
  return Number(low & 0xffffffffn);
}

const roundConstants = rootConstants(64, 3);
const initialState = rootConstants(8, 2);

const rotated = (word: number, by: number): number => (word >>> by) | (word << (32 - by));

/** @returns 64 lower-case hex digits, of the text's UTF-8 form. */
export function sha256Hex(text: string): string {
  const message = utf8Of(text);
  const padded = new Uint8Array(Math.ceil((message.length + 9) / 64) * 64);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(message.length / 2 ** 29));
  view.setUint32(padded.length - 4, (message.length << 3) >>> 0);

  const state = Uint32Array.from(initialState);
  const schedule = new Uint32Array(64);
  for (let block = 0; block < padded.length; block += 64) {
    for (let word = 0; word < 16; word++) schedule[word] = view.getUint32(block + 4 * word);
    for (let word = 16; word < 64; word++) {
      const [w2, w7, w15, w16] = [2, 7, 15, 16].map((back) => schedule[word - back] ?? 0) as [number, number, number, number];
      const s0 = rotated(w15, 7) ^ rotated(w15, 18) ^ (w15 >>> 3);
      const s1 = rotated(w2, 17) ^ rotated(w2, 19) ^ (w2 >>> 10);
      schedule[word] = w16 + s0 + w7 + s1;
    }
    addBlock(state, schedule);
  }
  return [...state].map((word) => word.toString(16).padStart(8, "0")).join("");
}

function addBlock(state: Uint32Array, schedule: Uint32Array): void {
  let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
  for (let round = 0; round < 64; round++) {
    const s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
    const choice = (e & f) ^ (~e & g);
    const first = (h + s1 + choice + (roundConstants[round] ?? 0) + (schedule[round] ?? 0)) | 0;
    const s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
    const majority = (a & b) ^ (a & c) ^ (b & c);
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + s0 + majority) | 0];
  }
  for (const [index, word] of [a, b, c, d, e, f, g, h].entries()) state[index] = (state[index] ?? 0) + word;
}

/** By hand: a workflow's globals differ between SDK versions, and `TextEncoder` is not promised there. */
function utf8Of(text: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of text) {
    const point = character.codePointAt(0) ?? 0;
    if (point < 0x80) bytes.push(point);
    else if (point < 0x800) bytes.push(0xc0 | (point >> 6), 0x80 | (point & 0x3f));
    else if (point < 0x10000) bytes.push(0xe0 | (point >> 12), 0x80 | ((point >> 6) & 0x3f), 0x80 | (point & 0x3f));
    else bytes.push(0xf0 | (point >> 18), 0x80 | ((point >> 12) & 0x3f), 0x80 | ((point >> 6) & 0x3f), 0x80 | (point & 0x3f));
  }
  return Uint8Array.from(bytes);
}
