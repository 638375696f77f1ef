import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

/** A span as OTLP's JSON has it, with its attributes as an object. */
export type CollectedSpan = {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | undefined;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly failed: boolean;
};

type OtlpValue = { readonly stringValue?: string; readonly intValue?: number; readonly boolValue?: boolean; readonly doubleValue?: number };
type OtlpSpan = Omit<CollectedSpan, "attributes" | "failed"> & {
  readonly attributes: readonly { readonly key: string; readonly value: OtlpValue }[];
  readonly status: { readonly code?: number };
};
type OtlpBody = { readonly resourceSpans: readonly { readonly scopeSpans: readonly { readonly spans: readonly OtlpSpan[] }[] }[] };

/** A collector that takes OTLP over HTTP in JSON, as OpenTelemetry's own does at /v1/traces. */
export type TraceCollector = {
  readonly url: string;
  /** Everything that it was sent, as text. */
  text(): string;
  spans(): readonly CollectedSpan[];
  /** The spans of a trace, once `isWhole` says that all are there. */
  trace(traceId: string, isWhole: (spans: readonly CollectedSpan[]) => boolean): Promise<readonly CollectedSpan[]>;
  close(): Promise<void>;
};

export async function startTraceCollector(): Promise<TraceCollector> {
  const bodies: string[] = [];
  const spans: CollectedSpan[] = [];
  const waiting = new Set<() => void>();
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const text = Buffer.concat(chunks).toString();
      bodies.push(text);
      for (const { scopeSpans } of (JSON.parse(text) as OtlpBody).resourceSpans)
        for (const scope of scopeSpans) spans.push(...scope.spans.map(collected));
      response.writeHead(request.url === "/v1/traces" ? 200 : 404, { "content-type": "application/json" }).end("{}");
      for (const look of waiting) look();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    text: () => bodies.join("\n"),
    spans: () => spans,
    async trace(traceId, isWhole) {
      return await new Promise((resolve) => {
        const look = (): void => {
          const found = spans.filter((span) => span.traceId === traceId);
          if (!isWhole(found)) return;
          waiting.delete(look);
          resolve(found);
        };
        waiting.add(look);
        look();
      });
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

const collected = ({ attributes, status, parentSpanId, ...span }: OtlpSpan): CollectedSpan => ({
  ...span,
  parentSpanId: parentSpanId === "" ? undefined : parentSpanId,
  attributes: Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]])),
  failed: status.code === 2,
});
