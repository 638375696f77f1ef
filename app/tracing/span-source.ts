import { AsyncLocalStorage } from "node:async_hooks";
import { ROOT_CONTEXT, type Span, type SpanContext, type SpanOptions, SpanStatusCode, trace } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  BatchSpanProcessor,
  type IdGenerator,
  ParentBasedSampler,
  RandomIdGenerator,
  type SpanExporter,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from "@opentelemetry/sdk-trace";
import { AppError } from "../../domain/app-error.ts";
import type { TracingOptions } from "./tracing.ts";

/** Makes the spans of this process and sends them away, in batches, never in anybody's way. */
export type SpanSource = {
  /** Under `parent`, else under the span that runs, else as the root of a new trace. `id`: instead of a random one. */
  start(name: string, options: SpanOptions & { readonly parent?: SpanContext; readonly id?: string }): Span;
  /** Runs `work` with the span as the running one. */
  run<T>(span: Span, work: () => T): T;
  /** The span that runs. */
  current(): Span | undefined;
  /** Spans that the collector took, and that it did not. */
  onExport(listener: (outcome: "exported" | "failed", spans: number) => void): void;
  onEnd(listener: () => void): void;
  close(): Promise<void>;
};

/** Where a collector takes traces; an address that names more than the host may be the whole one. */
const tracesUrlOf = (endpoint: string): string =>
  /\/v1\/traces\/?$/.test(endpoint) ? endpoint : `${endpoint.replace(/\/+$/, "")}/v1/traces`;

/** Beyond it spans are dropped: a collector that is away must not cost memory. */
const queuedSpans = 4_096;
const exportTimeoutMs = 5_000;

export function createSpanSource(options: Omit<TracingOptions, "endpoint"> & { readonly endpoint: string }): SpanSource {
  const { endpoint, serviceName = "openclaw", sampleRatio, role, log } = options;
  const ids = new GivenIds();
  const exporter = countedExporter(new OTLPTraceExporter({ url: tracesUrlOf(endpoint), timeoutMillis: exportTimeoutMs }), log);
  let onEnd = (): void => {};
  const provider = new TracerProvider({
    resource: resourceFromAttributes({ "service.name": serviceName, "openclaw.role": role, "process.pid": process.pid }),
    sampler: new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(sampleRatio) }),
    idGenerator: ids,
    spanProcessors: [
      new BatchSpanProcessor({ exporter, maxQueueSize: queuedSpans, scheduledDelayMillis: 1_000, exportTimeoutMillis: exportTimeoutMs }),
      { onStart: () => {}, onEnd: () => onEnd(), forceFlush: async () => {}, shutdown: async () => {} },
    ],
  });
  const tracer = provider.getTracer("openclaw");
  const running = new AsyncLocalStorage<Span>();
  return {
    start(name, { parent, id, ...rest }) {
      const above = parent ?? running.getStore()?.spanContext();
      ids.next = id;
      try {
        return tracer.startSpan(name, rest, above === undefined ? ROOT_CONTEXT : trace.setSpanContext(ROOT_CONTEXT, above));
      } finally {
        ids.next = undefined;
      }
    },
    run: (span, work) => running.run(span, work),
    current: () => running.getStore(),
    onExport: (listener) => exporter.listen(listener),
    onEnd: (listener) => void (onEnd = listener),
    close: async () => await provider.shutdown().catch((error: unknown) => log("the last spans were not sent", { error: String(error) })),
  };
}

/** The span ends as failed: with the code of the error, never its text. */
export function failSpan(span: Span, error: unknown): void {
  span.setStatus({ code: SpanStatusCode.ERROR });
  span.setAttribute("error.type", error instanceof AppError ? error.code : error instanceof Error ? error.name : "unknown");
}

/** Random ids, unless one is given for the next span. */
class GivenIds implements IdGenerator {
  next: string | undefined;
  readonly #random = new RandomIdGenerator();
  readonly generateTraceId = (): string => this.#random.generateTraceId();
  readonly generateSpanId = (): string => this.next ?? this.#random.generateSpanId();
}

const linesApartMs = 60_000;

function countedExporter(exporter: SpanExporter, log: TracingOptions["log"]) {
  let listener: (outcome: "exported" | "failed", spans: number) => void = () => {};
  let toldAtMs = -Infinity;
  return {
    listen(next: typeof listener): void {
      listener = next;
    },
    export(...[spans, done]: Parameters<SpanExporter["export"]>): void {
      exporter.export(spans, (result) => {
        listener(result.code === 0 ? "exported" : "failed", spans.length);
        if (result.code !== 0 && Date.now() - toldAtMs > linesApartMs) {
          toldAtMs = Date.now();
          log("spans were not taken by the collector", { spans: spans.length, error: String(result.error) });
        }
        done(result);
      });
    },
    shutdown: async () => await exporter.shutdown(),
    forceFlush: async () => await exporter.forceFlush?.(),
  };
}
