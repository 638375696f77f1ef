import { asObject, type JsonObject } from "./json-value.ts";
import type { ReportedUsage } from "./reported-usage.ts";
import { readCount } from "./token-count.ts";

/**
 * The usage of a Chat Completions answer in disjoint classes that add up to the provider's own total.
 *
 * OpenAI counts cached (and cache-written) tokens inside `prompt_tokens`, reasoning inside `completion_tokens`, and audio inside
 * both. Servers that call themselves compatible differ, and `total_tokens` tells how: xAI adds reasoning on top, some add cached
 * on top, Gemini's total holds thinking tokens that no other field names. The cached part has several names, see `cachedOf`. A
 * split that contradicts the totals is cut down to fit them and marked `contradictory`.
 * @param most counts above it are not believed
 */
export function normaliseOpenAiUsage(usage: unknown, most: number): ReportedUsage {
  const raw = asObject(usage);
  const count = (value: unknown): number | null => readCount(value, most);
  const prompt = count(raw["prompt_tokens"]);
  const completion = count(raw["completion_tokens"]);
  if (prompt === null || completion === null) return "missing";

  const cached = cachedOf(raw, count);
  const written = count(asObject(raw["prompt_tokens_details"])["cache_write_tokens"]) ?? 0;
  const reasoning = count(asObject(raw["completion_tokens_details"])["reasoning_tokens"]) ?? 0;
  const total = readCount(raw["total_tokens"], 2 * most) ?? 0; // a sum, and billed only in its parts
  if (Number.isNaN(prompt + completion + cached + written + reasoning + total)) return "unbelievable";

  const cache = cached + written;
  const stated = total > 0 || prompt + completion === 0; // a total of 0, as some servers always send, states nothing
  const onTop = Math.max(0, total - prompt - completion);
  const bothOnTop = onTop > 0 && onTop === cache + reasoning;
  const reasoningOnTop = stated ? bothOnTop || (onTop > 0 && onTop === reasoning) : reasoning > completion;
  const cacheOnTop = stated ? bothOnTop || (onTop > 0 && !reasoningOnTop && onTop === cache) : cache > prompt;
  const unnamed = reasoningOnTop || cacheOnTop ? 0 : onTop;

  const allPrompt = cacheOnTop ? prompt + cache : prompt;
  const allCompletion = (reasoningOnTop ? completion + reasoning : completion) + unnamed;
  const cacheReadTokens = Math.min(cached, allPrompt);
  const cacheWriteTokens = Math.min(written, allPrompt - cacheReadTokens);
  const reasoningTokens = Math.min(reasoning + unnamed, allCompletion);
  const fits =
    cacheReadTokens + cacheWriteTokens === cache &&
    reasoningTokens === reasoning + unnamed &&
    !(stated && total < prompt + completion) &&
    !(unnamed > 0 && reasoning > 0); // the reasoning is named, so the rest of the total is something else
  return {
    inputTokens: allPrompt - cacheReadTokens - cacheWriteTokens,
    cacheReadTokens,
    cacheWriteTokens,
    outputTokens: allCompletion - reasoningTokens,
    reasoningTokens,
    estimated: !fits,
    ...(fits ? {} : { doubt: "contradictory" }),
  };
}

/** The cached part of the prompt under the names of OpenAI, Mistral (three), DeepSeek and Moonshot. */
function cachedOf(usage: JsonObject, count: (value: unknown) => number | null): number {
  return (
    count(asObject(usage["prompt_tokens_details"])["cached_tokens"]) ??
    count(asObject(usage["prompt_token_details"])["cached_tokens"]) ??
    count(usage["num_cached_tokens"]) ??
    count(usage["prompt_cache_hit_tokens"]) ??
    count(usage["cached_tokens"]) ??
    0
  );
}
