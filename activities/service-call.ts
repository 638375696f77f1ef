import { AppError, type ErrorCode, toStoredError } from "../domain/app-error.ts";
import { canBeBilled, priceOf } from "../domain/rate-card.ts";
import { type ServiceRequest, isServiceKind } from "../domain/service-request.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { type TurnId, callIdOf } from "../domain/turn-id.ts";
import type { FinishedTurn, TurnVerdict } from "../domain/turn.ts";
import type { UsageRow } from "../domain/usage-row.ts";
import { mostBelievableTokens } from "../providers/model-limits.ts";
import { ModelCallError } from "../providers/model-provider.ts";
import type { ServiceCall, ServiceResult } from "../providers/model-services.ts";
import { estimateServiceTokens } from "../providers/service-estimate.ts";
import { estimateTokens } from "../providers/token-estimate.ts";
import type { TenantTx } from "../storage/database.ts";
import { removeFile } from "../storage/file-repository.ts";
import type { StoredBytes, TenantFiles } from "../storage/tenant-files.ts";
import {
  type TurnRow,
  claimTurn,
  closeCall,
  finishTurn,
  openCall,
  readFinishedTurn,
  recordUsage,
  voidCall,
} from "../storage/turn-repository.ts";
import { asActivity } from "./activity-context.ts";
import { type Reserved, type ReservedCall, reserveQuota, usedBy } from "./call-reservation.ts";
import { createJoinedAttempts } from "./joined-attempts.ts";
import type { CallPrice, ServedModel } from "./model-attempts.ts";
import { type CallDeps, attemptsPerCall, callErrorOf, persistently, refusals, tooDear } from "./model-call.ts";
import { verdictOf } from "./turn-end.ts";

export type ServiceCallDeps = Pick<
  CallDeps,
  "database" | "bus" | "modelOf" | "pricing" | "rateCardAt" | "quota" | "alarms" | "now" | "log"
> & { readonly files: TenantFiles };

type OpenedService = ReservedCall & {
  readonly turn: TurnRow;
  readonly request: ServiceRequest;
  readonly model: ServedModel;
  readonly price: CallPrice;
};
type ReadyService = OpenedService & Reserved;

/** A caller that repeats its call finds the answer for so long: a little more than its Idempotency-Key is remembered. */
const resultLifetimeMs = 25 * 60 * 60 * 1_000;
/** At most two retries within ten seconds (contract §3): an answer comes whole or not at all. */
const retriesPerCall = 2;
const retryWindowMs = 10_000;

