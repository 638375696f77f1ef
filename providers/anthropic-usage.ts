import { type JsonObject, asObject } from "./json-value.ts";
import type { ReportedUsage } from "./reported-usage.ts";
import { readCount } from "./token-count.ts";

/**
 * What a stream has reported so far: each event's counts are cumulative, so a later one replaces an earlier one field by
 * field; null and absent fields replace nothing (`message_start` brings the prompt's classes, `message_delta` the output's).
 */
export function mergeAnthropicUsage(earlier: JsonObject, later: unknown): JsonObject {
  const told = Object.entries(asObject(later)).filter(([, value]) => value !== null && value !== undefined);
  return { ...earlier, ...Object.fromEntries(told) };
}

/**
 * The usage of a Messages answer in disjoint classes. Anthropic's `input_tokens` are already without both cache classes;
 * `output_tokens` include thinking, which is a class of its own where it is reported. Writes of both lifetimes are one class:
 * `cache_creation` only splits `cache_creation_input_tokens`, and stands in for it where a server leaves it out.
 * @param most counts above it are not believed
 */
export function normaliseAnthropicUsage(usage: unknown, most: number): ReportedUsage {
  const raw = asObject(usage);
  const count = (value: unknown): number | null => readCount(value, most);
  const inputTokens = count(raw["input_tokens"]);
  const output = count(raw["output_tokens"]);
  if (inputTokens === null || output === null) return "missing";

  const { ephemeral_5m_input_tokens, ephemeral_1h_input_tokens } = asObject(raw["cache_creation"]);
  const writtenByLifetime = (count(ephemeral_5m_input_tokens) ?? 0) + (count(ephemeral_1h_input_tokens) ?? 0);
  const cacheReadTokens = count(raw["cache_read_input_tokens"]) ?? 0;
  const cacheWriteTokens = count(raw["cache_creation_input_tokens"]) ?? writtenByLifetime;
  const thinking = count(asObject(raw["output_tokens_details"])["thinking_tokens"]) ?? 0;
  if (Number.isNaN(inputTokens + output + cacheReadTokens + cacheWriteTokens + writtenByLifetime + thinking)) return "unbelievable";

  const reasoningTokens = Math.min(thinking, output);
  const fits = reasoningTokens === thinking && (writtenByLifetime === 0 || writtenByLifetime === cacheWriteTokens);
  return {
    inputTokens,
    cacheReadTokens,
    cacheWriteTokens,
    outputTokens: output - reasoningTokens,
    reasoningTokens,
    estimated: !fits,
    ...(fits ? {} : { doubt: "contradictory" }),
  };
}
