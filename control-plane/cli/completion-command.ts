import { Argument, type Command } from "commander";
import type { CliContext } from "./cli-context.ts";

type Words = { readonly path: string; readonly words: readonly string[] };

export function addCompletionCommand(program: Command, { terminal }: CliContext): void {
  program
    .command("completion")
    .description('print a completion script: eval "$(openclaw completion bash)"')
    .addArgument(new Argument("<shell>", "which shell").choices(["bash", "zsh"]))
    .action(async (shell: "bash" | "zsh") => terminal.write(shell === "bash" ? bashScript(program) : zshScript(program)));
}

/** What may follow each command, read off the program itself, so that it cannot promise a command that is not there. */
function wordsOf(command: Command, path = ""): readonly Words[] {
  const options = command.options.flatMap(({ long }) => (long == null ? [] : [long]));
  const own = { path, words: [...command.commands.map((child) => child.name()), ...options, "--help"] };
  return [own, ...command.commands.flatMap((child) => wordsOf(child, `${path} ${child.name()}`.trim()))];
}

/** The commands among the words typed so far, without options and their values. */
function caseLines(program: Command): string {
  return wordsOf(program)
    .map(({ path, words }) => `    "${path}") candidates="${words.join(" ")}" ;;`)
    .join("\n");
}

const knownPaths = (program: Command): string =>
  wordsOf(program)
    .flatMap(({ path }) => (path === "" ? [] : [`"${path}"`]))
    .join("|");

const bashScript = (program: Command): string => `# openclaw completion for bash
_openclaw() {
  local candidates="" path="" word
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "\${path:+$path }$word" in
      ${knownPaths(program)}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$path" in
${caseLines(program)}
  esac
  COMPREPLY=($(compgen -W "$candidates" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _openclaw openclaw
`;

const zshScript = (program: Command): string => `#compdef openclaw
# openclaw completion for zsh
_openclaw() {
  local candidates="" path="" word
  for word in "\${(@)words[2,CURRENT-1]}"; do
    case "\${path:+$path }$word" in
      ${knownPaths(program)}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$path" in
${caseLines(program)}
  esac
  compadd -- \${=candidates}
}
compdef _openclaw openclaw
`;
