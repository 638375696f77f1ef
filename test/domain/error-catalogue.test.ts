import { expect, test } from "vitest";
import { AppError, type ErrorCode, fromStoredError, toStoredError } from "../../domain/app-error.ts";
import { errorCatalogue } from "../../domain/error-catalogue.ts";

/** Contract §3: the codes that the table names, with the status and the type that it gives them. */
const contract: readonly (readonly [ErrorCode, number, string])[] = [
  ["invalid_json", 400, "invalid_request_error"],
  ["unsupported_parameter", 400, "invalid_request_error"],
  ["model_not_priced", 400, "invalid_request_error"],
  ["invalid_session_id", 400, "invalid_request_error"],
  ["provider_refused", 400, "invalid_request_error"],
  ["invalid_api_key", 401, "invalid_request_error"],
  ["forbidden", 403, "forbidden"],
  ["tenant_suspended", 403, "forbidden"],
  ["model_not_found", 404, "invalid_request_error"],
  ["not_found", 404, "invalid_request_error"],
  ["conflict", 409, "conflict"],
  ["idempotency_mismatch", 409, "conflict"],
  ["request_too_large", 413, "invalid_request_error"],
  ["unsupported_media_type", 415, "invalid_request_error"],
  ["overlay_refused", 422, "invalid_request_error"],
  ["rate_limited", 429, "rate_limited"],
  ["provider_error", 502, "provider_error"],
  ["unavailable", 503, "unavailable"],
  ["provider_busy", 503, "unavailable"],
];

test.each(contract)("%s answers %i, type %s", (code, http, type) => {
  expect(errorCatalogue[code]).toMatchObject({ http, type });
});

/** The types that the table allows for a status; 500 is not in the table, and must not look like the provider's or the caller's fault. */
const typesOf: Readonly<Record<number, readonly string[]>> = {
  400: ["invalid_request_error"],
  401: ["invalid_request_error"],
  403: ["forbidden"],
  404: ["invalid_request_error"],
  409: ["conflict"],
  413: ["invalid_request_error"],
  415: ["invalid_request_error"],
  422: ["invalid_request_error"],
  429: ["quota_exceeded", "rate_limited"],
  500: ["internal_error"],
  502: ["provider_error"],
  503: ["unavailable"],
};

test.each(Object.entries(errorCatalogue))(
  "%s keeps to the table's rows, and speaks to a client in a sentence",
  (_code, { http, type, says }) => {
    expect(typesOf[http]).toContain(type);
    expect(says).toMatch(/^[A-Z].*\.$/);
  },
);

test("what the caller got wrong is never tried again", () => {
  const retried = Object.entries(errorCatalogue).filter(([, { retryable }]) => retryable);

  expect(retried.map(([code]) => code).sort()).toEqual(["internal", "unavailable"]);
});

test("an error survives its turn's row: code, sentence, parameter and when to come back, but no details for logs", () => {
  const error = new AppError("provider_busy", {
    client: { message: "Come back.", param: "model", retryAfterSeconds: 7 },
    secret: "/srv/openclaw",
  });

  const stored = JSON.parse(JSON.stringify(toStoredError(error)));

  expect(stored).toEqual({ code: "provider_busy", message: "Come back.", param: "model", retryAfterSeconds: 7 });
  expect(fromStoredError(stored)).toMatchObject({
    code: "provider_busy",
    message: "Come back.",
    client: { param: "model", retryAfterSeconds: 7 },
  });
  expect(toStoredError(new AppError("internal"))).toEqual({ code: "internal", message: errorCatalogue.internal.says });
});
