// A model provider that costs next to nothing: it answers every Chat Completions call with the same text, in two pieces when streamed, and a count.
// A call of the model `bench-slow` is answered after 200 ms. `GET /calls` tells how many calls it has had.
// node bench/turn-model-server.ts; prints its address.
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { slowModel, slowModelMs } from "./turn-models.ts";

const chunk = (more: object): string =>
  `data: ${JSON.stringify({ id: "bench", object: "chat.completion.chunk", created: 1, model: "bench", ...more })}\n\n`;
const delta = (content: string, finish_reason: string | null = null) => ({ choices: [{ index: 0, delta: { content }, finish_reason }] });
const answer = Buffer.from(
  [
    chunk(delta("Hello, ")),
    chunk(delta("world.")),
    chunk({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] }),
    chunk({ choices: [], usage: { prompt_tokens: 12, completion_tokens: 4, total_tokens: 16 } }),
    "data: [DONE]\n\n",
  ].join(""),
);

const whole = Buffer.from(
  JSON.stringify({
    id: "bench",
    object: "chat.completion",
    created: 1,
    model: "bench",
    choices: [{ index: 0, message: { role: "assistant", content: "Hello, world." }, finish_reason: "stop" }],
    usage: { prompt_tokens: 12, completion_tokens: 4, total_tokens: 16 },
  }),
);

let calls = 0;
const server = createServer((request, response) => {
  if (request.method === "GET") {
    response.end(String(calls));
    return;
  }
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (piece: string) => (body += piece));
  request.on("end", () => {
    calls++;
    const isStreamed = /"stream": ?true/.test(body);
    if (body.includes(`"${slowModel}"`)) setTimeout(() => send(response, isStreamed), slowModelMs);
    else send(response, isStreamed);
  });
});
server.keepAliveTimeout = 60_000;

function send(response: ServerResponse, isStreamed: boolean): void {
  response.writeHead(200, { "content-type": isStreamed ? "text/event-stream" : "application/json" });
  response.end(isStreamed ? answer : whole);
}

server.listen(0, "127.0.0.1");
await once(server, "listening");
process.stdout.write(`http://127.0.0.1:${(server.address() as AddressInfo).port}\n`);
process.on("disconnect", () => process.exit(0)); // the bench has gone
