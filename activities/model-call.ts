import { type Overlay, isToolAllowed } from "../control-plane/overlay.ts";
import type { UsageAlarms } from "../control-plane/usage-alarms.ts";
import { AppError, type ErrorCode, toStoredError } from "../domain/app-error.ts";
import type { ChatMessage, ModelReply, SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import type { MarkupPpm } from "../domain/money.ts";
import { type RateCard, type RateCardHash, type Rates, priceOf } from "../domain/rate-card.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import { type CallId, type TurnId, callIdOf } from "../domain/turn-id.ts";
import type { FinishedTurn, TurnVerdict } from "../domain/turn.ts";
import { type CountedUsage, addUsage, noUsage } from "../domain/usage.ts";
import type { UsageRow } from "../domain/usage-row.ts";
import { ModelCallError, type ModelDelta, type ModelProvider, type ModelResult } from "../providers/model-provider.ts";
import { estimatePromptTokens, estimateTokens } from "../providers/token-estimate.ts";
import type { Tool } from "../sandbox/tool.ts";
import type { Database, TenantTx } from "../storage/database.ts";
import type { PromptFile } from "../storage/prompt-files.ts";
import {
  type JournaledCall,
  type ToolRun,
  type TurnRow,
  claimTurn,
  closeCall,
  finishTurn,
  openCall,
  readCalls,
  readFinishedTurn,
  readToolRuns,
  readTranscript,
  recordUsage,
  voidCall,
} from "../storage/turn-repository.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { asActivity } from "./activity-context.ts";
import { type CallQuota, type Reserved, type ReservedCall, maxTokensWithin, reserveQuota, usedBy } from "./call-reservation.ts";
import { createJoinedAttempts } from "./joined-attempts.ts";
import { composeMessages, promptOf, transcriptOf } from "./turn-conversation.ts";
import { verdictOf } from "./turn-end.ts";

/** A configured model with the provider that serves it. */
export type ServedModel = {
  readonly id: string;
  readonly provider: ModelProvider;
  readonly contextWindow: number;
  readonly maxOutputTokens: number;
  /** Models to try when this one is not available, in order. */
  readonly fallbacks: readonly string[];
};

/** The overlay that a turn began with; without a digest, the one in force. @throws {AppError} `overlay_refused` */
export type OverlayOfTurn = (tenantId: TenantId, digest: string | undefined) => Promise<Overlay>;

export type CallDeps = {
  readonly database: Database;
  readonly bus: TokenBus;
  readonly tools: ReadonlyMap<string, Tool>;
  readonly overlayOf: OverlayOfTurn;
  /** The files of the tenant's memory that its agent always sees. */
  readonly promptFilesOf: (tenantId: TenantId) => readonly PromptFile[];
  /** @throws {AppError} `model_not_found` */
  readonly modelOf: (id: string) => ServedModel;
  /** The card in force now, and the markup of the tenant. */
  readonly pricing: (tenantId: TenantId) => Promise<{ readonly rateCard: RateCard; readonly markupPpm: MarkupPpm }>;
  readonly quota: CallQuota;
  /** Hears of every billed call whose tokens were counted here. */
  readonly alarms: Pick<UsageAlarms, "raise">;
  readonly now: () => number;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

export type CallOutcome =
  | TurnVerdict
  /** The model asks for the tenant's own tools. */
  | { readonly state: "tools"; readonly tools: readonly { readonly n: number; readonly name: string }[] };

/** At most two retries within ten seconds, before the first token only (contract §3). */
const retriesPerCall = 2;
const retryWindowMs = 10_000;
/** No other model is begun after it: an answer may take ten minutes, and the activity has fifteen. */
const fallbackWindowMs = 240_000;
const transcriptMessages = 200;
/** Attempts of one call over worker deaths; each may have reached the provider. */
const attemptsPerCall = 10;

/** What one reply may ask for: more is no use to a turn, and its history holds an event per call. */
const toolCallsPerReply = 64;
const toolNameCharacters = 64;
const toolArgumentCharacters = 1_000_000;

type CallPrice = { readonly rates: Rates; readonly rateCardHash: RateCardHash; readonly markupPpm: MarkupPpm };

type OpenedCall = ReservedCall & {
  readonly turn: TurnRow;
  readonly step: number;
  readonly model: ServedModel;
  /** As it was before the call: a later change of the card is never retroactive. */
  readonly price: CallPrice;
  /** Of all models, likewise. */
  readonly prices: RateCard["rates"];
  readonly transcript: readonly ChatMessage[];
  readonly earlier: readonly JournaledCall[];
  readonly toolRuns: readonly ToolRun[];
};

/** A call that may go to its provider: its quota is reserved. */
type ReadyCall = OpenedCall & Pick<Reserved, "admittedAtMs" | "held">;

/** One model that a call may be made of. */
type Route = Pick<OpenedCall, "model" | "price"> & { readonly input: CallInput };

type FailedAttempt = {
  readonly route: Route;
  readonly error: ModelCallError;
  /** The model said nothing and counted nothing. */
  readonly isFree: boolean;
};
type Attempt = { readonly route: Route; readonly result: ModelResult } | FailedAttempt;

/** What goes to the provider beside the turn's own settings. */
type CallInput = {
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings & { readonly maxTokens: number };
};

export const createModelCall = (deps: CallDeps) => {
  const { database, bus, tools, overlayOf, promptFilesOf, modelOf, pricing, quota, alarms, now, log } = deps;
  const joinAttempt = createJoinedAttempts<CallOutcome>();

  async function open(context: TenantContext, turnId: TurnId, step: number): Promise<OpenedCall | CallOutcome> {
    const { rateCard, markupPpm } = await pricing(context.tenantId);
    return await database.withTenant(context, async (tx) => {
      const turn = await claimTurn(tx, turnId);
      if (turn === undefined || turn.state === "void") return { state: "aborted", code: "turn_aborted" };
      if (turn.state !== "running") return await standingVerdict(tx, turn);
      const model = modelOf(turn.request.model);
      const rates = rateCard.rates.get(model.id);
      if (rates === undefined) throw new AppError("model_not_priced", { model: model.id });
      const price = { rates, rateCardHash: rateCard.hash, markupPpm };
      const opened = await openCall(tx, { turnId, step, model: model.id });
      if ("voided" in opened) return await standingVerdict(tx, turn);
      if ("finished" in opened) return toolsAskedBy(turn, opened.finished.reply) ?? (await standingVerdict(tx, turn));
      if (opened.attempt > attemptsPerCall) return await giveUp(tx, turn, callIdOf(turnId, step), opened.attempt);
      const earlier = step === 0 ? [] : await readCalls(tx, turnId);
      const toolRuns = step === 0 ? [] : await readToolRuns(tx, turnId);
      const transcript = turn.stateless ? [] : await readTranscript(tx, turn.sessionId, transcriptMessages);
      return {
        context,
        turn,
        callId: callIdOf(turnId, step),
        step,
        ...opened,
        model,
        price,
        prices: rateCard.rates,
        transcript,
        earlier,
        toolRuns,
      };
    });
  }

  /** What the turn's overlay makes of a call. Gateway mode adds nothing to what was sent but the ceiling of the answer. */
  function inputOf({ context, turn, transcript, earlier, toolRuns }: OpenedCall, overlay: Overlay, model: ServedModel): CallInput {
    const { mode, request } = turn;
    const isAgent = mode === "agent";
    const prompt = isAgent ? promptOf(overlay.systemPrompt, promptFilesOf(context.tenantId)) : undefined;
    const { settings } = request;
    return {
      messages: composeMessages({ turn, prompt, transcript, calls: earlier, toolRuns, model }),
      tools: isAgent && request.tools.length === 0 ? offeredTools(overlay) : request.tools,
      settings: {
        ...settings,
        maxTokens: settings.maxTokens ?? Math.min(overlay.maxTokens ?? model.maxOutputTokens, model.maxOutputTokens),
        temperature: settings.temperature ?? (isAgent ? overlay.temperature : undefined),
      },
    };
  }

  function offeredTools(overlay: Overlay): readonly ToolDefinition[] {
    return [...tools.values()].map(({ definition }) => definition).filter(({ name }) => isToolAllowed(overlay, name));
  }

  function toolsAskedBy({ mode, request }: TurnRow, reply: ModelReply): CallOutcome | undefined {
    if (mode === "gateway" || request.tools.length > 0 || reply.toolCalls.length === 0) return undefined;
    return { state: "tools", tools: reply.toolCalls.map(({ name }, n) => ({ n, name })) };
  }

  /** A call that took process after process with it, or could never be settled, ends its turn instead of holding up its session. */
  async function giveUp(tx: TenantTx, turn: TurnRow, callId: CallId, attempt: number): Promise<CallOutcome> {
    log("a model call was given up", { callId, attempt });
    await voidCall(tx, callId, attempt);
    await finishTurn(tx, turn, { state: "failed", error: toStoredError(new AppError("internal")) }, []);
    return await standingVerdict(tx, turn);
  }

  /**
   * The other models that the call may be made of, in order: the overlay's, else the administrator's. Each is priced, the tenant's
   * to use, and answers within what is held for the call.
   */
  function* fallbacksOf(call: ReadyCall, overlay: Overlay): Generator<Route, undefined> {
    const ids = new Set(overlay.fallbacks.length > 0 ? overlay.fallbacks : call.model.fallbacks);
    for (const id of ids) {
      const rates = call.prices.get(id);
      if (id === call.model.id || rates === undefined || overlay.api.models?.has(id) === false) continue;
      const model = knownModel(id);
      if (model === undefined) continue;
      const price = { ...call.price, rates };
      const input = inputOf(call, overlay, model);
      const promptTokens = estimatePromptTokens(estimateTokens, { model: id, ...input });
      const maxTokens = maxTokensWithin(call.held, { promptTokens, maxTokens: input.settings.maxTokens, price });
      if (maxTokens !== undefined) yield { model, price, input: { ...input, settings: { ...input.settings, maxTokens } } };
    }
  }

  /** Undefined for a model that cannot be called here, for want of its provider's key. */
  function knownModel(id: string): ServedModel | undefined {
    try {
      return modelOf(id);
    } catch (error) {
      if (error instanceof AppError) return undefined;
      throw error;
    }
  }

  /**
   * Calls the provider, again where the contract allows it; every delta goes to the bus as it comes. A model that said nothing and
   * counted nothing gives way to the next one at once. If none of them answers, the turn's own is tried again, and its error counts.
   */
  async function callProvider(call: ReadyCall, own: Route, overlay: Overlay, signal: AbortSignal): Promise<Attempt> {
    const publish = publisherOf(bus, call);
    const beganAtMs = now();
    let ended = await attempt(own, call.callId, publish, signal);
    if (!mayGiveWay(ended)) return ended;
    for (const route of fallbacksOf(call, overlay)) {
      if (signal.aborted || now() - beganAtMs > fallbackWindowMs) break;
      const { kind, status, message } = ended.error;
      log("a model gave way to another", { callId: call.callId, model: own.model.id, to: route.model.id, kind, status, message });
      // Another key than its own: the same one with another body is a mistake to a provider of both.
      const other = await attempt(route, `${call.callId}/${route.model.id}`, publish, signal);
      if (!("error" in other) || !other.isFree || other.error.kind === "aborted") return other;
    }
    for (let retry = 0; retry < retriesPerCall && isPassing(ended.error); retry++) {
      const pauseMs = ended.error.retryAfterMs ?? 250 * 2 ** retry;
      if (signal.aborted || now() + pauseMs > beganAtMs + retryWindowMs) break;
      await pause(pauseMs, signal);
      ended = await attempt(own, call.callId, publish, signal);
      if (!mayGiveWay(ended)) break;
    }
    return ended;
  }

  function usageRow(call: ReadyCall, usage: CountedUsage, providerRequestId: string | undefined, toolCalls: number): UsageRow {
    const { rates, rateCardHash, markupPpm } = call.price;
    return {
      id: call.callId,
      providerRequestId,
      atMs: call.admittedAtMs,
      sessionId: call.turn.sessionId,
      model: call.model.id,
      usage,
      toolCalls,
      ...priceOf(rates, usage, markupPpm),
      markupPpm,
      rateCardHash,
      reason: call.turn.kind,
    };
  }

  /** One transaction: journal, billing row and, when this call ends the turn, its row and transcript. */
  async function settleAnswer(call: ReadyCall, { reply, usage, providerRequestId }: ModelResult): Promise<CallOutcome> {
    const toolsAsked = toolsAskedBy(call.turn, reply);
    const finished = toolsAsked === undefined ? doneTurn(call, reply, usage) : undefined;
    const row = usageRow(call, usage, providerRequestId, reply.toolCalls.length);
    let isOurs = false;
    const standing = await database.withTenant(call.context, async (tx) => {
      if (!(await closeCall(tx, { ...call, model: call.model.id, reply, usage, providerRequestId })))
        return await standingOutcome(tx, call);
      const isEnded = finished === undefined || (await finishTurn(tx, call.turn, finished, transcriptOf({ ...call, reply })));
      await recordUsage(tx, row);
      isOurs = true;
      return isEnded ? (toolsAsked ?? finished) : await readFinishedTurn(tx, call.turn.turnId);
    });
    if (isOurs) tell(call, row);
    return announce(call.turn.turnId, standing);
  }

  /**
   * Tells the leases what a call came to, and of a count that is ours. What is not told, because another attempt ended the call,
   * is found in its row.
   */
  function tell({ context, callId, held }: ReadyCall, row: UsageRow | undefined): void {
    if (held !== undefined) quota.settle(context.tenantId, callId, row === undefined ? undefined : usedBy(row.usage, row.costNanoUsd));
    if (row?.usage.doubt !== undefined) alarms.raise(context.tenantId, { callId, model: row.model, doubt: row.usage.doubt });
  }

  /** What another attempt, or a commit of ours whose answer was lost, made of the call: its tools or its turn's end. */
  async function standingOutcome(tx: TenantTx, { turn, step }: OpenedCall): Promise<CallOutcome | FinishedTurn | undefined> {
    const stored = (await readCalls(tx, turn.turnId)).find((journaled) => journaled.step === step);
    return (stored === undefined ? undefined : toolsAskedBy(turn, stored.reply)) ?? (await readFinishedTurn(tx, turn.turnId));
  }

  /** A call that failed for good ends its turn; what the provider had counted by then is billed. */
  async function settleFailure(call: ReadyCall, error: ModelCallError): Promise<CallOutcome> {
    const stored = toStoredError(toAppError(error));
    const { kind, status, message, cause } = error;
    log("a model call failed", {
      callId: call.callId,
      model: call.model.id,
      kind,
      status,
      message,
      cause: cause instanceof Error ? cause.message : cause,
    });
    const finished: FinishedTurn = { state: error.kind === "aborted" ? "aborted" : "failed", error: stored };
    const { usage, providerRequestId } = error;
    const row = usage === undefined ? undefined : usageRow(call, usage, providerRequestId, 0);
    let isOurs = false;
    const standing = await database.withTenant(call.context, async (tx) => {
      isOurs =
        usage === undefined
          ? await voidCall(tx, call.callId, call.attempt)
          : await closeCall(tx, { ...call, model: call.model.id, reply: undefined, usage, providerRequestId });
      if (!isOurs) return await standingOutcome(tx, call);
      const isEnded = await finishTurn(tx, call.turn, finished, []);
      if (row !== undefined) await recordUsage(tx, row);
      return isEnded ? finished : await readFinishedTurn(tx, call.turn.turnId);
    });
    if (isOurs) tell(call, row);
    return announce(call.turn.turnId, standing);
  }

  /** A call that cannot be put together, or that no quota is left for, ends its turn before the provider hears of it. */
  async function settleRefusal(call: OpenedCall, error: AppError): Promise<CallOutcome> {
    const stored = toStoredError(error);
    const finished: FinishedTurn = { state: "failed", error: call.step === 0 ? { ...stored, isRefusal: true } : stored };
    const standing = await database.withTenant(call.context, async (tx) => {
      if (!(await voidCall(tx, call.callId, call.attempt))) return await standingOutcome(tx, call);
      return (await finishTurn(tx, call.turn, finished, [])) ? finished : await readFinishedTurn(tx, call.turn.turnId);
    });
    return announce(call.turn.turnId, standing);
  }

  /** Tells the waiting gateways; a turn without an end here is another attempt's, which will tell. */
  function announce(turnId: TurnId, outcome: CallOutcome | FinishedTurn | undefined): CallOutcome {
    if (outcome === undefined) throw new AppError("unavailable", { turnId, why: "another attempt holds the call" });
    if (!("reply" in outcome || "error" in outcome)) return outcome;
    bus.publish(turnId, { type: "finished", finished: outcome });
    return verdictOf(outcome);
  }

  /**
   * Stores what a call came to, again until the database takes it: an answer that was paid for is never thrown away for a lock that
   * was held too long or a server that restarts. Safe to repeat, also after a commit whose answer was lost.
   */
  async function persist(signal: AbortSignal, settle: () => Promise<CallOutcome>): Promise<CallOutcome> {
    for (let waitMs = 200; ; waitMs = Math.min(2 * waitMs, 5_000)) {
      try {
        return await settle();
      } catch (error) {
        const isPassing = error instanceof AppError && error.code === "unavailable" && error.details["why"] === undefined;
        if (!isPassing || signal.reason === "shutdown") throw error;
        log("a model call is not stored yet", { error: error.message, details: error.details });
        await new Promise((resolve) => setTimeout(resolve, waitMs));
      }
    }
  }

  async function run(context: TenantContext, turnId: TurnId, step: number, signal: AbortSignal): Promise<CallOutcome> {
    const call = await open(context, turnId, step);
    if (!("callId" in call)) return call;
    let overlay: Overlay;
    let input: CallInput;
    let reserved: Reserved;
    try {
      overlay = await overlayOf(context.tenantId, call.turn.request.overlay);
      input = inputOf(call, overlay, call.model);
      const promptTokens = estimatePromptTokens(estimateTokens, { model: call.model.id, ...input });
      reserved = await reserveQuota({ database, quota }, call, { promptTokens, maxTokens: input.settings.maxTokens });
    } catch (error) {
      if (!(error instanceof AppError) || !refusals.has(error.code)) throw error;
      return await persist(signal, async () => await settleRefusal(call, error));
    }
    const { maxTokens, ...admitted } = reserved;
    const ready: ReadyCall = { ...call, ...admitted };
    const own: Route = { model: call.model, price: call.price, input: { ...input, settings: { ...input.settings, maxTokens } } };
    const ended = await callProvider(ready, own, overlay, signal);
    const { model, price } = ended.route;
    const made: ReadyCall = { ...ready, model, price };
    if (!("error" in ended)) return await persist(signal, async () => await settleAnswer(made, ended.result));
    const { error } = ended;
    if (error.kind === "aborted" && signal.reason === "shutdown") throw new AppError("unavailable", { turnId, why: "worker shutdown" });
    return await persist(signal, async () => await settleFailure(made, error));
  }

  return {
    /**
     * One model call of a turn: journal row, provider, then one transaction with usage, reply and billing row. Safe to retry: a
     * call that has ended answers what is stored, and `<turn id>.<step>` is billed once.
     */
    async callModel({ turnId, step }: { turnId: TurnId; step: number }): Promise<CallOutcome> {
      return await asActivity(async (context, signal) => {
        const key = `${context.tenantId}/${callIdOf(turnId, step)}`;
        return await joinAttempt(key, signal, async (shared) => await run(context, turnId, step, shared));
      });
    },
  };
};

/** One try of one model. */
async function attempt(route: Route, key: string, publish: (delta: ModelDelta) => void, signal: AbortSignal): Promise<Attempt> {
  let isSilent = true;
  try {
    const deltas = route.model.provider.call({ model: route.model.id, ...route.input, callId: key }, signal);
    for (;;) {
      const { done, value } = await deltas.next();
      if (done === true) return { route, result: checkedResult(value) };
      isSilent = false;
      publish(value);
    }
  } catch (error) {
    if (!(error instanceof ModelCallError)) throw error;
    return { route, error, isFree: isSilent && error.usage === undefined };
  }
}

const isPassing = ({ kind }: ModelCallError): boolean => kind === "busy" || kind === "unreachable";

/** What another model, or another try, may do better: everything but what the caller asked for. */
const mayGiveWay = (ended: Attempt): ended is FailedAttempt =>
  "error" in ended && ended.isFree && ended.error.kind !== "refused" && ended.error.kind !== "aborted";

/** Errors that end a turn as they are, for its caller to read. */
const refusals: ReadonlySet<string> = new Set<ErrorCode>(["overlay_refused", "tokens_per_day", "cost_per_day_usd"]);

/** @throws {ModelCallError} `garbage` with the usage, for a reply that asks for more than a turn can carry */
function checkedResult(result: ModelResult): ModelResult {
  const { toolCalls } = result.reply;
  const isTooMuch =
    toolCalls.length > toolCallsPerReply ||
    toolCalls.some(({ name }) => name.length > toolNameCharacters) ||
    toolCalls.reduce((sum, { arguments: json }) => sum + json.length, 0) > toolArgumentCharacters;
  if (!isTooMuch) return result;
  const { usage, providerRequestId } = result;
  throw new ModelCallError("garbage", "the reply asks for too many, too large or too oddly named tool calls", { usage, providerRequestId });
}

async function standingVerdict(tx: TenantTx, { turnId }: TurnRow): Promise<CallOutcome> {
  const finished = await readFinishedTurn(tx, turnId);
  return finished === undefined ? { state: "aborted", code: "turn_aborted" } : verdictOf(finished);
}

function doneTurn(call: OpenedCall, reply: ModelReply, usage: CountedUsage): FinishedTurn {
  const total = call.earlier.reduce((sum, { usage: used }) => addUsage(sum, used), addUsage(noUsage, usage));
  const texts = [...call.earlier.map(({ reply: { content } }) => content), reply.content].filter((text) => text !== null && text !== "");
  return {
    state: "done",
    reply: {
      content: texts.length === 0 ? null : texts.join(stepSeparator),
      toolCalls: reply.toolCalls,
      finishReason: reply.finishReason,
      refusal: reply.refusal,
      model: call.model.id,
      usage: total,
      modelCalls: call.step + 1,
    },
  };
}

/** Between the texts of two model calls of one turn. */
const stepSeparator = "\n\n";

/** Publishes one call's deltas as the turn's events; text of a later call follows the earlier ones' after a separator. */
function publisherOf(bus: TokenBus, call: OpenedCall): (delta: ModelDelta) => void {
  const before = call.earlier
    .map(({ reply }) => reply.content ?? "")
    .filter((text) => text !== "")
    .join(stepSeparator);
  const { turnId, request, mode } = call.turn;
  const clientRunsTools = mode === "gateway" || request.tools.length > 0;
  let offset = before.length;
  return (delta) => {
    if (delta.type === "text" && delta.text !== "") {
      const shown = delta.text.replaceAll("\0", "\uFFFD"); // as the row will hold it
      const text = offset === before.length && before !== "" ? stepSeparator + shown : shown;
      bus.publish(turnId, { type: "text", offset, text });
      offset += text.length;
    } else if (delta.type === "tool_call" && clientRunsTools) bus.publish(turnId, delta);
  };
}

function toAppError(error: ModelCallError): AppError {
  const retryAfterSeconds = Math.max(1, Math.ceil((error.retryAfterMs ?? 1_000) / 1_000));
  switch (error.kind) {
    case "busy":
      return new AppError("provider_busy", { client: { retryAfterSeconds } });
    case "refused":
      return new AppError("provider_refused", { client: { message: error.message } });
    case "aborted":
      return new AppError("turn_aborted");
    case "unreachable":
    case "rejected":
    case "garbage":
      return new AppError("provider_error", { kind: error.kind });
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
