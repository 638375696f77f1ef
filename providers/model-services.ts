import type { EmbeddingRequest, ModerationRequest, TranscriptionRequest } from "../domain/service-request.ts";
import type { CountedUsage } from "../domain/usage.ts";

/** A service call as it goes to a provider: what a request holds by reference stands in it. */
export type ServiceCall = (EmbeddingRequest | ModerationRequest | (TranscriptionRequest & { readonly audio: Blob })) & {
  /** Sent as the provider's idempotency header: `<turn id>.0`. */
  readonly callId: string;
};

export type ServiceResult = {
  /** Embeddings as `packVectors` packs them; for the other services the provider's JSON. */
  readonly answer: Uint8Array;
  readonly usage: CountedUsage;
  readonly providerRequestId: string | undefined;
};

/** What a provider offers beside chat: embeddings, transcriptions, moderation. */
export interface ModelServices {
  /**
   * @param signal aborting it closes the connection to the provider
   * @throws {ModelCallError}
   */
  serve(call: ServiceCall, signal: AbortSignal): Promise<ServiceResult>;
}

/** Tokens that are billed for `usage`, where a service has input only. */
export const inputOnly = (inputTokens: number): CountedUsage => ({
  inputTokens,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
  estimated: false,
});
