import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

export type NotificationHandler = (payload: string) => void;

type Subscription = { readonly handler: NotificationHandler; readonly onReconnect: (() => void) | undefined };

type ListenerOptions = { readonly url: string; readonly log: (message: string, fields?: Record<string, unknown>) => void };

const longestDelayMs = 5_000;

/** One connection for all LISTENs of a process. It reconnects by itself; what was sent meanwhile is lost, and `onReconnect` says so. */
export class NotificationListener {
  readonly #options: ListenerOptions;
  readonly #subscriptions = new Map<string, Set<Subscription>>();
  readonly #closing = new AbortController();
  #client: pg.Client | undefined;
  #connecting: Promise<void> | undefined;

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  /** Resolves once the server listens. @returns how to stop. */
  async listen(channel: string, subscription: Subscription): Promise<() => Promise<void>> {
    const present = this.#subscriptions.get(channel) ?? new Set();
    this.#subscriptions.set(channel, present.add(subscription));
    if (this.#client === undefined) await (this.#connecting ??= this.#connect());
    else await this.#client.query(`listen ${pg.escapeIdentifier(channel)}`).catch(() => this.#connecting); // a lost connection is made anew for all channels
    return async () => {
      present.delete(subscription);
      if (present.size > 0 || this.#subscriptions.get(channel) !== present) return;
      this.#subscriptions.delete(channel);
      await this.#client?.query(`unlisten ${pg.escapeIdentifier(channel)}`).catch(() => undefined);
    };
  }

  async #connect(): Promise<void> {
    const { url, log } = this.#options;
    for (let delayMs = 100; !this.#closing.signal.aborted; delayMs = Math.min(delayMs * 2, longestDelayMs)) {
      const client = new pg.Client({
        connectionString: url,
        application_name: "openclaw-listen",
        keepAlive: true,
        connectionTimeoutMillis: 3_000,
      });
      client.on("error", (error) => log("the notification connection failed", { error: error.message }));
      client.on("notification", ({ channel, payload }) => this.#deliver(channel, payload ?? ""));
      try {
        await client.connect();
        const channels = [...this.#subscriptions.keys()];
        // A channel that is added from here on is added on this client: there is no await between reading the keys and sending.
        this.#client = client;
        for (const channel of channels) await client.query(`listen ${pg.escapeIdentifier(channel)}`);
        client.once("end", () => void this.#onEnd(client));
        this.#connecting = undefined;
        return;
      } catch (error) {
        this.#client = undefined;
        await client.end().catch(() => undefined);
        log("the notification connection could not be made, trying on", { error: error instanceof Error ? error.message : String(error) });
        await sleep(delayMs, undefined, { signal: this.#closing.signal }).catch(() => undefined);
      }
    }
  }

  async #onEnd(client: pg.Client): Promise<void> {
    if (this.#client !== client) return;
    this.#client = undefined;
    if (this.#closing.signal.aborted) return;
    await (this.#connecting ??= this.#connect());
    for (const subscription of [...this.#subscriptions.values()].flatMap((present) => [...present]))
      this.#call(() => subscription.onReconnect?.());
  }

  #deliver(channel: string, payload: string): void {
    for (const { handler } of this.#subscriptions.get(channel) ?? []) this.#call(() => handler(payload));
  }

  #call(handle: () => void): void {
    try {
      handle();
    } catch (error) {
      this.#options.log("a notification handler failed", { error: error instanceof Error ? error.message : String(error) });
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#subscriptions.clear();
    const client = this.#client;
    this.#client = undefined;
    await client?.end().catch(() => undefined);
    await this.#connecting;
  }
}
