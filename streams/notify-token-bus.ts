import type { TurnId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import { createInProcessTokenBus } from "./in-process-token-bus.ts";
import type { TokenBus, TurnEvent } from "./token-bus.ts";

const channel = "openclaw_turn_events";
/** Text is gathered for so long before it is sent: a notification per token would cost a round trip each. */
const flushMs = 20;
/** Postgres takes 7,999 bytes; a character of JSON text may take six. */
const textPerNotification = 1_200;

type Batch = { readonly turnId: TurnId; readonly events: readonly TurnEvent[] };

/**
 * The bus between gateway and worker processes: Postgres NOTIFY, about 1 ms. What is lost while a connection is down shows as a gap
 * in the text's offsets, and the turn's row has it all.
 */
export async function openNotifyTokenBus(
  database: Database,
  log: (message: string, fields?: Record<string, unknown>) => void,
): Promise<{ readonly bus: TokenBus; close(): Promise<void> }> {
  const local = createInProcessTokenBus();
  const pending = new Map<TurnId, TurnEvent[]>();
  let timer: NodeJS.Timeout | undefined;
  let sending: Promise<void> = Promise.resolve();

  const stopListening = await database.listen(channel, (payload) => {
    const { turnId, events } = JSON.parse(payload) as Batch;
    for (const event of events) local.publish(turnId, event);
  });

  const flush = (): void => {
    timer = undefined;
    const batches = [...pending].flatMap(([turnId, events]) => inPayloads(turnId, events));
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
        const events = pending.get(turnId) ?? [];
        pending.set(turnId, events);
        const last = events.at(-1);
        if (
          event.type === "text" &&
          last?.type === "text" &&
          last.offset + last.text.length === event.offset &&
          last.text.length < textPerNotification
        ) {
          events[events.length - 1] = { ...last, text: last.text + event.text };
        } else events.push(event.type === "finished" ? { type: "finished" } : event);
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
function inPayloads(turnId: TurnId, events: readonly TurnEvent[]): string[] {
  const payloads: string[] = [];
  for (const event of events.flatMap(inPieces)) payloads.push(JSON.stringify({ turnId, events: [event] } satisfies Batch));
  return payloads;
}

function inPieces(event: TurnEvent): readonly TurnEvent[] {
  if (event.type === "text") {
    return pieces(event.text).map(({ start, text }) => ({ type: "text", offset: event.offset + start, text }));
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
