import { type IncomingMessage, request } from "node:http";

/** What a balancer tells of one request: the answer's whole text, and where it was tried before. */
export type Balanced = { readonly status: number; readonly text: string; readonly refusals: number };

/**
 * A load balancer in front of gateways: one after the other, a connection for each request, and the next one where a gateway takes no
 * connection or says 503 before it begins. A request that was begun is never sent again: what breaks then is a request lost.
 */
export function createRoundRobin(urls: readonly string[]) {
  let turn = 0;
  return async (path: string, token: string, body: object): Promise<Balanced> => {
    for (let refusals = 0; ; refusals++) {
      const url = urls[turn++ % urls.length] ?? "";
      const answer = await send(url + path, token, JSON.stringify(body)).catch((error: NodeJS.ErrnoException) => {
        if (error.code === "ECONNREFUSED") return undefined;
        throw error;
      });
      if (answer !== undefined && answer.statusCode !== 503) return { ...(await textOf(answer)), refusals };
      answer?.resume();
      if (refusals > 200) throw new Error("no gateway takes the request");
      if (refusals % urls.length === urls.length - 1) await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
}

async function send(url: string, token: string, body: string): Promise<IncomingMessage> {
  return await new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json", "content-length": Buffer.byteLength(body) };
    request(url, { method: "POST", agent: false, headers }, resolve).once("error", reject).end(body);
  });
}

async function textOf(answer: IncomingMessage): Promise<{ status: number; text: string }> {
  let text = "";
  for await (const chunk of answer.setEncoding("utf8")) text += String(chunk);
  return { status: answer.statusCode ?? 0, text };
}
