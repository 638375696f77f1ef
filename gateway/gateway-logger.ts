import type { FastifyBaseLogger } from "fastify";

/** A pino logger, or what stands for one in a test. */
export type GatewayLogger = FastifyBaseLogger;
