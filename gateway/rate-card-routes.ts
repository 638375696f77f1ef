import type { Readable } from "node:stream";
import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import type { LiveConfiguration, RateCardWriter } from "../control-plane/live-configuration.ts";
import type { Overlays } from "../control-plane/overlays.ts";
import { readValidFrom } from "../control-plane/rate-card-in-force.ts";
import { parseRateCardRequest, rateCardMaxBytes, requireJson } from "../control-plane/rate-card-request.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { findUnpricedModels } from "../control-plane/unpriced-models.ts";
import { AppError } from "../domain/app-error.ts";
import type { RateCard } from "../domain/rate-card.ts";
import type { Database } from "../storage/database.ts";
import { changeOptionsOf } from "./admin-change.ts";

export type RateCardDeps = {
  readonly live: Pick<LiveConfiguration, "current" | "fault">;
  readonly rateCards: Pick<RateCardWriter, "write">;
  readonly database: Pick<Database, "withControl">;
  readonly tenants: Pick<Tenants, "list">;
  readonly overlays: Pick<Overlays, "textOf">;
};

const yamlTypes = ["application/yaml", "application/x-yaml", "text/yaml"];
const cardQuery = z.strictObject({ check: z.enum(["true", "false"]).default("false") });
/** For the API's description; the text is read by `parseRateCardRequest`, which makes no float of a number. */
const cardBody = z.object({
  rate_card: z.record(
    z.string(),
    z.strictObject({
      input: z.string(),
      output: z.string(),
      cache_read: z.string().optional(),
      cache_write: z.string().optional(),
      reasoning: z.string().optional(),
    }),
  ),
});

const cardJson = ({ hash, text }: RateCard) => ({ hash, currency: "USD", rate_card: text });

/** The rate card in force: `billing.rate_card` of `config.yaml`. */
export const createRateCardRoutes =
  ({ live, rateCards, database, tenants, overlays }: RateCardDeps): FastifyPluginAsync =>
  async (app) => {
    app.removeAllContentTypeParsers();
    app.addContentTypeParser("application/json", async (_request: unknown, body: Readable) => {
      const text = await readText(body);
      requireJson(text);
      return text;
    });
    app.addContentTypeParser(yamlTypes, async (_request: unknown, body: Readable) => await readText(body));
    app.addContentTypeParser("*", async () => {
      throw notACard();
    });

    app.get(
      "/v1/rate-card",
      {
        config: {
          access: "admin:billing",
          describes: { summary: "The rate card in force; check=true adds the models in use without a price", query: cardQuery },
        },
      },
      async (request, reply) => {
        const { check } = cardQuery.parse(request.query);
        const config = live.current();
        const validFrom = await database.withControl(async (tx) => await readValidFrom(tx, config.rateCard.hash), { readOnly: true });
        return await reply.header("cache-control", "no-store").send({
          ...cardJson(config.rateCard),
          valid_from: validFrom?.toISOString() ?? null,
          markup_ppm: config.billing.markupPpm,
          fault: live.fault() ?? null,
          ...(check === "true" ? { unpriced: await findUnpricedModels({ config, database, tenants, overlays }) } : {}),
        });
      },
    );

    app.put(
      "/v1/rate-card",
      {
        config: {
          access: "admin:billing",
          describes: { summary: "Replaces the rate card, in config.yaml too; it holds for calls that begin from now on", body: cardBody },
        },
      },
      async (request, reply) => {
        if (typeof request.body !== "string") throw notACard();
        const card = await rateCards.write(parseRateCardRequest(request.body), changeOptionsOf(request));
        return await reply.header("cache-control", "no-store").send(cardJson(card));
      },
    );
  };

const notACard = (): AppError =>
  new AppError("unsupported_media_type", {
    client: { message: "A rate card is sent as application/json or application/yaml: {rate_card: {<model>: {input, output}}}." },
  });

/** @throws {AppError} `request_too_large`, `invalid_json` */
async function readText(body: Readable): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  // The stream outlives a refusal: the rest of the body is read before the answer, or the client would meet a closed connection.
  for await (const chunk of body.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    if (size > rateCardMaxBytes) throw new AppError("request_too_large", { client: { message: "A rate card has at most 1 MiB." } });
    chunks.push(chunk);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks));
  } catch (error) {
    throw new AppError("invalid_json", { client: { message: "The body is not UTF-8 text." } }, { cause: error });
  }
}
