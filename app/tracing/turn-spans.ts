import { createHash } from "node:crypto";
import { type Span, type SpanContext, SpanKind, SpanStatusCode, TraceFlags } from "@opentelemetry/api";
import { parseTraceParent } from "@opentelemetry/core";
import type { ActivityInterceptorsFactory } from "@temporalio/worker";
import { type TenantId, tenantOfName } from "../../domain/tenant.ts";
import type { TurnId } from "../../domain/turn-id.ts";
import type { TurnService } from "../../gateway/turn-service.ts";
import type { Database } from "../../storage/database.ts";
import { type TracedTurn, readTracedTurn } from "../../storage/turn-steps-repository.ts";
import type { SpanSource } from "./span-source.ts";
import { failSpan } from "./span-source.ts";

/**
 * The turn's own span stands for what its lane's workflow did with it. The step that ends a turn tells it, and a step that is repeated
 * after a crash tells the same one again, so its id is made of the turn's: every step can name it as its parent from the start.
 */
const turnSpanId = (turnId: TurnId): string => createHash("sha256").update(turnId).digest("hex").slice(0, 16);

const traceparentOf = ({ traceId, spanId, traceFlags }: SpanContext): string =>
  `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, "0")}`;

/** Traces that were handed in here lately, so that their steps need not look them up. */
const rememberedTraces = 2_000;

export type TurnSpans = {
  readonly observeTurns: (turns: TurnService) => TurnService;
  readonly activities: (database: Pick<Database, "withTenant">) => ActivityInterceptorsFactory;
  /** Resolves when the spans of the turns that have ended are made. */
  settled(): Promise<void>;
};

export function createTurnSpans(spans: SpanSource, log: (message: string, fields?: Record<string, unknown>) => void): TurnSpans {
  const traces = new Map<TurnId, string>();
  const pending = new Set<Promise<void>>();
  const remember = (turnId: TurnId, trace: string): void => {
    traces.set(turnId, trace);
    const oldest = traces.size > rememberedTraces ? traces.keys().next().value : undefined;
    if (oldest !== undefined) traces.delete(oldest);
  };

  const traceOf = async (read: () => Promise<TracedTurn | undefined>, turnId: TurnId): Promise<SpanContext | undefined> => {
    const trace = traces.get(turnId) ?? (await read())?.trace;
    if (trace === undefined) return undefined;
    remember(turnId, trace);
    return parseTraceParent(trace) ?? undefined;
  };

  const tellTurn = (turn: TracedTurn | undefined, turnId: TurnId, handedIn: SpanContext, tenantId: TenantId): void => {
    if (turn?.finishedAtMs === undefined) return; // a tool that is done ends no turn
    const attributes = { "openclaw.tenant.id": tenantId, "openclaw.turn.id": turnId, "openclaw.turn.kind": turn.kind };
    const span = spans.start(`turn ${turn.kind}`, {
      parent: handedIn,
      id: turnSpanId(turnId),
      startTime: turn.createdAtMs,
      attributes: { ...attributes, "openclaw.turn.state": turn.state, "openclaw.turn.model_calls": turn.modelCalls },
    });
    if (turn.state !== "done") span.setStatus({ code: SpanStatusCode.ERROR });
    if (turn.code !== undefined) span.setAttribute("error.type", turn.code);
    spans
      .start("wait for the lane", { parent: span.spanContext(), startTime: turn.createdAtMs, attributes })
      .end(turn.startedAtMs ?? turn.finishedAtMs);
    span.end(turn.finishedAtMs);
  };

  return {
    observeTurns: (service) => ({
      ...service,
      async submit(context, submission, ...more) {
        const { kind } = submission;
        const span = spans.start(`submit ${kind}`, {
          kind: SpanKind.PRODUCER,
          attributes: { "openclaw.tenant.id": context.tenantId, "openclaw.turn.kind": kind },
        });
        const trace = span.isRecording() ? traceparentOf(span.spanContext()) : undefined;
        try {
          const turn = await spans.run(span, async () => await service.submit(context, { ...submission, trace }, ...more));
          for (const one of [span, spans.current()]) one?.setAttribute("openclaw.turn.id", turn.turnId);
          // A repeat under an Idempotency-Key is no new turn, and the first one's trace stands.
          if (trace !== undefined && turn.turnId === submission.turnId) remember(turn.turnId, trace);
          return turn;
        } catch (error) {
          failSpan(span, error);
          throw error;
        } finally {
          span.end();
        }
      },
    }),
    activities:
      (database) =>
      ({ info }) => ({
        inbound: {
          async execute(input, next) {
            const turnId = turnIdOf(input.args[0]);
            if (turnId === undefined) return await next(input);
            const tenantId = tenantOfName(info.taskQueue);
            const read = async (): Promise<TracedTurn | undefined> =>
              await database
                .withTenant({ tenantId, requestId: `trace:${turnId}` }, async (tx) => await readTracedTurn(tx, turnId), { readOnly: true })
                .catch((error: unknown) => {
                  log("the trace of a turn could not be read", { turnId, error: String(error) });
                  return undefined;
                });
            const handedIn = await traceOf(read, turnId);
            if (handedIn === undefined) return await next(input);
            const span = spans.start(info.activityType, {
              kind: SpanKind.CONSUMER,
              parent: { traceId: handedIn.traceId, spanId: turnSpanId(turnId), traceFlags: TraceFlags.SAMPLED, isRemote: true },
              attributes: {
                "openclaw.tenant.id": tenantId,
                "openclaw.turn.id": turnId,
                "temporal.activity.attempt": info.attempt,
                "temporal.activity.local": info.isLocal,
                "temporal.run.id": info.workflowExecution?.runId ?? "",
              },
            });
            return await traced(span, async () => {
              const result = await next(input);
              if (isEnd(result)) {
                const telling = read().then((turn) => {
                  tellTurn(turn, turnId, handedIn, tenantId);
                  pending.delete(telling);
                });
                pending.add(telling);
              }
              return result;
            });
          },
        },
      }),
    settled: async () => void (await Promise.all(pending)),
  };

  async function traced<T>(span: Span, work: () => Promise<T>): Promise<T> {
    try {
      return await spans.run(span, work);
    } catch (error) {
      failSpan(span, error);
      throw error;
    } finally {
      span.end();
    }
  }
}

/** The activities of a turn are given its id; the others have nothing to do with one. */
function turnIdOf(argument: unknown): TurnId | undefined {
  if (argument === null || typeof argument !== "object" || !("turnId" in argument)) return undefined;
  return typeof argument.turnId === "string" ? (argument.turnId as TurnId) : undefined;
}

/** A step that may have ended the turn: not one that says what comes next. */
const isEnd = (result: unknown): boolean =>
  result !== null &&
  typeof result === "object" &&
  "state" in result &&
  !("tools" in result) &&
  ["done", "failed", "aborted"].includes(String(result.state));
