import { readdirSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { CountedUsage, UsageDoubt } from "../../domain/usage.ts";
import { ModelCallError, type ModelProvider } from "../../providers/model-provider.ts";
import { createProviders } from "../../providers/provider-registry.ts";
import { failedCall, finishCall } from "./one-call.ts";
import { bytePieces, cut, dataEvents, namedEvents, startWireServer, type WireServer } from "./wire-server.ts";

/** One answer of a provider, in the shape that `source` documents, and what its call is billed for. */
type GoldenVector = {
  readonly what: string;
  readonly source: readonly string[];
  readonly api: "chat" | "responses" | "messages";
  /** The events of a streamed answer; a text is sent as it is. */
  readonly answer?: readonly (string | { readonly type: string })[];
  /** Or the body of one that is not streamed. */
  readonly whole?: object;
  /** The connection breaks at the end. */
  readonly cut?: boolean;
  /** The call ends with an error, which carries the usage. */
  readonly fails?: boolean;
  /** Nothing is billed. */
  readonly nothing?: boolean;
  readonly expect: Omit<CountedUsage, "estimated"> & { readonly doubt?: UsageDoubt; readonly providerTotal?: number };
};

const folder = new URL("./golden/", import.meta.url);
const vectors = readdirSync(folder).map((file): [string, GoldenVector] => [file, JSON.parse(readFileSync(new URL(file, folder), "utf8"))]);

let server: WireServer;
let providers: ReadonlyMap<string, ModelProvider>;
beforeAll(async () => {
  server = await startWireServer();
  providers = createProviders(
    [
      { name: "chat", kind: "openai-compatible", baseUrl: `${server.url}/v1` },
      { name: "responses", kind: "openai-compatible", api: "responses", baseUrl: `${server.url}/v1` },
      { name: "messages", kind: "anthropic", baseUrl: server.url },
    ],
    new Map([["messages", [{ name: "ANTHROPIC_API_KEY", secret: "sk-ant-key" }]]]),
    { limitsOf: () => ({ contextWindow: 128_000, maxOutputTokens: 4_000 }) },
  );
});
afterAll(async () => await server.close());

const bodyOf = ({ api, answer = [], whole }: GoldenVector): string => {
  if (whole !== undefined) return JSON.stringify(whole);
  return answer
    .map((event) => {
      if (typeof event === "string" && event.startsWith(":")) return `${event}\n\n`;
      return api === "chat" || typeof event === "string" ? dataEvents(event) : namedEvents(event);
    })
    .join("");
};

async function usageOf(vector: GoldenVector, pieceLengths: readonly number[]): Promise<CountedUsage | undefined> {
  server.answer({ steps: [...bytePieces(bodyOf(vector), pieceLengths), ...(vector.cut ? ([cut] as const) : [])] });
  const provider = providers.get(vector.api);
  if (provider === undefined) throw new Error(`no provider speaks ${vector.api}`);
  if (vector.fails !== true) return (await finishCall(provider)).result.usage;
  const error = await failedCall(provider);
  expect(error).toBeInstanceOf(ModelCallError);
  return error.usage;
}

test.each(vectors)("%s", async (_file, vector) => {
  const { providerTotal, doubt, ...classes } = vector.expect;

  const usage = await usageOf(vector, [1_000_000]);
  const inPieces = await usageOf(vector, [61, 7, 200]);

  expect(inPieces).toEqual(usage);
  if (vector.nothing === true) return expect(usage).toBeUndefined();
  expect(usage).toEqual({ ...classes, estimated: doubt !== undefined, ...(doubt === undefined ? {} : { doubt }) });
  if (providerTotal !== undefined) expect(Object.values(classes).reduce((sum, tokens) => sum + tokens, 0)).toBe(providerTotal);
  expect(vector.source.length).toBeGreaterThan(0);
});
