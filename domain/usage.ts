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

/**
 * Why a call was counted here, in part or as a whole. `missing`: the answer is whole and holds no count. `unbelievable`: a number
 * is none: negative, a fraction, a text, or more than 100 context windows. `contradictory`: the parts do not fit into the totals.
 * `cut`: the answer ended before its count.
 */
export const usageDoubts = ["missing", "unbelievable", "contradictory", "cut"] as const;
export type UsageDoubt = (typeof usageDoubts)[number];

/** A call's usage and whether it is the provider's count or our own estimate; a doubt is always an estimate. */
export type CountedUsage = Usage & { readonly estimated: boolean; readonly doubt?: UsageDoubt | undefined };

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
