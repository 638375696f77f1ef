import { createHash } from "node:crypto";
import { fromFloats, packVectors } from "../domain/vectors.ts";
import { ModelCallError } from "./model-provider.ts";
import { type ModelServices, inputOnly } from "./model-services.ts";

const defaultDimensions = 256;
const mostDimensions = 4_096;

/**
 * The demo provider's embeddings: deterministic, offline, and no model. Each word adds a direction of its own, so texts that share
 * words are near each other, whatever they mean. The vectors have length 1; a word, or a token number, is one token.
 */
export const demoServices: ModelServices = {
  async serve(call) {
    if (call.service !== "embedding") throw new ModelCallError("refused", "The demo provider makes embeddings only.", { status: 400 });
    const { dimensions = defaultDimensions } = call;
    if (dimensions > mostDimensions)
      throw new ModelCallError("refused", `The demo embedding has at most ${mostDimensions} dimensions.`, { status: 400 });
    const inputs = call.input.map((input) =>
      typeof input === "string" ? (input.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [input]) : input.map(String),
    );
    return await Promise.resolve({
      answer: packVectors(inputs.map((words) => vectorOf(words, dimensions))),
      usage: inputOnly(inputs.reduce((total, words) => total + words.length, 0)),
      providerRequestId: `demo-${createHash("sha256").update(call.callId).digest("hex").slice(0, 24)}`,
    });
  },
};

function vectorOf(words: readonly string[], dimensions: number): Buffer {
  const sums = Array.from({ length: dimensions }, () => 0);
  for (const word of words) {
    const digest = createHash("sha256").update(word).digest();
    for (let place = 0; place < digest.length; place += 4) {
      const at = digest.readUInt16LE(place) % dimensions;
      sums[at] = (sums[at] ?? 0) + digest.readInt16LE(place + 2) / 32_768;
    }
  }
  const length = Math.hypot(...sums) || 1;
  return fromFloats(sums.map((value) => value / length));
}
