import { z } from "zod";
import { errorCatalogue } from "../../domain/error-catalogue.ts";
import { parseSessionId, type SessionId } from "../../domain/session-id.ts";
import { parseTurnId, type TurnId } from "../../domain/turn-id.ts";

/** What several methods take, parsed into the types of the domain. */

const parsedBy = <T>(parse: (raw: string) => T, message: string) =>
  z.string().transform((raw, context): T => {
    try {
      return parse(raw);
    } catch {
      context.addIssue({ code: "custom", message });
      return z.NEVER;
    }
  });

export const sessionIdParam = parsedBy<SessionId>(parseSessionId, errorCatalogue.invalid_session_id.says);
export const turnIdParam = parsedBy<TurnId>(parseTurnId, "The turn id is malformed.");
export const limitParam = z.int().min(1).max(200).default(50);
export const instantParam = z.iso.datetime({ offset: true }).transform((text) => new Date(text));
