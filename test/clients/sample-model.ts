import { once } from "node:events";
import { type ServerResponse, createServer } from "node:http";
import type { AddressInfo } from "node:net";

/**
 * A provider that speaks Chat Completions and does what was asked, like a model would, but always the same: it answers with what it
 * was told, calls tools with arguments that fit their schemas, keeps to response formats, stop sequences and token limits (a token
 * is a word), tells logprobs, refuses what says REFUSE, and tells what it was shown. A tool is called where the choice forces it,
 * or where the question holds a word of its name; what a tool answered is told.
 */
export type SampleModel = {
  /** What goes into `base_url`. */
  readonly url: string;
  /** The bodies that came, oldest first. */
  readonly requests: readonly Body[];
  close(): Promise<void>;
};

type Json = Readonly<Record<string, unknown>>;
type Part = { readonly type: string; readonly text?: string };
type Message = { readonly role: string; readonly content?: string | readonly Part[] | null };
type Tool = {
  readonly type: string;
  readonly function?: { readonly name: string; readonly parameters?: Json };
  readonly custom?: { readonly name: string };
};
type Body = Json & { readonly messages: readonly Message[]; readonly tools?: readonly Tool[] };
type Called = { readonly name: string; readonly text: string; readonly isCustom: boolean };
type Answer = { readonly said: readonly string[]; readonly refusal: string; readonly call: Called | undefined; readonly finish: string };

