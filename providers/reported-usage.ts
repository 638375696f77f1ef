import type { CountedUsage } from "../domain/usage.ts";
import type { ModelRequest } from "./model-provider.ts";
import type { ReplyBuilder } from "./reply-builder.ts";
import { estimatePromptTokens, type TokenCounter } from "./token-estimate.ts";

/** What a provider's own count says, or why there is none. */
export type ReportedUsage = CountedUsage | "missing" | "unbelievable";

/** What a call is billed for: the provider's count, and our estimate in place of what is missing or cannot be believed. */
export type UsageCounter = {
  ofWhole(reported: ReportedUsage): CountedUsage;
  /**
   * Of an answer whose last count did not come, because it was cut or the provider left it out: an earlier count may not hold all
   * of it, so the larger of it and what arrived is taken. Undefined where nothing was reported and nothing arrived.
   */
  ofPart(reported: ReportedUsage, why: "cut" | "missing"): CountedUsage | undefined;
};

export function createUsageCounter(request: ModelRequest, reply: Pick<ReplyBuilder, "generated">, countTokens: TokenCounter): UsageCounter {
  const arrived = () => {
    const { output, reasoning } = reply.generated();
    return { outputTokens: countTokens(request.model, output), reasoningTokens: countTokens(request.model, reasoning) };
  };
  const estimate = (doubt: "missing" | "unbelievable" | "cut"): CountedUsage => ({
    inputTokens: estimatePromptTokens(countTokens, request),
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
    ...arrived(),
    estimated: true,
    doubt,
  });

  return {
    ofWhole: (reported) => (typeof reported === "string" ? estimate(reported) : reported),
    ofPart(reported, why) {
      const { outputTokens, reasoningTokens } = arrived();
      const sum = outputTokens + reasoningTokens;
      if (reported === "missing") return sum === 0 ? undefined : estimate(why);
      if (reported === "unbelievable") return estimate(reported);
      if (sum <= reported.outputTokens + reported.reasoningTokens) return reported;
      const reasoning = Math.min(sum, Math.max(reported.reasoningTokens, reasoningTokens));
      return { ...reported, outputTokens: sum - reasoning, reasoningTokens: reasoning, estimated: true, doubt: why };
    },
  };
}
