const ulidDigits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/**
 * The 26 characters of Crockford's base32 that stand for 128 bits, first character 0 to 7 (the ULID text form).
 * @param bytes exactly 16 bytes, most significant first
 */
export function encodeUlid(bytes: Uint8Array): string {
  if (bytes.length !== 16) throw new RangeError(`a ULID has 16 bytes, not ${bytes.length}`);
  let value = 0n;
  for (const byte of bytes) value = (value << 8n) | BigInt(byte);
  let text = "";
  for (let digit = 0; digit < 26; digit++) {
    text = ulidDigits.charAt(Number(value & 31n)) + text;
    value >>= 5n;
  }
  return text;
}

/** A ULID's bytes: 48 bits of milliseconds, then 80 random bits. */
export function ulidBytes(nowMs: number, random: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setUint16(0, Math.floor(nowMs / 2 ** 32));
  new DataView(bytes.buffer).setUint32(2, nowMs % 2 ** 32);
  bytes.set(random.subarray(0, 10), 6);
  return bytes;
}

/** When a ULID was minted, in epoch milliseconds: what it begins with. */
export const ulidTimeMs = (ulid: string): number =>
  ulid
    .slice(0, 10)
    .split("")
    .reduce((ms, digit) => ms * 32 + ulidDigits.indexOf(digit), 0);
