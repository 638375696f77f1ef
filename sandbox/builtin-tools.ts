import type { SandboxDriver } from "./sandbox-driver.ts";
import type { Tool } from "./tool.ts";
import { createEditTool } from "./tools/edit-tool.ts";
import { createExecTool } from "./tools/exec-tool.ts";
import { createListTool } from "./tools/list-tool.ts";
import { createReadTool } from "./tools/read-tool.ts";
import { createWriteTool } from "./tools/write-tool.ts";

/** The tools that every agent has, by name. All of them act inside the sandbox, the file tools too: it is the only boundary. */
export function createBuiltinTools(deps: { readonly driver: SandboxDriver }): ReadonlyMap<string, Tool> {
  const tools = [createExecTool(deps), createReadTool(deps), createWriteTool(deps), createEditTool(deps), createListTool(deps)];
  return new Map(tools.map((tool) => [tool.definition.name, tool]));
}
