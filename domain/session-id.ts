import { AppError } from "./app-error.ts";
import type { Branded } from "./branded.ts";
import type { TurnId } from "./turn-id.ts";

/** `<prefix>:<peer>:<scope>`; means something inside its tenant only. */
export type SessionId = Branded<string, "SessionId">;

/** Channel prefixes of contract §1, with the word that search attributes and logs use. */
export const channelPrefixes = {
  wa: "whatsapp",
  tg: "telegram",
  sl: "slack",
  dc: "discord",
  sg: "signal",
  im: "imessage",
  ms: "teams",
  mx: "matrix",
  ln: "line",
  lk: "lark",
  gc: "google-chat",
  web: "web",
  api: "api",
  cron: "cron",
} as const;
export type ChannelPrefix = keyof typeof channelPrefixes;

const peerMaxBytes = 200;
const scopePart = String.raw`(?:[A-Za-z0-9+._@-]|%[0-9A-F]{2})+`;
const sessionIdPattern = new RegExp(
  String.raw`^(${Object.keys(channelPrefixes).join("|")}):((?:[A-Za-z0-9+._@-]|%[0-9A-F]{2})+):(default|g\.${scopePart}(?:\.t\.${scopePart})?)$`,
);

export type SessionParts = { readonly prefix: ChannelPrefix; readonly peer: string; readonly scope: string };

/** The three parts of a session id, or undefined when it is malformed. */
function matchSessionId(raw: string): SessionParts | undefined {
  if (raw.length > 1000) return undefined;
  const [, prefix, peer, scope] = sessionIdPattern.exec(raw) ?? [];
  if (prefix === undefined || peer === undefined || scope === undefined) return undefined;
  if (peer.length > peerMaxBytes || scope.length > 2 * peerMaxBytes) return undefined;
  return { prefix: prefix as ChannelPrefix, peer, scope };
}

/** @throws {AppError} `invalid_session_id` unless `raw` has the form of contract §1. */
export function parseSessionId(raw: string): SessionId {
  if (matchSessionId(raw) === undefined) throw new AppError("invalid_session_id", { raw: raw.slice(0, 64) });
  return raw as SessionId;
}

/** @throws {AppError} `invalid_session_id` for text that was never parsed. */
export function sessionPartsOf(sessionId: SessionId): SessionParts {
  const parts = matchSessionId(sessionId);
  if (parts === undefined) throw new AppError("invalid_session_id", {});
  return parts;
}

/**
 * A peer as it stands in a session id: bytes outside `[A-Za-z0-9+._@-]` are percent-encoded.
 * @throws {AppError} `invalid_session_id` when it is empty or longer than 200 bytes encoded.
 */
export function encodePeer(peer: string): string {
  const bytes = new TextEncoder().encode(peer);
  let encoded = "";
  for (const byte of bytes) {
    const character = String.fromCharCode(byte);
    encoded += /[A-Za-z0-9+._@-]/.test(character) ? character : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  if (encoded.length === 0 || encoded.length > peerMaxBytes) throw new AppError("invalid_session_id", { bytes: encoded.length });
  return encoded;
}

/** The session of a call that continues nothing. */
export const statelessSessionOf = (turnId: TurnId): SessionId => `api:${turnId}:default` as SessionId;
