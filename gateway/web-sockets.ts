import { setTimeout as delay } from "node:timers/promises";
import websocket, { type WebSocket } from "@fastify/websocket";
import type { FastifyInstance } from "fastify";

/** Why the server ends a WebSocket. 4401 is contract §3's; the others are RFC 6455's. */
export const closeCodes = { unauthorized: 4_401, goingAway: 1_001, unsupportedData: 1_003, internal: 1_011, tryAgainLater: 1_013 };

/** The largest frame, put together from its fragments, that a client may send; a larger one closes its socket with 1009. */
const largestFrameBytes = 1024 * 1024;
/** How long a client may take to answer a close frame. */
const closeMs = 2_000;
const drainMs = 500;

/** Lets routes take WebSockets with `wsHandler`. Upgrades go through the same hooks and errors as every other request. */
export async function registerWebSockets(app: FastifyInstance): Promise<void> {
  const options = { maxPayload: largestFrameBytes, perMessageDeflate: false, closeTimeout: closeMs };
  await app.register(websocket, {
    options,
    errorHandler(error, socket, request) {
      if ("code" in error && String(error.code).startsWith("WS_ERR_")) return; // the client's fault: closed with the fitting code
      request.log.error({ err: error }, "a WebSocket failed");
      socket.terminate();
    },
    preClose: async () => await closeAll(app.websocketServer.clients),
  });
}

async function closeAll(sockets: Set<WebSocket>): Promise<void> {
  for (const socket of sockets) socket.close(closeCodes.goingAway);
  const deadlineMs = performance.now() + drainMs;
  while (sockets.size > 0 && performance.now() < deadlineMs) await delay(10);
  for (const socket of sockets) socket.terminate();
}
