import { randomUUID } from "node:crypto";
import type { TurnId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import { createInProcessTokenBus } from "./in-process-token-bus.ts";
import type { TokenBus, TurnEvent } from "./token-bus.ts";

const channel = "openclaw_turn_events";
/** Text is gathered for so long before it is sent: a notification per token would cost a round trip each. */
const flushMs = 20;
/** Postgres takes 7,999 bytes; a character of JSON text may take six. */
const textPerNotification = 1_200;

/** `from` is the bus that sent it, which has told its own listeners already. */
type Batch = { readonly from: string; readonly turnId: TurnId; readonly events: readonly TurnEvent[] };

/**
 * The bus between processes: a function call to listeners of this one, and Postgres NOTIFY, about 1 ms, to the others while there are any
 * (`isShared`). What is lost while a connection is down shows as a gap in the text's offsets, and the turn's row has it all.
 */
export async function openNotifyTokenBus(
  database: Database,
  log: (message: string, fields?: Record<string, unknown>) => void,
  isShared: () => boolean,
): Promise<{ readonly bus: TokenBus; close(): Promise<void> }> {
  const from = randomUUID();
  const local = createInProcessTokenBus();
  const pending = new Map<TurnId, TurnEvent[]>();
  let timer: NodeJS.Timeout | undefined;
  let sending: Promise<void> = Promise.resolve();

  const stopListening = await database.listen(channel, (payload) => {
    const { from: sender, turnId, events } = JSON.parse(payload) as Batch;
    if (sender === from) return;
    for (const event of events) local.publish(turnId, event);
  });

  const flush = (): void => {
    timer = undefined;
    const batches = [...pending].flatMap(([turnId, events]) => inPayloads({ from, turnId }, events));
    pending.clear();
    sending = sending.then(async () => {
      for (const payload of batches) {
        await database.notify(channel, payload).catch((error: unknown) => log("turn events were not sent", { error: String(error) }));
      }
    });
  };

  return {
    bus: {
      publish(turnId, event) {
        local.publish(turnId, event);
        if (!isShared()) return;
        const events = pending.get(turnId) ?? [];
        pending.set(turnId, events);
        const joined = join(events.at(-1), event);
        if (joined === undefined) events.push(event.type === "finished" ? { type: "finished" } : event);
        else events[events.length - 1] = joined;
        timer ??= setTimeout(flush, event.type === "finished" ? 0 : flushMs);
      },
      subscribe: local.subscribe,
    },
    async close() {
      clearTimeout(timer);
      flush();
      await sending;
      await stopListening();
    },
  };
}

/** Notifications that hold the events in their order, each below Postgres' limit. */
function inPayloads(of: Omit<Batch, "events">, events: readonly TurnEvent[]): string[] {
  const payloads: string[] = [];
  for (const event of events.flatMap(inPieces)) payloads.push(JSON.stringify({ ...of, events: [event] } satisfies Batch));
  return payloads;
}

/** Two pieces of one text as one event, where they follow each other. Logprobs are large and travel alone. */
function join(last: TurnEvent | undefined, event: TurnEvent): TurnEvent | undefined {
  if (event.type !== "text" && event.type !== "refusal") return undefined;
  if (last?.type !== event.type || last.logprobs !== undefined || event.logprobs !== undefined) return undefined;
  if (last.offset + last.text.length !== event.offset || last.text.length >= textPerNotification) return undefined;
  return { ...last, text: last.text + event.text };
}

function inPieces(event: TurnEvent): readonly TurnEvent[] {
  if (event.type === "text" || event.type === "refusal") {
    const { type, offset, logprobs } = event;
    const fits = logprobs !== undefined && JSON.stringify(event).length <= textPerNotification * 2;
    if (fits) return [event];
    // What does not fit is told at the end: the listener sees that it is missing.
    return pieces(event.text).map(({ start, text }) => ({ type, offset: offset + start, text }));
  }
  if (event.type === "tool_call") {
    return pieces(event.arguments).map(({ start, text }) =>
      start === 0 ? { ...event, arguments: text } : { type: "tool_call", index: event.index, arguments: text },
    );
  }
  return [event];
}

/** Cuts of a text, never inside a surrogate pair: half a character is no valid JSON text to clients that are no JavaScript. */
function pieces(whole: string): readonly { start: number; text: string }[] {
  const cuts = [{ start: 0, text: whole.slice(0, endOfPiece(whole, 0)) }];
  for (let start = endOfPiece(whole, 0); start < whole.length; start = endOfPiece(whole, start))
    cuts.push({ start, text: whole.slice(start, endOfPiece(whole, start)) });
  return cuts;
}

function endOfPiece(whole: string, start: number): number {
  const end = start + textPerNotification;
  if (end >= whole.length) return whole.length;
  return (whole.codePointAt(end - 1) ?? 0) > 0xff_ff ? end - 1 : end;
}
