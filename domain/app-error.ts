import { errorCatalogue } from "./error-catalogue.ts";

export type ErrorCode = keyof typeof errorCatalogue;

/** What a client may read beside the code: a better sentence, the parameter at fault, when to come back. */
export type ClientDetails = {
  readonly message?: string;
  /** The parameter or key path at fault (`error.param`). */
  readonly param?: string;
  /** Whole seconds for `Retry-After`. */
  readonly retryAfterSeconds?: number;
};

/** The one error that is thrown on purpose; its code is looked up in the catalogue at the edge. */
export class AppError extends Error {
  override readonly name = "AppError";
  readonly code: ErrorCode;
  readonly client: ClientDetails;
  /** For logs; never sent to a client. */
  readonly details: Record<string, unknown>;

  constructor(code: ErrorCode, details: Record<string, unknown> & { client?: ClientDetails } = {}, options?: ErrorOptions) {
    const { client = {}, ...rest } = details;
    super(client.message ?? errorCatalogue[code].says, options);
    this.code = code;
    this.client = client;
    this.details = rest;
  }
}

/** An error as it is stored in a turn's row and carried to whoever waits for it. */
export type StoredError = {
  readonly code: ErrorCode;
  readonly message: string;
  /** The turn was refused before its first model call: it does not count as a request. */
  readonly isRefusal?: true;
} & Pick<ClientDetails, "param" | "retryAfterSeconds">;

export const toStoredError = (error: AppError): StoredError => ({
  code: error.code,
  message: error.message,
  ...(error.client.param === undefined ? {} : { param: error.client.param }),
  ...(error.client.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: error.client.retryAfterSeconds }),
});

export const fromStoredError = ({ code, message, param, retryAfterSeconds }: StoredError): AppError =>
  new AppError(code, {
    client: { message, ...(param === undefined ? {} : { param }), ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }) },
  });
