import { parseArgs } from "node:util";
import { AppError } from "../domain/app-error.ts";

/** What a process does: `all` is gateway and worker in one. */
export type Role = "all" | "gateway" | "worker";

const roles: readonly string[] = ["all", "gateway", "worker"] satisfies Role[];

/** @throws {AppError} `invalid_request` for anything but `start [--role all|gateway|worker]` */
export function parseStartArguments(argv: readonly string[]): { readonly role: Role } {
  const usage = (message: string): AppError =>
    new AppError("invalid_request", { client: { message: `${message} Usage: start [--role all|gateway|worker]` } });
  try {
    const { values, positionals } = parseArgs({
      args: [...argv],
      options: { role: { type: "string", default: "all" } },
      allowPositionals: true,
    });
    if (positionals.length > 1 || (positionals[0] ?? "start") !== "start") throw usage("The only command here is start.");
    if (!roles.includes(values.role)) throw usage(`There is no role "${values.role}".`);
    return { role: values.role as Role };
  } catch (error) {
    throw error instanceof AppError ? error : usage(error instanceof Error ? error.message : String(error));
  }
}
