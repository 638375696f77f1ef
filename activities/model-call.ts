import { type Overlay, isToolAllowed } from "../control-plane/overlay.ts";
import type { UsageAlarms } from "../control-plane/usage-alarms.ts";
import { AppError, type ErrorCode, toStoredError } from "../domain/app-error.ts";
import type { ChatMessage, ModelReply, ToolDefinition } from "../domain/conversation.ts";
import type { MarkupPpm } from "../domain/money.ts";
import { type RateCard, type RateCardHash, canBeBilled, priceOf } from "../domain/rate-card.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import { type CallId, type TurnId, callIdOf } from "../domain/turn-id.ts";
import type { FinishedTurn, TurnVerdict } from "../domain/turn.ts";
import { type CountedUsage, addUsage, noUsage } from "../domain/usage.ts";
import type { UsageRow } from "../domain/usage-row.ts";
import { mostBelievableTokens } from "../providers/model-limits.ts";
import type { ModelCallError, ModelDelta, ModelResult } from "../providers/model-provider.ts";
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
import {
  type CallQuota,
  type CallSize,
  type Reserved,
  type ReservedCall,
  maxTokensInstead,
  reserveQuota,
  usedBy,
} from "./call-reservation.ts";
import { createJoinedAttempts } from "./joined-attempts.ts";
import { type CallInput, type CallPrice, type Route, type ServedModel, callModels } from "./model-attempts.ts";
import { composeMessages, promptOf, transcriptOf } from "./turn-conversation.ts";
import type { PlaceOfTool } from "./tool-run.ts";
import { verdictOf } from "./turn-end.ts";

/** The overlay that a turn began with; without a digest, the one in force. @throws {AppError} `overlay_refused` */
export type OverlayOfTurn = (tenantId: TenantId, digest: string | undefined) => Promise<Overlay>;

