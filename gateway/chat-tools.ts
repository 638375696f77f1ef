import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { ToolChoice, ToolDefinition } from "../domain/conversation.ts";
import { strictSchemaFault } from "./strict-schema.ts";

/** The tools of a Chat Completions body, and the deprecated functions that came before them. */

const text = z.string();
const toolName = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);
const described = { name: toolName, description: text.nullish() };
const parameters = z.record(text, z.unknown()).nullish();

const customFormat = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("grammar"), grammar: z.strictObject({ syntax: z.enum(["lark", "regex"]), definition: text.min(1) }) }),
]);
const tool = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("function"), function: z.strictObject({ ...described, parameters, strict: z.boolean().nullish() }) }),
  z.strictObject({ type: z.literal("custom"), custom: z.strictObject({ ...described, format: customFormat.optional() }) }),
]);
const namedTool = [
  z.object({ type: z.literal("function"), function: z.object({ name: text }) }),
  z.object({ type: z.literal("custom"), custom: z.object({ name: text }) }),
] as const;
const toolChoice = z.union([
  z.enum(["auto", "none", "required"]),
  z.discriminatedUnion("type", [
    ...namedTool,
    z.object({
      type: z.literal("allowed_tools"),
      allowed_tools: z.object({
        mode: z.enum(["auto", "required"]),
        tools: z.array(z.discriminatedUnion("type", namedTool)).min(1).max(128),
      }),
    }),
  ]),
]);

export const toolFields = {
  tools: z.array(tool).max(128).nullish(),
  tool_choice: toolChoice.nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  functions: z
    .array(z.strictObject({ ...described, parameters }))
    .min(1)
    .max(128)
    .nullish(),
  function_call: z.union([z.enum(["none", "auto"]), z.object({ name: text })]).nullish(),
};
const toolBody = z.object(toolFields);
type ToolBody = z.infer<typeof toolBody>;

export type RequestedTools = {
  readonly tools: readonly ToolDefinition[];
  readonly toolChoice: ToolChoice | undefined;
  readonly parallelToolCalls: boolean | undefined;
};

/**
 * @returns what the model is offered; deprecated functions are tools of which it calls one at a time
 * @throws {AppError} `invalid_request` for a choice that the tools do not allow, or a strict tool whose schema is not
 */
export function toTools(body: ToolBody): RequestedTools {
  const { functions, function_call } = body;
  if (functions != null && body.tools != null) throw refusal("'functions' and 'tools' cannot be used together.", "functions");
  if (function_call != null && functions == null)
    throw refusal("'function_call' is only allowed when 'functions' are specified.", "function_call");
  const { tools, tool_choice, parallel_tool_calls } = functions == null ? body : asTools(functions, function_call);
  const offered = (tools ?? []).map(toTool);
  const toolChoice = toChoice(tool_choice);
  checkChoice(toolChoice, offered, functions == null ? "tool_choice" : "function_call");
  return { tools: offered, toolChoice, parallelToolCalls: parallel_tool_calls ?? undefined };
}

function asTools(functions: NonNullable<ToolBody["functions"]>, call: ToolBody["function_call"]): ToolBody {
  return {
    tools: functions.map((given) => ({ type: "function", function: given })),
    tool_choice: typeof call === "object" && call !== null ? { type: "function", function: call } : call,
    parallel_tool_calls: false,
  };
}

function checkChoice(choice: ToolChoice | undefined, tools: readonly ToolDefinition[], param: string): void {
  if (choice === undefined || choice === "auto" || choice === "none") return;
  if (tools.length === 0) throw refusal("'tool_choice' is only allowed when 'tools' are specified.", param);
  if (choice === "required") return;
  const named = "name" in choice ? [choice.name] : choice.allowed;
  const unknown = named.find((name) => !tools.some((tool_) => tool_.name === name));
  if (unknown !== undefined) throw refusal(`'${param}' names '${unknown.slice(0, 64)}', which is not among the tools.`, param);
}

function toTool(given: z.infer<typeof tool>, place: number): ToolDefinition {
  if (given.type === "custom") {
    const { name, description, format } = given.custom;
    return {
      name,
      description: description ?? undefined,
      custom: format?.type === "grammar" ? { type: format.type, ...format.grammar } : { type: "text" },
    };
  }
  const { name, description, parameters: schema, strict } = given.function;
  const fault = strict === true ? strictSchemaFault(schema ?? { type: "object", additionalProperties: false }) : undefined;
  if (fault !== undefined) throw schemaRefusal(fault, `tools.${place}.function.parameters`);
  return { name, description: description ?? undefined, parameters: schema ?? undefined, strict: strict ?? undefined };
}

function toChoice(choice: ToolBody["tool_choice"]): ToolChoice | undefined {
  const nameOf = (named: z.infer<(typeof namedTool)[number]>): string =>
    named.type === "custom" ? named.custom.name : named.function.name;
  if (choice == null) return undefined;
  if (typeof choice === "string") return choice;
  if (choice.type !== "allowed_tools") return { name: nameOf(choice) };
  return { allowed: choice.allowed_tools.tools.map(nameOf), mode: choice.allowed_tools.mode };
}

export const refusal = (message: string, param: string): AppError => new AppError("invalid_request", { client: { message, param } });

/** A strict schema that is none, named by where it stands in the body. */
export const schemaRefusal = ({ path, message }: { readonly path: readonly string[]; readonly message: string }, param: string): AppError =>
  refusal(`Invalid schema in '${param}': at '${["$", ...path].join(".").slice(0, 200)}', ${message}.`, param);
