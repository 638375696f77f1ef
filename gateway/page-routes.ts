import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from "fastify";

/** Scripts and styles come from files of ours only, markup is never made from text, and nobody may frame the page. */
const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "frame-ancestors 'none'",
  "base-uri 'none'",
  "form-action 'self'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

/** Of every page, and of what it loads. */
export const pageHeaders = {
  "content-security-policy": contentSecurityPolicy,
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), geolocation=(), microphone=()",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  // Names carry no version, so a browser asks each time; the answer is a 304 of a few bytes.
  "cache-control": "no-cache",
} as const;

const contentTypes = {
  html: "text/html; charset=utf-8",
  css: "text/css; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  svg: "image/svg+xml",
} as const;

/** Every file that is served, by its path. A file that is not here does not exist for the outside. */
const pages: Readonly<Record<string, { readonly file: string; readonly type: keyof typeof contentTypes }>> = {
  "/admin": { file: "admin.html", type: "html" },
  "/admin.js": { file: "admin.js", type: "js" },
  "/chat": { file: "chat.html", type: "html" },
  "/chat.css": { file: "chat.css", type: "css" },
  "/chat.js": { file: "chat.js", type: "js" },
  "/answer-view.js": { file: "answer-view.js", type: "js" },
  "/chat-errors.js": { file: "chat-errors.js", type: "js" },
  "/chat-store.js": { file: "chat-store.js", type: "js" },
  "/gateway-client.js": { file: "gateway-client.js", type: "js" },
  "/markdown.js": { file: "markdown.js", type: "js" },
  "/markdown-view.js": { file: "markdown-view.js", type: "js" },
  "/sse.js": { file: "sse.js", type: "js" },
  "/favicon.svg": { file: "favicon.svg", type: "svg" },
};

/** The WebChat page, the administrators' login and what they load, from memory. No route here needs a credential: the pages ask for one. */
const describes = { summary: "A page, or what it loads" };

export const createPageRoutes = (): FastifyPluginAsync => {
  const folder = new URL("../control-plane/web/", import.meta.url);
  const served = Object.entries(pages).map(([path, { file, type }]) => {
    const body = readFileSync(new URL(file, folder));
    const etag = `"${createHash("sha256").update(body).digest("base64url").slice(0, 27)}"`;
    return { path, body, headers: { ...pageHeaders, "content-type": contentTypes[type], etag } };
  });

  return async (app) => {
    app.get("/", { config: { access: "public", describes } }, (_request, reply) => reply.headers(pageHeaders).redirect("/chat", 302));
    for (const { path, body, headers } of served) {
      app.get(path, { config: { access: "public", describes } }, (request, reply) => sendFile(request, reply, { body, headers }));
    }
  };
};

type ServedFile = { readonly body: Buffer; readonly headers: Readonly<Record<string, string>> & { readonly etag: string } };

function sendFile(request: FastifyRequest, reply: FastifyReply, { body, headers }: ServedFile): FastifyReply {
  reply.headers(headers);
  const known = (request.headers["if-none-match"] ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  return known.includes(headers.etag) ? reply.code(304).send() : reply.send(body);
}
