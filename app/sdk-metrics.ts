import { MetricsBuffer } from "@temporalio/worker";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

/** How often what the SDK has counted is taken over, scraped or not: its buffer is bounded. */
const drainMs = 1_000;
const bufferedUpdates = 100_000;
const buckets = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

/**
 * The attributes of the SDK's metrics that are kept. Task queues are tenants, and a histogram for each would be thousands of series;
 * workflow and activity types and the operations of the server are few.
 */
const keptLabels = ["workflow_type", "activity_type", "operation", "poller_type", "worker_type", "status_code", "failure_reason"] as const;

type Recorder = (labels: Record<string, string>, value: number, queue: string) => void;

export type SdkMetrics = { readonly buffer: MetricsBuffer; attach(registry: Registry): void; stop(): void };

/**
 * Temporal's own metrics (`temporal_…`), summed over all tenants, in the registry that everything else is in. Each update crosses from the
 * SDK's core to Node, so this is off unless `telemetry.temporal_metrics` asks for it.
 */
export function createSdkMetrics(): SdkMetrics {
  const buffer = new MetricsBuffer({ maxBufferSize: bufferedUpdates, useSecondsForDurations: true });
  const record = new Map<string, Recorder>();
  let registry: Registry | undefined;

  const recorderOf = (name: string, kind: string, help: string): Recorder => {
    const known = record.get(name);
    if (known !== undefined) return known;
    const options = { name: metricName(name), help, labelNames: keptLabels, registers: registry === undefined ? [] : [registry] };
    const made = recorder(kind, options);
    record.set(name, made);
    return made;
  };
  const drain = (): void => {
    for (const { metric, value, attributes } of buffer.retrieveUpdates()) {
      const labels: Record<string, string> = {};
      for (const label of keptLabels) if (attributes[label] !== undefined) labels[label] = String(attributes[label]);
      recorderOf(metric.name, metric.kind, metric.description || metric.name)(labels, value, String(attributes["task_queue"]));
    }
  };
  let timer: NodeJS.Timeout | undefined;
  return {
    buffer,
    attach(to) {
      registry = to;
      timer = setInterval(drain, drainMs);
      timer.unref();
    },
    stop: () => clearInterval(timer),
  };
}

const metricName = (name: string): string => (name.startsWith("temporal_") ? name : `temporal_${name}`).replaceAll(/[^a-zA-Z0-9_]/g, "_");

function recorder(
  kind: string,
  options: { name: string; help: string; labelNames: readonly (typeof keptLabels)[number][]; registers: Registry[] },
): Recorder {
  if (kind === "counter") {
    const counter = new Counter(options);
    return (labels, value) => counter.inc(labels, value);
  }
  if (kind === "gauge") {
    const gauge = new Gauge(options);
    const ofQueues = new Map<string, Map<string, number>>();
    return (labels, value, queue) => {
      const place = JSON.stringify(labels);
      const values = (ofQueues.get(place) ?? new Map<string, number>()).set(queue, value);
      ofQueues.set(place, values);
      gauge.set(
        labels,
        [...values.values()].reduce((sum, one) => sum + one, 0),
      );
    };
  }
  const histogram = new Histogram({ ...options, buckets });
  return (labels, value) => histogram.observe(labels, value);
}
