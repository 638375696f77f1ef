import type Stripe from "stripe";

/** One billing meter event as Stripe takes it. */
export type MeterEvent = {
  readonly eventName: string;
  readonly customer: string;
  /** Whole; the meter adds them up. */
  readonly value: bigint;
  /** Stripe takes a second event of the same identifier within 24 hours for the first one. */
  readonly identifier: string;
  readonly atSeconds: number;
};

/** What is known after an attempt; only `unclear` leaves open whether Stripe has the event. */
export type MeterAnswer =
  | { readonly state: "accepted" }
  /** Stripe had it before. */
  | { readonly state: "known" }
  /** Not taken, and not to be taken as it is. */
  | { readonly state: "refused"; readonly reason: string }
  /** Not taken now. */
  | { readonly state: "later"; readonly reason: string; readonly afterMs: number | undefined }
  /** The key is at fault: no event will be taken. */
  | { readonly state: "locked"; readonly reason: string }
  | { readonly state: "unclear"; readonly reason: string };

/** What is wrong with the set-up of the meter of an event name: nothing is told to a meter that would count something else. */
export type MeterFaults = { readonly state: "read"; faultOf(eventName: string): string | undefined };

export interface StripeMeters {
  /** @returns why they could not be read, where they could not */
  readMeters(): Promise<MeterFaults | MeterAnswer>;
  send(event: MeterEvent): Promise<MeterAnswer>;
  /** The sum of a customer's events of a UTC day. @throws when Stripe does not answer, or has no such meter */
  sumOfDay(customer: string, eventName: string, day: string): Promise<number>;
}

export type StripeMetersOptions = {
  readonly apiKey: string;
  /** Default: Stripe's own. */
  readonly apiBase?: string | undefined;
  /** How long an answer may take; default 20 s. */
  readonly timeoutMs?: number;
};

const longestReason = 300;
const daySeconds = 86_400;

/** Stripe's client is loaded at the first use: whoever writes no invoices does not carry it. */
export async function openStripeMeters({ apiKey, apiBase, timeoutMs = 20_000 }: StripeMetersOptions): Promise<StripeMeters> {
  const { default: StripeClient } = await import("stripe");
  const client = new StripeClient(apiKey, {
    ...(apiBase === undefined ? {} : addressOf(apiBase)),
    timeout: timeoutMs,
    maxNetworkRetries: 0, // our own retries know what has been noted; the client's would not
    telemetry: false,
    appInfo: { name: "OpenClawMU" },
  });

  const meterOf = async (eventName: string): Promise<string> => {
    for await (const meter of client.billing.meters.list({ status: "active", limit: 100 }))
      if (meter.event_name === eventName) return meter.id;
    throw new Error(`Stripe has no meter with the event name "${eventName}"`);
  };

  return {
    async readMeters() {
      try {
        const meters = new Map<string, Stripe.Billing.Meter>();
        for await (const meter of client.billing.meters.list({ status: "active", limit: 100 })) meters.set(meter.event_name, meter);
        return { state: "read", faultOf: (eventName) => faultOf(meters.get(eventName), eventName) };
      } catch (error) {
        if (error instanceof StripeClient.errors.StripeError) return judge(error);
        throw error;
      }
    },
    async send({ eventName, customer, value, identifier, atSeconds }) {
      try {
        await client.billing.meterEvents.create({
          event_name: eventName,
          payload: { stripe_customer_id: customer, value: value.toString() },
          identifier,
          timestamp: atSeconds,
        });
        return { state: "accepted" };
      } catch (error) {
        if (error instanceof StripeClient.errors.StripeError) return judge(error);
        throw error;
      }
    },
    async sumOfDay(customer, eventName, day) {
      const start = Date.parse(`${day}T00:00:00Z`) / 1_000;
      const summaries = client.billing.meters.listEventSummaries(await meterOf(eventName), {
        customer,
        start_time: start,
        end_time: start + daySeconds,
      });
      let sum = 0;
      for await (const { aggregated_value } of summaries) sum += aggregated_value;
      return sum;
    },
  };
}

function addressOf(apiBase: string): { protocol: "http" | "https"; host: string; port: string } {
  const { protocol, hostname, port } = new URL(apiBase);
  return { protocol: protocol === "http:" ? "http" : "https", host: hostname, port: port || (protocol === "http:" ? "80" : "443") };
}

function faultOf(meter: Stripe.Billing.Meter | undefined, eventName: string): string | undefined {
  const says = (what: string): string => `the meter "${eventName}" in Stripe ${what}`;
  if (meter === undefined) return says("is not there, or not active");
  if (meter.default_aggregation.formula !== "sum") return says(`has the aggregation ${meter.default_aggregation.formula}, not sum`);
  if (meter.event_time_window !== null) return says("keeps one event per hour or day only: its events must be raw");
  if (meter.customer_mapping.event_payload_key !== "stripe_customer_id") return says("has another customer key than stripe_customer_id");
  if (meter.value_settings.event_payload_key !== "value") return says("has another value key than value");
  return undefined;
}

/** Stripe refuses an identifier that it knows as an invalid request; there is no code for it in the first version of this call. */
const isKnown = ({ code, message }: Stripe.errors.StripeError): boolean =>
  code === "duplicate_meter_event" || message.startsWith("An event already exists with identifier");

function judge(error: Stripe.errors.StripeError): MeterAnswer {
  const { statusCode, headers } = error;
  const reason = `Stripe${statusCode === undefined ? "" : ` (${statusCode})`}: ${error.message}`.slice(0, longestReason);
  if (statusCode === 429) return { state: "later", reason, afterMs: retryAfterMs(headers?.["retry-after"]) };
  // Its message may quote the key.
  if (statusCode === 401 || statusCode === 403)
    return { state: "locked", reason: `Stripe (${statusCode}) does not accept the API key for this call` };
  if (statusCode === undefined || statusCode < 400 || statusCode >= 500 || statusCode === 409) return { state: "unclear", reason };
  return isKnown(error) ? { state: "known" } : { state: "refused", reason };
}

const longestRetryAfterMs = 3_600_000;

function retryAfterMs(header: string | undefined): number | undefined {
  if (header === undefined || !/^\d{1,6}$/.test(header)) return undefined;
  return Math.min(Number(header) * 1_000, longestRetryAfterMs);
}
