import type { CountedUsage } from "../domain/usage.ts";
import { asObject } from "./json-value.ts";
import { readCount } from "./token-count.ts";

/**
 * The usage of a Chat Completions answer in disjoint classes that add up to the provider's own total, or undefined if it holds
 * no believable count.
 *
 * OpenAI counts cached (and cache-written) tokens inside `prompt_tokens` and reasoning inside `completion_tokens`. Servers that
 * call themselves compatible differ, and `total_tokens` tells how: xAI adds reasoning on top, some add cached on top, Gemini's
 * total holds thinking tokens that no other field names. DeepSeek names the cached part `prompt_cache_hit_tokens`, Moonshot
 * `cached_tokens`. A split that contradicts the totals is cut down to fit them and marked `estimated`.
 * @param most counts above it are not believed
 */
export function normaliseOpenAiUsage(usage: unknown, most: number): CountedUsage | undefined {
  const raw = asObject(usage);
  const count = (value: unknown): number | null => readCount(value, most);
  const prompt = count(raw["prompt_tokens"]);
  const completion = count(raw["completion_tokens"]);
  if (prompt === null || completion === null) return undefined;

  const promptDetails = asObject(raw["prompt_tokens_details"]);
  const cached = count(promptDetails["cached_tokens"]) ?? count(raw["prompt_cache_hit_tokens"]) ?? count(raw["cached_tokens"]) ?? 0;
  const written = count(promptDetails["cache_write_tokens"]) ?? 0;
  const reasoning = count(asObject(raw["completion_tokens_details"])["reasoning_tokens"]) ?? 0;
  const total = count(raw["total_tokens"]);
  if (Number.isNaN(prompt + completion + cached + written + reasoning + (total ?? 0))) return undefined;

  const cache = cached + written;
  const stated = total !== null && total >= prompt + completion; // a total of 0, as some servers send, states nothing
  const onTop = stated ? total - prompt - completion : 0;
  const bothOnTop = onTop > 0 && onTop === cache + reasoning;
  const reasoningOnTop = stated ? bothOnTop || (onTop > 0 && onTop === reasoning) : reasoning > completion;
  const cacheOnTop = stated ? bothOnTop || (onTop > 0 && !reasoningOnTop && onTop === cache) : cache > prompt;
  const unnamed = stated && !reasoningOnTop && !cacheOnTop ? onTop : 0;

  const allPrompt = cacheOnTop ? prompt + cache : prompt;
  const allCompletion = (reasoningOnTop ? completion + reasoning : completion) + unnamed;
  const cacheReadTokens = Math.min(cached, allPrompt);
  const cacheWriteTokens = Math.min(written, allPrompt - cacheReadTokens);
  const reasoningTokens = Math.min(reasoning + unnamed, allCompletion);
  return {
    inputTokens: allPrompt - cacheReadTokens - cacheWriteTokens,
    cacheReadTokens,
    cacheWriteTokens,
    outputTokens: allCompletion - reasoningTokens,
    reasoningTokens,
    estimated: cacheReadTokens + cacheWriteTokens < cache || reasoningTokens < reasoning + unnamed,
  };
}
