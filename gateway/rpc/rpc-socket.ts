import type { WebSocket } from "@fastify/websocket";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import { type Authentication, type TenantPrincipal, requireTenant } from "../../control-plane/authentication.ts";
import { bearerOf } from "../../control-plane/credentials.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantId } from "../../domain/tenant.ts";
import type { TokenWatch } from "../token-watch.ts";
import { closeCodes } from "../web-sockets.ts";
import type { RpcEndpoint } from "./rpc-endpoint.ts";
import { rpcErrorOf } from "./rpc-error.ts";
import { announceTurn, type StartedTurn } from "./turn-notifications.ts";

export type RpcSocketDeps = {
  readonly endpoint: RpcEndpoint;
  readonly authenticateCredential: Authentication["authenticateCredential"];
  readonly tokens: TokenWatch;
  readonly limits?: Partial<typeof socketLimits>;
};

const socketLimits = {
  /** For the first frame, where no bearer header came. */
  authenticationMs: 3_000,
  /** Between pings; a client that has not answered one by the next is gone. */
  pingMs: 30_000,
  /** What may wait for a client that reads slowly; more closes its socket. */
  waitingBytes: 16 * 1024 * 1024,
  /** Frames of one socket that are worked on at once; the rest waits, and with it the client's sending. */
  framesAtOnce: 8,
  /** Open sockets of one tenant in this process. */
  perTenant: 64,
  /** Sockets in this process that have not said who they are. */
  unauthenticated: 256,
};

const authFrame = z.strictObject({ type: z.literal("auth"), token: z.string() });

