import type { ActivityInterceptorsFactory } from "@temporalio/worker";
import type { Registry } from "prom-client";
import type { TurnService } from "../../gateway/turn-service.ts";
import type { RequestTracing } from "../../gateway/request-tracing.ts";
import type { ModelProvider } from "../../providers/model-provider.ts";
import type { Tool } from "../../sandbox/tool.ts";
import type { Database } from "../../storage/database.ts";

/** Everything of a turn that ends up in its trace. Spans hold names, times, counts and codes: nothing that anybody said, no secrets. */
export type Tracing = {
  readonly requests: RequestTracing;
  readonly observeTurns: (turns: TurnService) => TurnService;
  readonly observeProvider: (provider: ModelProvider) => ModelProvider;
  readonly observeTool: (tool: Tool) => Tool;
  /** Traces the activities of turns, and the turns that end in them. */
  readonly activities: (database: Pick<Database, "withTenant">) => ActivityInterceptorsFactory;
  /** Counts spans in these metrics. */
  attach(registry: Registry): void;
  /** Sends what is left, for a few seconds at most. */
  close(): Promise<void>;
};

export type TracingOptions = {
  /** `telemetry.otlp_endpoint`; undefined: no tracing, and none of its code is loaded. */
  readonly endpoint: string | undefined;
  readonly serviceName: string | undefined;
  /** Of traces that begin here; a caller's own decision stands. */
  readonly sampleRatio: number;
  readonly role: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

export async function openTracing({ endpoint, ...options }: TracingOptions): Promise<Tracing | undefined> {
  if (endpoint === undefined) return undefined;
  const { startTracing } = await import("./start-tracing.ts");
  return startTracing({ endpoint, ...options });
}