/** Embeddings, transcriptions, moderations: turns of one call, without a conversation (docs/adr/018). */
export const createServiceCall = (deps: ServiceCallDeps) => {
  const { database, bus, files, modelOf, pricing, rateCardAt, quota, alarms, now, log } = deps;
  const joinAttempt = createJoinedAttempts<TurnVerdict>();

  async function open(context: TenantContext, turnId: TurnId): Promise<OpenedService | FinishedTurn> {
    const { rateCard, markupPpm } = await pricing(context.tenantId);
    const callId = callIdOf(turnId, 0);
    const call = await database.withTenant(context, async (tx) => {
      const turn = await claimTurn(tx, turnId);
      if (turn?.state !== "running") return await standing(tx, turnId);
      const request = requestOf(turn);
      const model = modelOf(request.model);
      const opened = await openCall(tx, { turnId, step: 0, model: model.id, terms: { rateCardHash: rateCard.hash, markupPpm } });
      if ("voided" in opened || "finished" in opened) return await standing(tx, turnId);
      if (opened.attempt <= attemptsPerCall) return { context, turn, request, callId, model, ...opened };
      log("a service call was given up", { callId, attempt: opened.attempt });
      await voidCall(tx, callId, opened.attempt);
      await finishTurn(tx, turn, { state: "failed", error: toStoredError(new AppError("internal")) }, []);
      return await standing(tx, turnId);
    });
    if (!("callId" in call)) return call;
    // An attempt after a crash is billed by what the first one was admitted under.
    const { rateCardHash } = call;
    const { rates: prices } = rateCardHash === rateCard.hash ? rateCard : await rateCardAt(rateCardHash);
    const rates = prices.get(call.model.id);
    if (rates === undefined) throw new AppError("model_not_priced", { model: call.model.id });
    if (!canBeBilled(rates, call.markupPpm, mostBelievableTokens(call.model))) throw tooDear(call.model.id);
    return { ...call, price: { rates, rateCardHash, markupPpm: call.markupPpm } };
  }

  async function serve(call: ReadyService, signal: AbortSignal): Promise<ServiceResult> {
    const { services } = call.model.provider;
    if (services === undefined) throw new ModelCallError("refused", `The provider of "${call.model.id}" does not offer this.`);
    const request = await withAudio(call);
    const beganAtMs = now();
    for (let retry = 0; ; retry++) {
      try {
        return await services.serve(request, signal);
      } catch (error) {
        const isPassing = error instanceof ModelCallError && (error.kind === "busy" || error.kind === "unreachable");
        const pauseMs = (isPassing ? error.retryAfterMs : undefined) ?? 250 * 2 ** retry;
        if (!isPassing || retry === retriesPerCall || signal.aborted || now() + pauseMs > beganAtMs + retryWindowMs) throw error;
        await pause(pauseMs, signal);
      }
    }
  }

  async function withAudio({ context, callId, request }: OpenedService): Promise<ServiceCall> {
    if (request.service !== "transcription") return { ...request, callId };
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    for await (const piece of files.read(context, request.file)) pieces.push(new Uint8Array(piece));
    const audio = new Blob(pieces);
    if (audio.size !== request.sizeBytes) throw new ModelCallError("refused", "The audio is not kept any more: send it again.");
    return { ...request, callId, audio };
  }

  function usageRow(call: ReadyService, { usage, providerRequestId }: Pick<ServiceResult, "usage" | "providerRequestId">): UsageRow {
    const { rates, rateCardHash, markupPpm } = call.price;
    return {
      id: call.callId,
      providerRequestId,
      atMs: call.admittedAtMs,
      sessionId: call.turn.sessionId,
      model: call.model.id,
      usage,
      toolCalls: 0,
      ...priceOf(rates, usage, markupPpm),
      markupPpm,
      rateCardHash,
      reason: call.turn.kind,
    };
  }

  /**
   * One transaction: journal, billing row, the turn's end, and the answer that becomes readable. An answer that was paid for and
   * cannot be stored is tried again.
   */
  async function settleAnswer(call: ReadyService, result: ServiceResult, stored: StoredBytes): Promise<FinishedTurn | undefined> {
    const { usage, providerRequestId } = result;
    const finished: FinishedTurn = {
      state: "done",
      reply: { content: null, toolCalls: [], finishReason: "stop", model: call.model.id, usage, modelCalls: 1, resultFile: stored.id },
    };
    const row = usageRow(call, result);
    return await settle(call, row, finished, async (tx) => {
      if (!(await closeCall(tx, { ...call, model: call.model.id, reply: undefined, usage, providerRequestId }))) return false;
      await files.finish(tx, { ...stored, lifetimeMs: resultLifetimeMs });
      return true;
    });
  }

  /** A call that was refused before its provider heard of it. */
  async function settleRefusal(call: OpenedService, error: AppError): Promise<FinishedTurn | undefined> {
    const finished: FinishedTurn = { state: "failed", error: { ...toStoredError(error), isRefusal: true } };
    return await settle(call, undefined, finished, async (tx) => await voidCall(tx, call.callId, call.attempt));
  }

  /** A call that failed for good; what the provider had counted by then is billed. */
  async function settleFailure(call: ReadyService, error: ModelCallError): Promise<FinishedTurn | undefined> {
    const { kind, usage, providerRequestId } = error;
    const finished: FinishedTurn = { state: kind === "aborted" ? "aborted" : "failed", error: toStoredError(callErrorOf(error)) };
    const row = usage === undefined ? undefined : usageRow(call, { usage, providerRequestId });
    return await settle(call, row, finished, async (tx) =>
      usage === undefined
        ? await voidCall(tx, call.callId, call.attempt)
        : await closeCall(tx, { ...call, model: call.model.id, reply: undefined, usage, providerRequestId }),
    );
  }

  async function settle(
    call: OpenedService & Partial<Reserved>,
    row: UsageRow | undefined,
    finished: FinishedTurn,
    close: (tx: TenantTx) => Promise<boolean>,
  ): Promise<FinishedTurn | undefined> {
    const { context, turn, request, reservation } = call;
    let isOurs = false;
    const end = await database.withTenant(context, async (tx) => {
      if (!(await close(tx))) return await readFinishedTurn(tx, turn.turnId);
      const isEnded = await finishTurn(tx, turn, finished, []);
      if (request.service === "transcription") await removeFile(tx, request.file);
      if (row !== undefined) await recordUsage(tx, row);
      isOurs = true;
      return isEnded ? finished : await readFinishedTurn(tx, turn.turnId);
    });
    if (!isOurs) return end;
    // What is not told, because another attempt ended the call, is found in its row.
    const actual = row === undefined ? undefined : usedBy(row.usage, row.costNanoUsd);
    if (reservation !== undefined) quota.settle(context.tenantId, { ...reservation, actual });
    if (row?.usage.doubt !== undefined) alarms.raise(context.tenantId, { callId: row.id, model: row.model, doubt: row.usage.doubt });
    return end;
  }

  async function run(context: TenantContext, turnId: TurnId, signal: AbortSignal): Promise<FinishedTurn | undefined> {
    const call = await open(context, turnId);
    if (!("callId" in call)) return call;
    const persist = async <T>(settled: () => Promise<T>): Promise<T> => await persistently({ log, signal }, settled);
    let reserved: Reserved;
    try {
      reserved = await reserveQuota({ database, quota }, call, sizeOf(call));
    } catch (error) {
      if (!(error instanceof AppError) || !refusals.has(error.code)) throw error;
      return await persist(async () => await settleRefusal(call, error));
    }
    const ready: ReadyService = { ...call, ...reserved };
    let result: ServiceResult;
    try {
      result = await serve(ready, signal);
    } catch (error) {
      if (!(error instanceof ModelCallError)) throw error;
      if (signal.reason === "shutdown") throw new AppError("unavailable", { turnId, why: "worker shutdown" });
      const { kind, status, message, cause } = error;
      log("a service call failed", {
        callId: call.callId,
        model: call.model.id,
        kind,
        status,
        message,
        cause: cause instanceof Error ? cause.message : cause,
      });
      return await persist(async () => await settleFailure(ready, error));
    }
    const file = { role: "result", filename: "", mime: "application/octet-stream" } as const;
    const stored = await persist(async () => await files.store(context, file, [result.answer]));
    return await persist(async () => await settleAnswer(ready, result, stored));
  }

  return {
    /**
     * The one call of a service turn: journal row, provider, then one transaction with usage, answer and billing row. Safe to retry:
     * a call that has ended answers what is stored, and `<turn id>.0` is billed once.
     */
    async callService({ turnId }: { turnId: TurnId }): Promise<TurnVerdict> {
      return await asActivity(async (context, signal) => {
        return await joinAttempt(`${context.tenantId}/${turnId}`, signal, async (shared) => {
          const finished = await run(context, turnId, shared);
          if (finished === undefined) throw new AppError("unavailable", { turnId, why: "another attempt holds the call" });
          bus.publish(turnId, { type: "finished", finished });
          return verdictOf(finished);
        });
      });
    },
  };
};

const aborted: FinishedTurn = { state: "aborted", error: toStoredError(new AppError("turn_aborted" satisfies ErrorCode)) };

const standing = async (tx: TenantTx, turnId: TurnId): Promise<FinishedTurn> => (await readFinishedTurn(tx, turnId)) ?? aborted;

/** The lane only sends turns of these kinds here, and their rows hold these requests. */
function requestOf({ kind, request }: TurnRow): ServiceRequest {
  if (!isServiceKind(kind) || !("service" in request)) throw new AppError("internal", { reason: "the turn is of no service" });
  return request as unknown as ServiceRequest;
}

/** A transcription's text is output where its provider counts tokens; nothing else has any. */
const sizeOf = ({ request, model }: OpenedService) => {
  const promptTokens = estimateServiceTokens(estimateTokens, request);
  return { promptTokens, maxTokens: request.service === "transcription" ? Math.min(model.maxOutputTokens, promptTokens) : 0 };
};

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
