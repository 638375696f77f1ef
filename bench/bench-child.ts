import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

export type BenchChild = {
  readonly pid: number;
  /** The first line that it printed. */
  readonly line: string;
  stop(): void;
};

/** Starts one of our own programs in `bench/`; it ends when our end of its channel does. */
export async function startChild(name: string, args: readonly string[] = []): Promise<BenchChild> {
  const child = spawn(process.execPath, [fileURLToPath(new URL(name, import.meta.url)), ...args], {
    stdio: ["ignore", "pipe", "inherit", "ipc"],
  });
  const line = await new Promise<string>((resolve, reject) => {
    let text = "";
    child.stdout?.on("data", (piece: Buffer) => {
      text += piece.toString();
      if (text.includes("\n")) resolve(text.trim());
    });
    child.once("exit", (code) => reject(new Error(`${name} ended with ${code}`)));
  });
  return { pid: child.pid ?? 0, line, stop: () => void (child.connected && child.disconnect()) };
}
