import { type Attributes, SpanKind, SpanStatusCode } from "@opentelemetry/api";
import type { CountedUsage } from "../../domain/usage.ts";
import { ModelCallError, type ModelProvider } from "../../providers/model-provider.ts";
import type { Tool } from "../../sandbox/tool.ts";
import { type SpanSource, failSpan } from "./span-source.ts";

/** What a turn does outside of this process, under the names of OpenTelemetry's conventions for generative AI. */

/** A span for each try of a provider. */
export const tracedProvider =
  (spans: SpanSource) =>
  (provider: ModelProvider): ModelProvider => {
    const start = (operation: string, model: string, more: Attributes) =>
      spans.start(`${operation} ${model}`, {
        kind: SpanKind.CLIENT,
        attributes: { "gen_ai.operation.name": operation, "gen_ai.provider.name": provider.name, "gen_ai.request.model": model, ...more },
      });
    const { services } = provider;
    return {
      ...provider,
      async *call(request, signal) {
        const { maxTokens, temperature } = request.settings;
        const span = start("chat", request.model, {
          ...(maxTokens === undefined ? {} : { "gen_ai.request.max_tokens": maxTokens }),
          ...(temperature === undefined ? {} : { "gen_ai.request.temperature": temperature }),
        });
        let isSilent = true;
        try {
          await using deltas = provider.call(request, signal);
          for (;;) {
            const { done, value } = await deltas.next();
            if (done === true) {
              span.setAttributes({ ...usageOf(value.usage), "gen_ai.response.finish_reasons": [value.reply.finishReason] });
              if (value.providerRequestId !== undefined) span.setAttribute("gen_ai.response.id", value.providerRequestId);
              return value;
            }
            if (isSilent) span.addEvent("first token");
            isSilent = false;
            yield value;
          }
        } catch (error) {
          failCall(span, error);
          throw error;
        } finally {
          span.end();
        }
      },
      ...(services === undefined
        ? {}
        : {
            services: {
              async serve(call, signal) {
                const span = start(call.service, call.model, {});
                try {
                  const result = await services.serve(call, signal);
                  span.setAttributes(usageOf(result.usage));
                  return result;
                } catch (error) {
                  failCall(span, error);
                  throw error;
                } finally {
                  span.end();
                }
              },
            },
          }),
    };
  };

/** The conventions count cached tokens as input and reasoning as output; here the classes are disjoint. */
const usageOf = ({ inputTokens, cacheReadTokens, cacheWriteTokens, outputTokens, reasoningTokens }: CountedUsage): Attributes => ({
  "gen_ai.usage.input_tokens": inputTokens + cacheReadTokens + cacheWriteTokens,
  "gen_ai.usage.output_tokens": outputTokens + reasoningTokens,
  "gen_ai.usage.cache_read.input_tokens": cacheReadTokens,
  "gen_ai.usage.cache_creation.input_tokens": cacheWriteTokens,
});

function failCall(span: ReturnType<SpanSource["start"]>, error: unknown): void {
  failSpan(span, error);
  if (!(error instanceof ModelCallError)) return;
  span.setAttribute("error.type", error.kind);
  if (error.status !== undefined) span.setAttribute("http.response.status_code", error.status);
  if (error.usage !== undefined) span.setAttributes(usageOf(error.usage));
}

/** A span for each run of a tool: without its arguments and its answer. */
export const tracedTool =
  (spans: SpanSource) =>
  (tool: Tool): Tool => ({
    ...tool,
    async run(place, argumentsJson, signal) {
      const { name } = tool.definition;
      const span = spans.start(`execute_tool ${name}`, {
        attributes: { "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name },
      });
      try {
        const outcome = await tool.run(place, argumentsJson, signal);
        if (outcome.failed) span.setStatus({ code: SpanStatusCode.ERROR });
        return outcome;
      } catch (error) {
        failSpan(span, error);
        throw error;
      } finally {
        span.end();
      }
    },
  });
