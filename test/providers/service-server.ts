import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** What one call of the provider sent: its JSON, or its form. */
export type ServiceCallSeen = {
  readonly path: string;
  readonly authorization: string | undefined;
  readonly idempotencyKey: string | undefined;
  readonly body: Record<string, unknown>;
  readonly audio: Buffer;
};

export type ServiceReply = {
  readonly status?: number;
  readonly headers?: Record<string, string>;
  readonly json?: unknown;
  readonly text?: string;
};

/** OpenAI's embeddings, transcriptions and moderations: deterministic, unless the next answers are given. */
export type ServiceServer = {
  readonly url: string;
  readonly calls: readonly ServiceCallSeen[];
  /** The next calls are answered so. */
  answer(...replies: readonly ServiceReply[]): void;
  /** Makes calls wait after they have been counted. */
  hold(): { readonly arrived: Promise<void>; release(): void };
  close(): Promise<void>;
};

/** The vector of a text: its length, its first character, and halves. */
export const vectorOf = (input: string | readonly number[], dimensions = 4): Float32Array =>
  Float32Array.from({ length: dimensions }, (_, at) =>
    at === 0 ? input.length : at === 1 ? (typeof input === "string" ? input.charCodeAt(0) : (input[0] ?? 0)) : 1 / (at + 1),
  );

export const segments = [
  { id: 0, start: 0, end: 1.5, text: " Hello there." },
  { id: 1, start: 1.5, end: 3661.25, text: " Bye --> now." },
];

export async function startServiceServer(): Promise<ServiceServer> {
  const calls: ServiceCallSeen[] = [];
  const script: ServiceReply[] = [];
  let gate: { readonly arrived: () => void; readonly open: Promise<void> } | undefined;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on("error", () => undefined);
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const seen = await read(request, Buffer.concat(pieces));
    calls.push(seen);
    if (gate !== undefined) {
      gate.arrived();
      await gate.open;
    }
    const { status = 200, headers = {}, json, text } = script.shift() ?? { json: usualAnswer(seen) };
    response.writeHead(status, { "content-type": "application/json", "x-request-id": `req-${calls.length}`, ...headers });
    response.end(text ?? JSON.stringify(json));
  }

  const server = createServer((request, response) => void answer(request, response).catch(() => response.destroy()));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    calls,
    answer: (...replies) => void script.push(...replies),
    hold() {
      const arrived = Promise.withResolvers<void>();
      const open = Promise.withResolvers<void>();
      gate = { arrived: arrived.resolve, open: open.promise };
      return { arrived: arrived.promise, release: () => ((gate = undefined), open.resolve()) };
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

async function read({ url = "", headers }: IncomingMessage, bytes: Buffer): Promise<ServiceCallSeen> {
  const type = headers["content-type"] ?? "";
  const seen = { path: url.replace("/v1", ""), authorization: headers.authorization, idempotencyKey: headers["idempotency-key"] as string };
  if (!type.startsWith("multipart/")) return { ...seen, body: JSON.parse(bytes.toString()), audio: Buffer.alloc(0) };
  const form = await new Response(new Uint8Array(bytes), { headers: { "content-type": type } }).formData();
  const file = form.get("file") as File;
  const fields = [...form.keys()]
    .filter((name) => name !== "file")
    .map((name) => [name, form.getAll(name).length > 1 ? form.getAll(name) : form.get(name)]);
  return { ...seen, body: { ...Object.fromEntries(fields), filename: file.name }, audio: Buffer.from(await file.arrayBuffer()) };
}

function usualAnswer({ path, body, audio }: ServiceCallSeen): object {
  const { model } = body;
  switch (path) {
    case "/embeddings": {
      const inputs = body["input"] as readonly (string | readonly number[])[];
      const tokens = inputs.reduce((sum, input) => sum + input.length, 0);
      const data = inputs.map((input, index) => ({
        object: "embedding",
        index,
        embedding: Buffer.from(vectorOf(input, body["dimensions"] as number | undefined).buffer).toString("base64"),
      }));
      return { object: "list", data: data.toReversed(), model, usage: { prompt_tokens: tokens, total_tokens: tokens } };
    }
    case "/moderations": {
      const count = Array.isArray(body["input"]) && typeof body["input"][0] === "string" ? body["input"].length : 1;
      const result = { flagged: false, categories: { violence: false }, category_scores: { violence: 0.01 } };
      return { id: "modr-1", model, results: Array.from({ length: count }, () => result) };
    }
    default: {
      const text = `Heard ${audio.length} bytes.`;
      const usage = String(model).startsWith("whisper")
        ? { type: "duration", seconds: 12 }
        : {
            type: "tokens",
            input_tokens: 30,
            output_tokens: 5,
            total_tokens: 35,
            input_token_details: { text_tokens: 0, audio_tokens: 30 },
          };
      return body["response_format"] === "verbose_json"
        ? { task: "transcribe", language: "english", duration: 11.2, text, segments, usage }
        : { text, usage };
    }
  }
}
