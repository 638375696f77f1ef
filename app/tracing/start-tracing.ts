import { Counter, type Registry } from "prom-client";
import { tracedProvider, tracedTool } from "./call-spans.ts";
import { createRequestSpans } from "./request-spans.ts";
import { createSpanSource } from "./span-source.ts";
import { createTurnSpans } from "./turn-spans.ts";
import type { Tracing, TracingOptions } from "./tracing.ts";

/** Loaded only where there is a collector: it brings OpenTelemetry's SDK with it. */
export function startTracing(options: Omit<TracingOptions, "endpoint"> & { readonly endpoint: string }): Tracing {
  const spans = createSpanSource(options);
  const turns = createTurnSpans(spans, options.log);
  return {
    requests: createRequestSpans(spans),
    observeTurns: turns.observeTurns,
    observeProvider: tracedProvider(spans),
    observeTool: tracedTool(spans),
    activities: turns.activities,
    attach(registry: Registry) {
      const counter = new Counter({
        name: "openclaw_trace_spans_total",
        help: "Spans that ended, that the collector took, and that it did not take; what is missing was dropped because too many waited.",
        labelNames: ["outcome"],
        registers: [registry],
      });
      spans.onEnd(() => counter.inc({ outcome: "ended" }));
      spans.onExport((outcome, count) => counter.inc({ outcome }, count));
    },
    async close() {
      await turns.settled();
      await spans.close();
    },
  };
}
