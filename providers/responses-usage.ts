import { asObject } from "./json-value.ts";
import { normaliseOpenAiUsage } from "./openai-usage.ts";
import type { ReportedUsage } from "./reported-usage.ts";

/**
 * The usage of a Responses answer: Chat Completions' counts under other names.
 * @param most counts above it are not believed
 */
export function normaliseResponsesUsage(usage: unknown, most: number): ReportedUsage {
  const raw = asObject(usage);
  return normaliseOpenAiUsage(
    {
      prompt_tokens: raw["input_tokens"],
      completion_tokens: raw["output_tokens"],
      total_tokens: raw["total_tokens"],
      prompt_tokens_details: raw["input_tokens_details"],
      completion_tokens_details: raw["output_tokens_details"],
    },
    most,
  );
}
