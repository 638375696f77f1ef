/**
 * Every error that the product can answer with. `type`, `http` and the code itself are contract §3; `retryable` tells whether
 * an activity that threw it is tried again by Temporal; `says` is what a client reads when the thrower gave no message of its own.
 */
export const errorCatalogue = {
  invalid_tenant_id: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The tenant id is malformed: 1 to 32 lower-case letters, digits and single inner hyphens.",
  },
  invalid_session_id: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The session id is malformed: expected <prefix>:<peer>:<scope>, for example api:jane:default.",
  },
  invalid_json: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The body is not valid JSON.",
  },
  invalid_request: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The request is not valid.",
  },
  unsupported_parameter: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "This parameter is not supported.",
  },
  model_not_priced: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The model has no price in the rate card.",
  },
  invalid_rate: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "A rate is a decimal of at most 6 places between 0 and 1,000,000.",
  },
  invalid_period: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The period is not one of today, yesterday, current-month, last-month, YYYY-MM or YYYY-MM-DD..YYYY-MM-DD.",
  },
  invalid_configuration: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The configuration is not valid.",
  },
  provider_refused: {
    type: "invalid_request_error",
    http: 400,
    retryable: false,
    says: "The model provider refused the request.",
  },
  invalid_api_key: {
    type: "invalid_request_error",
    http: 401,
    retryable: false,
    says: "The API key is missing or not valid.",
  },
  forbidden: {
    type: "forbidden",
    http: 403,
    retryable: false,
    says: "This credential may not do that.",
  },
  tenant_suspended: {
    type: "forbidden",
    http: 403,
    retryable: false,
    says: "The tenant is suspended.",
  },
  tenant_violation: {
    type: "forbidden",
    http: 403,
    retryable: false,
    says: "An operation crossed from one tenant to another and was refused.",
  },
  model_not_found: {
    type: "invalid_request_error",
    http: 404,
    retryable: false,
    says: "The model does not exist.",
  },
  not_found: {
    type: "invalid_request_error",
    http: 404,
    retryable: false,
    says: "There is nothing here.",
  },
  conflict: {
    type: "conflict",
    http: 409,
    retryable: false,
    says: "The request conflicts with what exists.",
  },
  idempotency_mismatch: {
    type: "conflict",
    http: 409,
    retryable: false,
    says: "This Idempotency-Key was used with another body.",
  },
  turn_aborted: {
    type: "conflict",
    http: 409,
    retryable: false,
    says: "The turn was aborted.",
  },
  request_too_large: {
    type: "invalid_request_error",
    http: 413,
    retryable: false,
    says: "The body is larger than 16 MiB.",
  },
  unsupported_media_type: {
    type: "invalid_request_error",
    http: 415,
    retryable: false,
    says: "The content type is not supported: send application/json.",
  },
  rate_limited: {
    type: "rate_limited",
    http: 429,
    retryable: false,
    says: "Too many failed authentications from this address.",
  },
  internal: {
    type: "internal_error",
    http: 500,
    retryable: true,
    says: "Something went wrong here.",
  },
  turn_limit: {
    type: "provider_error",
    http: 502,
    retryable: false,
    says: "The turn used up its model calls without coming to an answer.",
  },
  provider_error: {
    type: "provider_error",
    http: 502,
    retryable: false,
    says: "The model provider did not answer.",
  },
  provider_busy: {
    type: "unavailable",
    http: 503,
    retryable: false,
    says: "The model provider is busy.",
  },
  chain_broken: {
    type: "unavailable",
    http: 503,
    retryable: false,
    says: "The audit chain does not continue where it ended: changes are refused until an operator has looked (openclaw audit verify).",
  },
  unavailable: {
    type: "unavailable",
    http: 503,
    retryable: true,
    says: "The service is not available right now.",
  },
} as const;
