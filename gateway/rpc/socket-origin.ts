import type { FastifyRequest } from "fastify";
import { AppError } from "../../domain/app-error.ts";

/**
 * Browsers name the page that opens a WebSocket, and send nothing that the page's script could not forge elsewhere: a page of
 * another origin is refused. Programs name none.
 * @throws {AppError} `forbidden`
 */
export function checkSocketOrigin({ headers }: Pick<FastifyRequest, "headers">): void {
  const { origin, host } = headers;
  const isLetIn = origin === undefined || (host !== undefined && hostOf(origin) === host.toLowerCase());
  if (!isLetIn) throw new AppError("forbidden", { client: { message: "This page may not open a WebSocket here.", param: "Origin" } });
}

/** Undefined for `null` and anything else that is no http origin. */
function hostOf(origin: string): string | undefined {
  const url = URL.parse(origin);
  return url !== null && (url.protocol === "http:" || url.protocol === "https:") && url.origin === origin ? url.host : undefined;
}
