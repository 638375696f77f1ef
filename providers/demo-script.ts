import type { ChatMessage, ToolDefinition } from "../domain/conversation.ts";

/** What a line of the user's asks the demo model to do with a tool. */
export type DemoCommand = { readonly tool: string; readonly arguments: Readonly<Record<string, unknown>> };

type CommandForm = { readonly pattern: RegExp; readonly command: (match: RegExpExecArray) => DemoCommand };

/** The lines that the demo model understands, tried in this order; an argument is `[its usual name, …other names]`. */
const commandForms: readonly CommandForm[] = [
  { pattern: /^(?:\/exec\s+|run:\s*)(.+)$/is, command: ([, command]) => ({ tool: "exec", arguments: { command } }) },
  { pattern: /^\/write\s+(\S+)\s+(.+)$/is, command: ([, path, content]) => ({ tool: "write", arguments: { path, content } }) },
  { pattern: /^\/read\s+(\S+)$/i, command: ([, path]) => ({ tool: "read", arguments: { path } }) },
  { pattern: /^\/list(?:\s+(\S+))?$/i, command: ([, path = "."]) => ({ tool: "list", arguments: { path } }) },
  {
    pattern: /^\/edit\s+(\S+)\s+(\S.*?) => (.*)$/is, // single blanks around the arrow: a run of them would be tried in every way
    command: ([, path, old_text, new_text]) => ({ tool: "edit", arguments: { path, old_text, new_text } }),
  },
  { pattern: /^\/call\s+(\S+)(?:\s+(\{.*\}))?$/is, command: ([, tool = "", json = "{}"]) => ({ tool, arguments: parseObject(json) }) },
];

/** Names that tools use for the same argument. */
const synonyms: readonly (readonly string[])[] = [
  ["command", "cmd", "script", "shell_command"],
  ["path", "file", "file_path", "filename", "directory", "dir"],
  ["content", "text", "contents", "data"],
  ["old_text", "old", "old_string", "oldText", "find", "search"],
  ["new_text", "new", "new_string", "newText", "replace", "replacement"],
];

function parseObject(json: string): Readonly<Record<string, unknown>> {
  try {
    return JSON.parse(json) as Readonly<Record<string, unknown>>;
  } catch {
    return {};
  }
}

/** The commands in a user's text, one a line. */
export function commandsIn(text: string): readonly DemoCommand[] {
  return text.split(/\r?\n/).flatMap((line) => {
    for (const { pattern, command } of commandForms) {
      const match = pattern.exec(line.trim());
      if (match !== null) return [command(match)];
    }
    return [];
  });
}

/** The command's arguments under the names that the tool's own schema gives them. */
export function fitArguments(tool: ToolDefinition, given: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const known = propertiesOf(tool);
  if (known.length === 0) return given;
  const nameOf = (name: string): string =>
    known.includes(name) ? name : (synonyms.find((names) => names.includes(name))?.find((other) => known.includes(other)) ?? name);
  return Object.fromEntries(Object.entries(given).map(([name, value]) => [nameOf(name), value]));
}

const objectIn = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {};

const propertiesOf = (tool: ToolDefinition): readonly string[] => Object.keys(objectIn(tool.parameters?.["properties"]));

/** Arguments for a tool that must be called though no line asks for it: what its schema requires, texts filled with `text`. */
export function sampleArguments(tool: ToolDefinition, text: string): Readonly<Record<string, unknown>> {
  const properties = objectIn(tool.parameters?.["properties"]);
  const required = tool.parameters?.["required"];
  return Object.fromEntries((Array.isArray(required) ? required : []).map((name) => [name, sampleValue(objectIn(properties[name]), text)]));
}

function sampleValue(schema: Readonly<Record<string, unknown>>, text: string): unknown {
  const choices = schema["enum"];
  if (Array.isArray(choices)) return choices[0];
  switch (schema["type"]) {
    case "integer":
    case "number":
      return 1;
    case "boolean":
      return true;
    case "array":
      return [];
    case "object":
      return {};
    default:
      return text;
  }
}

/** A message's text, whatever its shape. */
export function textOf(message: ChatMessage): string {
  if (typeof message.content === "string") return message.content;
  return (message.content ?? []).map((part) => (part.type === "text" ? part.text : `[${part.type}]`)).join("\n");
}
