/**
 * How far our estimate of tokens is from real tokenizers, by kind of text: `node bench/token-estimate.ts DIRECTORY`, where
 * `npm i gpt-tokenizer@4 llama3-tokenizer-js@1 mistral-tokenizer-js@1 typescript@5` was run. TypeScript brings its messages in 13 languages.
 */
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { estimateTokens } from "../providers/token-estimate.ts";

const [directory] = process.argv.slice(2);
if (directory === undefined) throw new Error("the directory with the tokenizers is missing");
const packages = join(directory, "node_modules");
const { resolve } = createRequire(pathToFileURL(join(packages, "any.js")));

type Counter = (text: string) => number;
const load = async (name: string) => (await import(pathToFileURL(resolve(name)).href)) as Record<string, never>;
type Encode = { readonly encode: (text: string, ...options: readonly unknown[]) => readonly number[] };
const o200k = (await load("gpt-tokenizer/encoding/o200k_base")) as unknown as Encode;
const cl100k = (await load("gpt-tokenizer/encoding/cl100k_base")) as unknown as Encode;
const llama = (await load("llama3-tokenizer-js"))["default"] as unknown as Encode;
const mistral = (await load("mistral-tokenizer-js"))["default"] as unknown as Encode;
const tokenizers: readonly (readonly [string, Counter])[] = [
  ["o200k", (text) => o200k.encode(text).length],
  ["cl100k", (text) => cl100k.encode(text).length],
  ["Llama 3", (text) => llama.encode(text, { bos: false, eos: false }).length],
  ["Mistral 32k", (text) => mistral.encode(text, false, false).length],
];

const here = new URL("..", import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, here), "utf8");
const readAll = (folder: string, ending: string): string =>
  readdirSync(new URL(folder, here))
    .filter((name) => name.endsWith(ending))
    .map((name) => read(folder + name))
    .join("\n");
const compiler = readFileSync(join(packages, "typescript/lib/_tsc.js"), "utf8");
const messagesIn = (language: string): string =>
  Object.values(
    JSON.parse(readFileSync(join(packages, "typescript/lib", language, "diagnosticMessages.generated.json"), "utf8")) as Record<
      string,
      string
    >,
  ).join("\n");

const languages = "de fr es it pt-br pl cs tr ru ja ko zh-cn zh-tw".split(" ");
const kinds: readonly (readonly [string, string])[] = [
  ["English", [read("README.md"), read("CONTRIBUTING.md"), readAll("docs/adr/", ".md")].join("\n")],
  ["TypeScript", [readAll("activities/", ".ts"), readAll("providers/", ".ts")].join("\n")],
  ["JavaScript", compiler.slice(200_000, 320_000)],
  ["SQL", readAll("storage/migrations/control/", ".sql")],
  ["JSON, compact", JSON.stringify(JSON.parse(read("package-lock.json"))).slice(0, 120_000)],
  ["JSON, indented", read("test/histories/0.1.0-session-turn.json")],
  ["HTML", readAll("control-plane/web/", ".html")],
  ["numbers", Array.from({ length: 6_000 }, (_, index) => (index * 2_654_435_761) % 1_000_000_000).join(" ")],
  ["base64", Buffer.from(compiler.slice(0, 60_000)).toString("base64")],
  ["hex", Buffer.from(compiler.slice(0, 30_000)).toString("hex")],
  ...languages.map((language) => [language, messagesIn(language)] as const),
];

const pieceCharacters = 600;
const mostPieces = 200;

/** The sum of all pieces, and the furthest pieces on both sides, as our tokens for one of the tokenizer's. */
function ratiosOf(pieces: readonly string[], count: Counter): string {
  const counts = pieces.map((text) => [estimateTokens("", text), count(text)] as const);
  const [ours, theirs] = counts.reduce(([a, b], [estimated, real]) => [a + estimated, b + real], [0, 0]);
  const ratios = counts.map(([estimated, real]) => estimated / real);
  return `${(ours / theirs).toFixed(2)} (${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)})`;
}

console.log(["kind", "pieces", ...tokenizers.map(([name]) => name)].join(" | "));
for (const [kind, text] of kinds) {
  const pieces: string[] = [];
  for (let at = 0; at + pieceCharacters <= text.length && pieces.length < mostPieces; at += pieceCharacters)
    pieces.push(text.slice(at, at + pieceCharacters).toWellFormed());
  console.log([kind, pieces.length, ...tokenizers.map(([, count]) => ratiosOf(pieces, count))].join(" | "));
}