export type CallDeps = {
  readonly database: Database;
  readonly bus: TokenBus;
  readonly tools: ReadonlyMap<string, Tool>;
  readonly overlayOf: OverlayOfTurn;
  readonly placeOf: PlaceOfTool;
  /** The files of the tenant's memory that its agent always sees. */
  readonly promptFilesOf: (tenantId: TenantId) => readonly PromptFile[];
  /** @throws {AppError} `model_not_found` */
  readonly modelOf: (id: string) => ServedModel;
  /** The card in force now, and the markup of the tenant. */
  readonly pricing: (tenantId: TenantId) => Promise<{ readonly rateCard: RateCard; readonly markupPpm: MarkupPpm }>;
  /** A card that was in force before. */
  readonly rateCardAt: (hash: RateCardHash) => Promise<RateCard>;
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

const transcriptMessages = 200;
/** Attempts of one call over worker deaths; each may have reached the provider. */
export const attemptsPerCall = 10;

type OpenedCall = ReservedCall & {
  readonly rateCardHash: RateCardHash;
  readonly markupPpm: MarkupPpm;
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
type ReadyCall = OpenedCall & Pick<Reserved, "admittedAtMs" | "reservation">;

export const createModelCall = (deps: CallDeps) => {
  const { database, bus, tools, overlayOf, placeOf, promptFilesOf, modelOf, pricing, rateCardAt, quota, alarms, now, log } = deps;
  const joinAttempt = createJoinedAttempts<CallOutcome>();

  async function open(context: TenantContext, turnId: TurnId, step: number): Promise<OpenedCall | CallOutcome> {
    const { rateCard, markupPpm } = await pricing(context.tenantId);
    const call = await database.withTenant(context, async (tx): Promise<Omit<OpenedCall, "price" | "prices"> | CallOutcome> => {
      const turn = await claimTurn(tx, turnId);
      if (turn === undefined || turn.state === "void") return { state: "aborted", code: "turn_aborted" };
      if (turn.state !== "running") return await standingVerdict(tx, turn);
      const model = modelOf(turn.request.model);
      const opened = await openCall(tx, { turnId, step, model: model.id, terms: { rateCardHash: rateCard.hash, markupPpm } });
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
        transcript,
        earlier,
        toolRuns,
      };
    });
    if (!("callId" in call)) return call;
    // An attempt after a crash is billed by what the first one was admitted under.
    const { rateCardHash } = call;
    const { rates: prices } = rateCardHash === rateCard.hash ? rateCard : await rateCardAt(rateCardHash);
    const rates = prices.get(call.model.id);
    if (rates === undefined) throw new AppError("model_not_priced", { model: call.model.id });
    if (!canBeBilled(rates, call.markupPpm, mostBelievableTokens(call.model))) throw tooDear(call.model.id);
    return { ...call, prices, price: { rates, rateCardHash, markupPpm: call.markupPpm } };
  }

  /** What the turn's overlay makes of a call. Gateway mode adds nothing to what was sent but the ceiling of the answer. */
  function inputOf(
    { context, turn, transcript, earlier, toolRuns }: OpenedCall,
    overlay: Overlay,
    model: ServedModel,
    tools: readonly ToolDefinition[],
  ): CallInput {
    const { mode, request } = turn;
    const isAgent = mode === "agent";
    const prompt = isAgent ? promptOf(overlay.systemPrompt, promptFilesOf(context.tenantId)) : undefined;
    const { settings } = request;
    return {
      messages: composeMessages({ turn, prompt, transcript, calls: earlier, toolRuns, model }),
      tools,
      settings: {
        ...settings,
        maxTokens: settings.maxTokens ?? Math.min(overlay.maxTokens ?? model.maxOutputTokens, model.maxOutputTokens),
        temperature: settings.temperature ?? (isAgent ? overlay.temperature : undefined),
      },
    };
  }

  /** The request's own tools, or the tenant's as they would run for it. */
  async function offeredTools({ context, turn }: OpenedCall, overlay: Overlay): Promise<readonly ToolDefinition[]> {
    if (turn.mode !== "agent" || turn.request.tools.length > 0) return turn.request.tools;
    const allowed = [...tools.values()].filter(({ definition }) => isToolAllowed(overlay, definition.name));
    return await Promise.all(
      allowed.map(async ({ definition, definitionFor, sandboxMode }) => {
        if (definitionFor === undefined) return definition;
        const wish = { overlay: overlay.sandbox, tool: definition.name, annotation: sandboxMode };
        return definitionFor((await placeOf(context.tenantId, wish)).policy.network.value);
      }),
    );
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
  function* fallbacksOf(call: ReadyCall, own: Route, overlay: Overlay): Generator<Route, undefined> {
    const ids = new Set(overlay.fallbacks.length > 0 ? overlay.fallbacks : call.model.fallbacks);
    for (const id of ids) {
      const rates = call.prices.get(id);
      if (id === call.model.id || rates === undefined || overlay.api.models?.has(id) === false) continue;
      const model = knownModel(id);
      if (model === undefined || !canBeBilled(rates, call.price.markupPpm, mostBelievableTokens(model))) continue;
      const price = { ...call.price, rates };
      const input = inputOf(call, overlay, model, own.input.tools);
      const { maxTokens } = input.settings;
      const promptTokens = promptTokensOf(model, input);
      const within = call.reservation !== undefined ? maxTokensInstead(sizeOf(own), { promptTokens, maxTokens, price }) : maxTokens;
      if (within !== undefined) yield { model, price, promptTokens, input: withMaxTokens(input, within) };
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
    if (isOurs) tellQuota(call, row);
    if (isOurs) raiseAlarm(call, row);
    return announce(call.turn.turnId, standing);
  }

  /** Tells the leases what a call came to. What is not told, because another attempt ended the call, is found in its row. */
  function tellQuota({ context, reservation }: ReadyCall, row: UsageRow | undefined): void {
    const actual = row === undefined ? undefined : usedBy(row.usage, row.costNanoUsd);
    if (reservation !== undefined) quota.settle(context.tenantId, { ...reservation, actual });
  }

  function raiseAlarm({ context, callId }: ReadyCall, row: UsageRow | undefined): void {
    if (row?.usage.doubt !== undefined) alarms.raise(context.tenantId, { callId, model: row.model, doubt: row.usage.doubt });
  }

  /** What another attempt, or a commit of ours whose answer was lost, made of the call: its tools or its turn's end. */
  async function standingOutcome(tx: TenantTx, { turn, step }: OpenedCall): Promise<CallOutcome | FinishedTurn | undefined> {
    const stored = (await readCalls(tx, turn.turnId)).find((journaled) => journaled.step === step);
    return (stored === undefined ? undefined : toolsAskedBy(turn, stored.reply)) ?? (await readFinishedTurn(tx, turn.turnId));
  }

  /** A call that failed for good ends its turn; what the provider had counted by then is billed. */
  async function settleFailure(call: ReadyCall, error: ModelCallError): Promise<CallOutcome> {
    const stored = toStoredError(callErrorOf(error));
    const { kind, status, message, cause } = error;
    log("a model call failed", {
      callId: call.callId,
      model: call.model.id,
      kind,
      status,
      message,
      cause: cause instanceof Error ? cause.message : cause,
    });
    // What no provider heard of is a refused call, like one that no quota is left for.
    const isRefusal = error.unsupported !== undefined && call.step === 0;
    const finished: FinishedTurn = {
      state: error.kind === "aborted" ? "aborted" : "failed",
      error: isRefusal ? { ...stored, isRefusal } : stored,
    };
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
    if (isOurs) tellQuota(call, row);
    if (isOurs) raiseAlarm(call, row);
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

  const persist = async (signal: AbortSignal, settle: () => Promise<CallOutcome>): Promise<CallOutcome> =>
    await persistently({ log, signal }, settle);

  async function run(context: TenantContext, turnId: TurnId, step: number, signal: AbortSignal): Promise<CallOutcome> {
    const call = await open(context, turnId, step);
    if (!("callId" in call)) return call;
    let overlay: Overlay;
    let input: CallInput;
    let promptTokens: number;
    let reserved: Reserved;
    try {
      overlay = await overlayOf(context.tenantId, call.turn.request.overlay);
      input = inputOf(call, overlay, call.model, await offeredTools(call, overlay));
      promptTokens = promptTokensOf(call.model, input);
      reserved = await reserveQuota({ database, quota }, call, { promptTokens, maxTokens: input.settings.maxTokens });
    } catch (error) {
      if (!(error instanceof AppError) || !refusals.has(error.code)) throw error;
      return await persist(signal, async () => await settleRefusal(call, error));
    }
    const ready: ReadyCall = { ...call, ...reserved };
    const { model: ownModel, price: ownPrice } = call;
    const own: Route = { model: ownModel, price: ownPrice, promptTokens, input: withMaxTokens(input, reserved.maxTokens) };
    const others = fallbacksOf(ready, own, overlay);
    const ended = await callModels({ callId: call.callId, own, others, publish: publisherOf(bus, call), signal, now, log });
    const { model, price } = ended.route;
    const made: ReadyCall = { ...ready, model, price };
    if (!("error" in ended)) return await persist(signal, async () => await settleAnswer(made, ended.result));
    const { error, isFree } = ended;
    if (signal.reason === "shutdown" && (isFree || error.kind === "aborted"))
      throw new AppError("unavailable", { turnId, why: "worker shutdown" });
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

/**
 * Stores what a call came to, again until the database takes it: an answer that was paid for is never thrown away for a lock that
 * was held too long or a server that restarts. `settle` is safe to repeat, also after a commit whose answer was lost.
 */
export async function persistently<T>(
  { log, signal }: Pick<CallDeps, "log"> & { readonly signal: AbortSignal },
  settle: () => Promise<T>,
): Promise<T> {
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

export const tooDear = (model: string): AppError =>
  new AppError("model_not_priced", {
    model,
    client: { message: "The model's rates with the markup come to more than a call's billing row can hold.", param: "model" },
  });

/** Errors that end a turn as they are, for its caller to read. */
export const refusals: ReadonlySet<string> = new Set<ErrorCode>([
  "overlay_refused",
  "tokens_per_day",
  "cost_per_day_usd",
  "tenant_suspended",
]);

async function standingVerdict(tx: TenantTx, { turnId }: TurnRow): Promise<CallOutcome> {
  const finished = await readFinishedTurn(tx, turnId);
  return finished === undefined ? { state: "aborted", code: "turn_aborted" } : verdictOf(finished);
}

function doneTurn(call: OpenedCall, reply: ModelReply, usage: CountedUsage): FinishedTurn {
  const total = call.earlier.reduce((sum, { usage: used }) => addUsage(sum, used), addUsage(noUsage, usage));
  const replies = [...call.earlier.map((earlier) => earlier.reply), reply];
  return {
    state: "done",
    reply: {
      ...reply,
      content: joined(replies.map(({ content }) => content)) ?? null,
      refusal: joined(replies.map(({ refusal }) => refusal)),
      ...(reply.logprobs === undefined ? {} : { logprobs: replies.flatMap(({ logprobs = [] }) => logprobs) }),
      model: call.model.id,
      usage: total,
      modelCalls: call.step + 1,
    },
  };
}

const promptTokensOf = ({ id }: ServedModel, input: CallInput): number => estimatePromptTokens(estimateTokens, { model: id, ...input });

const withMaxTokens = (input: CallInput, maxTokens: number): CallInput => ({ ...input, settings: { ...input.settings, maxTokens } });

const sizeOf = ({ promptTokens, price, input }: Route): CallSize => ({ promptTokens, price, maxTokens: input.settings.maxTokens });

/** Between the texts of two model calls of one turn. */
const stepSeparator = "\n\n";

/** Several replies' texts as one; undefined where none said anything. */
function joined(texts: readonly (string | null | undefined)[]): string | undefined {
  const said = texts.filter((text) => text !== null && text !== undefined && text !== "");
  return said.length === 0 ? undefined : said.join(stepSeparator);
}

/** Publishes one call's deltas as the turn's events; text of a later call follows the earlier ones' after a separator. */
function publisherOf(bus: TokenBus, call: OpenedCall): (delta: ModelDelta) => void {
  const earlier = call.earlier.map(({ reply }) => reply);
  const { turnId, request, mode } = call.turn;
  const clientRunsTools = mode === "gateway" || request.tools.length > 0;
  const voices = {
    text: createVoice(joined(earlier.map(({ content }) => content)), earlier.flatMap(({ logprobs = [] }) => logprobs).length),
    refusal: createVoice(joined(earlier.map(({ refusal }) => refusal)), 0),
  };
  return (delta) => {
    if (delta.type !== "tool_call") {
      const piece = voices[delta.type](delta);
      if (piece !== undefined) bus.publish(turnId, { type: delta.type, ...piece });
    } else if (clientRunsTools) bus.publish(turnId, delta);
  };
}

/** Gives each piece of a call's text its place behind what earlier calls of its turn said. */
function createVoice(before = "", tokensBefore: number) {
  let offset = before.length;
  let tokens = tokensBefore;
  return ({ text, logprobs = [] }: Extract<ModelDelta, { text: string }>) => {
    const shown = text.replaceAll("\0", "\uFFFD"); // as the row will hold it
    const isFirst = shown !== "" && before !== "" && offset === before.length;
    const piece = {
      offset,
      text: isFirst ? stepSeparator + shown : shown,
      ...(logprobs.length === 0 ? {} : { logprobs: { offset: tokens, tokens: logprobs } }),
    };
    offset += piece.text.length;
    tokens += logprobs.length;
    return piece.text === "" && logprobs.length === 0 ? undefined : piece;
  };
}

/** What the caller of a call that failed for good reads. */
export function callErrorOf(error: ModelCallError): AppError {
  const retryAfterSeconds = Math.max(1, Math.ceil((error.retryAfterMs ?? 1_000) / 1_000));
  switch (error.kind) {
    case "busy":
      return new AppError("provider_busy", { client: { retryAfterSeconds } });
    case "refused": {
      const { message, unsupported: param } = error;
      if (param === undefined) return new AppError("provider_refused", { client: { message } });
      return new AppError("unsupported_parameter", { client: { message, param } });
    }
    case "aborted":
      return new AppError("turn_aborted");
    case "unreachable":
    case "rejected":
    case "garbage":
      return new AppError("provider_error", { kind: error.kind });
  }
}
