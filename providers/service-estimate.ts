import type { ModerationPart, ServiceRequest } from "../domain/service-request.ts";
import type { TokenCounter } from "./token-estimate.ts";

/** An image of a moderation; OpenAI says 765 for one of high detail and 1024². */
const tokensPerImage = 765;

/** Speech of 32 kbit/s at the ten tokens a second that OpenAI's transcription models count: 4,000 bytes are ten tokens. */
const audioBytesPerToken = 400;

/** The input tokens of a service call: what is reserved for it, and what it is billed for where its provider counts nothing. At least 1. */
export function estimateServiceTokens(countTokens: TokenCounter, request: ServiceRequest): number {
  const count = (text: string): number => countTokens(request.model, text);
  return Math.max(1, tokensOf(request, count));
}

function tokensOf(request: ServiceRequest, count: (text: string) => number): number {
  switch (request.service) {
    case "embedding":
      return sum<string | readonly number[]>(request.input, (input) => (typeof input === "string" ? count(input) : input.length));
    case "moderation":
      if (typeof request.input === "string") return count(request.input);
      return sum<string | ModerationPart>(request.input, (part) =>
        typeof part === "string" ? count(part) : part.type === "text" ? count(part.text) : tokensPerImage,
      );
    case "transcription":
      return Math.ceil(request.sizeBytes / audioBytesPerToken) + count(request.prompt ?? "");
  }
}

function sum<T>(list: readonly T[], of: (item: T) => number): number {
  return list.reduce((total, item) => total + of(item), 0);
}