/** JSON-RPC 2.0 over a WebSocket: text frames are messages, and the turns that they began are told of (contract §3). */
export const createRpcSocketRoutes =
  ({ endpoint, authenticateCredential, tokens, limits: given }: RpcSocketDeps): FastifyPluginAsync =>
  async (app) => {
    const limits = { ...socketLimits, ...given };
    const openSockets = new Map<TenantId, number>();
    let unauthenticated = 0;

    app.route({
      method: "GET",
      url: "/rpc",
      config: { access: "public", describes: { summary: "JSON-RPC 2.0 over a WebSocket" } }, // who it is stands in the header or in the first frame
      handler: async () => {
        throw new AppError("not_found", { client: { message: "GET /rpc is a WebSocket; calls over HTTP are POSTed." } });
      },
      wsHandler: serve,
    });

    /** @throws {AppError} for a credential that does not let anybody in, also when it did earlier */
    async function admit(credential: string | undefined, address: string): Promise<TenantPrincipal> {
      try {
        return requireTenant(await authenticateCredential(credential));
      } catch (error) {
        throw error instanceof AppError && error.code === "invalid_api_key" ? app.failedAuthentications.refuse(address, error) : error;
      }
    }

    function serve(socket: WebSocket, request: FastifyRequest): void {
      const isOpen = (): boolean => socket.readyState === socket.OPEN;
      const waiting: string[] = [];
      let credential = request.headers.authorization === undefined ? undefined : (bearerOf(request.headers.authorization) ?? "");
      let tenant: TenantPrincipal | undefined;
      let atWork = 0;
      let frames = 0;
      let isAlive = true;

      /** Nothing that came with a token that is none any more is worked on or answered. */
      const refuse = (): void => {
        waiting.length = 0;
        socket.resume(); // or the client's part of the closing would wait, too
        socket.close(closeCodes.unauthorized, "invalid_api_key");
      };

      const send = (text: string): void => {
        if (!isOpen()) return;
        if (socket.bufferedAmount > limits.waitingBytes) socket.terminate();
        else socket.send(text);
      };

      const authenticate = async (): Promise<void> => {
        try {
          const principal = await admit(credential, request.ip);
          if (!isOpen()) return;
          const open = openSockets.get(principal.tenantId) ?? 0;
          if (open >= limits.perTenant) return socket.close(closeCodes.tryAgainLater, "too many sockets");
          openSockets.set(principal.tenantId, open + 1);
          const watched = tokens.watch(principal);
          watched.ended.catch(refuse);
          socket.once("close", () => {
            watched.stop();
            const left = (openSockets.get(principal.tenantId) ?? 1) - 1;
            if (left === 0) openSockets.delete(principal.tenantId);
            else openSockets.set(principal.tenantId, left);
          });
          tenant = principal;
          settle();
          work();
        } catch (error) {
          if (error instanceof AppError && error.code === "unavailable") socket.close(closeCodes.tryAgainLater, "unavailable");
          else refuse();
        }
      };

      /** Whether the token still is what the socket was opened with; answers the frame itself where that cannot be told. */
      const isStillAdmitted = async ({ tokenEpoch }: TenantPrincipal): Promise<boolean> => {
        try {
          if ((await admit(credential, request.ip)).tokenEpoch === tokenEpoch) return true;
          refuse();
        } catch (error) {
          if (error instanceof AppError && error.code === "unavailable") {
            send(JSON.stringify({ jsonrpc: "2.0", id: null, error: rpcErrorOf(error) }));
          } else refuse();
        }
        return false;
      };

      const answerFrame = async (text: string, principal: TenantPrincipal): Promise<void> => {
        const requestId = `${request.id}.${++frames}`;
        if (!(await isStillAdmitted(principal)) || !isOpen()) return;
        const started: StartedTurn[] = [];
        const answer = await endpoint.answer(text, {
          context: { tenantId: principal.tenantId, requestId },
          actor: { type: "tenant", id: principal.tokenHashPrefix },
          isSuspended: false,
          idempotencyKey: undefined,
          followTurn: (sessionId, turn) => void started.push({ sessionId, turn }),
        });
        if (answer !== undefined) send(answer);
        for (const turn of started) announceTurn(turn, (notification) => send(JSON.stringify(notification)), socket);
      };

      /** Takes waiting frames up; while some wait, the client's sending does. */
      const work = (): void => {
        while (tenant !== undefined && atWork < limits.framesAtOnce && isOpen()) {
          const text = waiting.shift();
          if (text === undefined) break;
          atWork++;
          answerFrame(text, tenant)
            .catch((error: unknown) => {
              request.log.error({ err: error, requestId: request.id }, "a frame was not answered");
              socket.close(closeCodes.internal, "internal");
            })
            .finally(() => {
              atWork--;
              work();
            });
        }
        if (waiting.length === 0) socket.resume();
        else socket.pause();
      };

      socket.on("message", (data, isBinary) => {
        if (!isOpen()) return;
        if (isBinary) return socket.close(closeCodes.unsupportedData, "text frames only");
        const text = (data as Buffer).toString(); // text frames come whole
        if (credential === undefined) {
          credential = tokenOf(text);
          if (credential === undefined) refuse();
          else void authenticate();
          return;
        }
        waiting.push(text);
        work();
      });

      const authenticationTimer = setTimeout(refuse, limits.authenticationMs);
      let isSettled = false;
      /** It is known who this is, or the socket is gone. */
      function settle(): void {
        if (isSettled) return;
        isSettled = true;
        unauthenticated--;
        clearTimeout(authenticationTimer);
      }
      const pingTimer = setInterval(() => {
        if (!isAlive) return socket.terminate();
        isAlive = false;
        socket.ping();
      }, limits.pingMs);
      socket.on("pong", () => (isAlive = true));
      socket.once("close", () => {
        waiting.length = 0;
        clearInterval(pingTimer);
        settle();
      });

      unauthenticated++;
      if (unauthenticated > limits.unauthenticated) socket.close(closeCodes.tryAgainLater, "too many sockets");
      else if (credential !== undefined) void authenticate();
    }
  };

function tokenOf(text: string): string | undefined {
  try {
    return authFrame.parse(JSON.parse(text)).token;
  } catch {
    return undefined;
  }
}
