/** Tokens of one model call in five disjoint classes that add up to the provider's own total. */
export type Usage = {
  /** Fresh prompt tokens: neither read from nor written to a cache. */
  readonly inputTokens: number;
  readonly cacheReadTokens: number;
  readonly cacheWriteTokens: number;
  /** Without reasoning. */
  readonly outputTokens: number;
  readonly reasoningTokens: number;
};

/** A call's usage and whether it is the provider's count or our own estimate. */
export type CountedUsage = Usage & { readonly estimated: boolean };

export const noUsage: Usage = { inputTokens: 0, cacheReadTokens: 0, cacheWriteTokens: 0, outputTokens: 0, reasoningTokens: 0 };

export const addUsage = (a: Usage, b: Usage): Usage => ({
  inputTokens: a.inputTokens + b.inputTokens,
  cacheReadTokens: a.cacheReadTokens + b.cacheReadTokens,
  cacheWriteTokens: a.cacheWriteTokens + b.cacheWriteTokens,
  outputTokens: a.outputTokens + b.outputTokens,
  reasoningTokens: a.reasoningTokens + b.reasoningTokens,
});

export const promptTokensOf = (usage: Usage): number => usage.inputTokens + usage.cacheReadTokens + usage.cacheWriteTokens;

export const completionTokensOf = (usage: Usage): number => usage.outputTokens + usage.reasoningTokens;
