import { spawn } from "node:child_process";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { Writable } from "node:stream";
import { onTestFinished } from "vitest";
import { runProgram } from "../../control-plane/cli/program.ts";
import { createTerminal } from "../../control-plane/cli/terminal.ts";
import { packageRoot } from "../../control-plane/environment.ts";

export type SeenRequest = {
  readonly method: string;
  readonly path: string;
  readonly authorization: string;
  readonly session: string | undefined;
  readonly body: unknown;
};
export type Respond = (request: SeenRequest, response: ServerResponse) => void;

/** An HTTP server that stands for the gateway; remembers what it was asked. */
export async function fakeGateway(respond: Respond): Promise<{ readonly url: string; readonly seen: readonly SeenRequest[] }> {
  const seen: SeenRequest[] = [];
  const server = createServer((request, response) => {
    void readBody(request).then((text) => {
      const session = request.headers["x-openclaw-session"];
      const entry: SeenRequest = {
        method: request.method ?? "",
        path: request.url ?? "",
        authorization: request.headers.authorization ?? "",
        session: typeof session === "string" ? session : undefined,
        body: text === "" ? undefined : (JSON.parse(text) as unknown),
      };
      seen.push(entry);
      respond(entry, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen };
}

async function readBody(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of request) text += String(chunk);
  return text;
}

export function sendJson(response: ServerResponse, body: unknown, status = 200): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

export const sendError = (response: ServerResponse, status: number, code: string, message: string): void =>
  sendJson(response, { error: { message, type: "x", param: null, code } }, status);

export type Outcome = { readonly code: number; readonly stdout: string; readonly stderr: string };
export type Variables = Readonly<Record<string, string>>;

/** Runs a command line in this process; `interactive` as if a person sat at a terminal. */
export async function openclaw(words: readonly string[], variables: Variables, { interactive = false } = {}): Promise<Outcome> {
  const output = { stdout: "", stderr: "" };
  const into = (name: keyof typeof output): Writable =>
    new Writable({
      write(chunk, _encoding, done) {
        output[name] += String(chunk);
        done();
      },
    });
  const terminal = createTerminal({ stdout: Object.assign(into("stdout"), { isTTY: interactive }), stderr: into("stderr"), variables });
  const code = await runProgram({ variables, terminal, packageRoot }, "0.0.0", words);
  return { code, ...output };
}

/** Runs a program to its end. @param input what it reads on standard input; default: nothing */
export async function run(program: string, words: readonly string[], variables: Variables, input?: string): Promise<Outcome> {
  // A shell that has a socket for its input takes itself for a remote login, so without input there is none.
  const stdin = input === undefined ? "ignore" : "pipe";
  const child = spawn(program, words, { env: { PATH: process.env["PATH"], ...variables }, stdio: [stdin, "pipe", "pipe"] });
  child.stdin?.on("error", () => undefined); // it may end without reading
  child.stdin?.end(input);
  const output = { stdout: "", stderr: "" };
  child.stdout?.on("data", (chunk) => (output.stdout += String(chunk)));
  child.stderr?.on("data", (chunk) => (output.stderr += String(chunk)));
  const code = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status) => resolve(status ?? -1));
  });
  return { code, ...output };
}

export const binPath = join(packageRoot, "bin", "openclaw.mjs");