export async function startSampleModel(): Promise<SampleModel> {
  const requests: Body[] = [];
  const server = createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on("data", (piece: Buffer) => pieces.push(piece));
    request.on("end", () => {
      const body = JSON.parse(Buffer.concat(pieces).toString()) as Body;
      requests.push(body);
      stream(response, body, answerTo(body), requests.length);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    requests,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

function answerTo(body: Body): Answer {
  const question = textOf(body.messages.findLast(({ role }) => role === "user"));
  const last = body.messages.at(-1);
  const call = toolCallOf(body, question, last?.role === "tool");
  const nothing = { said: [], refusal: "", call: undefined, finish: "stop" };
  if (call !== undefined) return { ...nothing, call, finish: "tool_calls" };
  if (question.includes("REFUSE")) return { ...nothing, refusal: "I would rather not." };
  const text = formatted(body, question) ?? plainAnswer(body, question, last);
  const stops = [body["stop"] ?? []].flat().map((stop) => text.indexOf(String(stop)));
  const words = text.slice(0, Math.min(text.length, ...stops.filter((at) => at >= 0))).match(/\s*\S+|\s+$/g) ?? [];
  const most = Number(body["max_completion_tokens"] ?? body["max_tokens"] ?? Number.POSITIVE_INFINITY);
  return { ...nothing, said: words.slice(0, most), finish: words.length > most ? "length" : "stop" };
}

function plainAnswer(body: Body, question: string, last: Message | undefined): string {
  const shown = body.messages.flatMap(({ content }) => (Array.isArray(content) ? content.map(({ type }: Part) => type) : []));
  const others = shown.filter((type) => type !== "text");
  const seen = others.length === 0 ? "" : ` I was shown: ${others.join(", ")}.`;
  return last?.role === "tool" ? `The tool said: ${textOf(last)}${seen}` : `You said: ${question}${seen}`;
}

/** JSON in the form that was asked for; undefined for plain text. */
function formatted(body: Body, question: string): string | undefined {
  const format = body["response_format"] as { type: string; json_schema?: { schema?: Json } } | undefined;
  if (format?.type === "json_schema") return JSON.stringify(sample(format.json_schema?.schema ?? {}, question));
  if (format?.type !== "json_object") return undefined;
  const keys = [...question.matchAll(/'(\w+)'/g)].map(([, key]) => [key, question]);
  return JSON.stringify(keys.length === 0 ? { answer: question } : Object.fromEntries(keys));
}

function toolCallOf({ tools = [], ...body }: Body, question: string, isAnswered: boolean): Called | undefined {
  const choice = body["tool_choice"] as string | { function?: { name: string }; custom?: { name: string } } | undefined;
  if (choice === "none" || tools.length === 0) return undefined;
  const named = typeof choice === "object" ? (choice.function ?? choice.custom)?.name : undefined;
  const isMeant = (tool: Tool): boolean =>
    nameOf(tool)
      .split("_")
      .some((word) => word.length > 3 && question.toLowerCase().includes(word.toLowerCase()));
  const isForced = named !== undefined || choice === "required";
  if (isAnswered && !isForced) return undefined;
  const tool = tools.find((offered) => nameOf(offered) === named) ?? tools.find(isMeant) ?? (isForced ? tools[0] : undefined);
  if (tool === undefined) return undefined;
  const isCustom = tool.custom !== undefined;
  return { name: nameOf(tool), text: isCustom ? question : JSON.stringify(sample(tool.function?.parameters ?? {}, question)), isCustom };
}

const nameOf = (tool: Tool): string => (tool.function ?? tool.custom)?.name ?? "";

/** A value that the schema allows: numbers and texts are those of the question, in their order. */
function sample(root: Json, question: string): unknown {
  const numbers = [...question.matchAll(/\d+/g)].map(([digits]) => Number(digits));
  const value = (given: unknown): unknown => {
    const schema = resolve(given as Json, root);
    if (schema["const"] !== undefined) return schema["const"];
    if (Array.isArray(schema["enum"])) return schema["enum"][0];
    switch ([schema["type"]].flat().find((type) => type !== "null")) {
      case "integer":
      case "number":
        return numbers.shift() ?? 1;
      case "boolean":
        return true;
      case "null":
        return null;
      case "string":
        return question;
      case "array":
        return [value(schema["items"] ?? { type: "string" })];
      default:
        return Object.fromEntries(Object.entries((schema["properties"] ?? {}) as Json).map(([key, inner]) => [key, value(inner)]));
    }
  };
  return value(root);
}

function resolve(schema: Json, root: Json): Json {
  const reference = schema["$ref"];
  if (typeof reference === "string") {
    const steps = reference.split("/").slice(1);
    return resolve(steps.reduce<unknown>((inner, step) => (inner as Json)[step], root) as Json, root);
  }
  const branches = (schema["anyOf"] ?? schema["oneOf"] ?? schema["allOf"]) as readonly Json[] | undefined;
  const branch = branches?.find(({ type }) => type !== "null");
  return branch === undefined ? schema : resolve(branch, root);
}

function textOf(message: Message | undefined): string {
  const { content } = message ?? {};
  return typeof content === "string" ? content : (content ?? []).flatMap(({ text = [] }) => text).join("\n");
}

const countWords = (text: string): number => text.match(/\S+/g)?.length ?? 0;

function usageOf(body: Body, { said, refusal, call }: Answer): object {
  const prompt = body.messages.reduce((sum, message) => sum + countWords(textOf(message)), 1);
  const reasoning = (body["reasoning_effort"] ?? "none") === "none" ? 0 : 7;
  const completion = said.length + countWords(refusal) + countWords(call?.text ?? "") + reasoning;
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: body["prompt_cache_key"] === undefined ? 0 : Math.floor(prompt / 2) },
    completion_tokens_details: { reasoning_tokens: reasoning },
  };
}

/** The product asks for streams only. */
function stream(response: ServerResponse, body: Body, answer: Answer, number: number): void {
  const tier = body["service_tier"] === undefined ? {} : { service_tier: body["service_tier"] };
  const send = (more: object): void => {
    const head = { id: `chatcmpl-${number}`, object: "chat.completion.chunk", created: 1, model: body["model"], ...tier };
    response.write(`data: ${JSON.stringify({ ...head, ...more })}\n\n`);
  };
  const choose = (delta: object, logprobs: object | null = null, finish_reason: string | null = null): void =>
    send({ choices: [{ index: 0, delta, logprobs, finish_reason }] });
  const rivals = Number(body["top_logprobs"] ?? 0);
  const logprob = (token: string) => ({ token, bytes: [...Buffer.from(token)], logprob: -0.25 });
  const told = (token: string): object => ({
    content: [{ ...logprob(token), top_logprobs: Array.from({ length: rivals }, () => logprob(token)) }],
    refusal: null,
  });

  response.writeHead(200, { "content-type": "text/event-stream" });
  choose({ role: "assistant", content: "" });
  for (const word of answer.said) choose({ content: word }, body["logprobs"] === true ? told(word) : null);
  for (const word of answer.refusal.match(/\s*\S+/g) ?? []) choose({ refusal: word });
  const { call } = answer;
  if (call !== undefined) {
    const [kind, input] = call.isCustom ? ["custom", "input"] : ["function", "arguments"];
    choose({ tool_calls: [{ index: 0, id: `call_${number}`, type: kind, [kind]: { name: call.name, [input]: "" } }] });
    for (const piece of call.text.match(/[^]{1,8}/gu) ?? []) choose({ tool_calls: [{ index: 0, [kind]: { [input]: piece } }] });
  }
  choose({}, null, answer.finish);
  send({ choices: [], usage: usageOf(body, answer) });
  response.end("data: [DONE]\n\n");
}
