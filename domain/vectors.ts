/** Embeddings of one answer: the dimensions as four bytes, then every vector's 32-bit floats, all little-endian. */
const headBytes = 4;
const floatBytes = 4;

/** @throws {RangeError} unless every vector has the same number of whole, finite dimensions */
export function packVectors(vectors: readonly Uint8Array[]): Buffer {
  const sizeBytes = vectors[0]?.length ?? 0;
  if (sizeBytes === 0 || sizeBytes % floatBytes !== 0 || vectors.some(({ length }) => length !== sizeBytes))
    throw new RangeError("the vectors differ in length");
  const packed = Buffer.concat([Buffer.alloc(headBytes), ...vectors]);
  packed.writeUInt32LE(sizeBytes / floatBytes, 0);
  for (let at = headBytes; at < packed.length; at += floatBytes)
    if (!Number.isFinite(packed.readFloatLE(at))) throw new RangeError("a vector holds a number that is not finite");
  return packed;
}

export const toFloats = (vector: Buffer): number[] =>
  Array.from({ length: vector.length / floatBytes }, (_, place) => vector.readFloatLE(place * floatBytes));

export function fromFloats(floats: readonly number[]): Buffer {
  const bytes = Buffer.alloc(floats.length * floatBytes);
  for (const [place, float] of floats.entries()) bytes.writeFloatLE(float, place * floatBytes);
  return bytes;
}

/** The vectors of packed bytes that come in pieces. */
export async function* unpackVectors(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer, void, undefined> {
  let held = Buffer.alloc(0);
  let sizeBytes: number | undefined;
  for await (const piece of pieces) {
    held = Buffer.concat([held, piece]);
    if (sizeBytes === undefined) {
      if (held.length < headBytes) continue;
      sizeBytes = held.readUInt32LE(0) * floatBytes;
      held = held.subarray(headBytes);
    }
    let at = 0;
    for (; at + sizeBytes <= held.length; at += sizeBytes) yield held.subarray(at, at + sizeBytes);
    held = held.subarray(at);
  }
}
