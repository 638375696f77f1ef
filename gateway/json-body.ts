import type { FastifyInstance, FastifyRequest } from "fastify";
import { AppError } from "../domain/app-error.ts";
import { jsonShapeFault } from "./json-shape.ts";

type Done = (error: Error | null, body?: unknown) => void;

/**
 * Reads a JSON body whose shape is bounded, and which names no prototype. A route that takes no body is content with an empty one: the
 * official client for Python gives a content type to every call.
 */
export function jsonParserOf(app: FastifyInstance): (request: FastifyRequest, body: string | Buffer, done: Done) => void {
  const parse = app.getDefaultJsonParser("error", "error");
  return (request, body, done) => {
    const text = body.toString();
    const { describes } = request.routeOptions.config;
    if (text === "" && describes !== undefined && describes.body === undefined) return done(null, undefined);
    const fault = jsonShapeFault(text);
    if (fault === undefined) void parse(request, text, done);
    else done(new AppError("invalid_json", { client: { message: fault } }));
  };
}
