import { AppError } from "../domain/app-error.ts";

const invalid = (name: string, key: string, why: string): AppError =>
  new AppError("invalid_configuration", { client: { message: `The provider '${name}' ${why}.`, param: `providers.${name}.${key}` } });

/**
 * A base address without a trailing slash. Any http(s) address will do; one that holds a user or password will not, since fetch
 * refuses it and says it aloud.
 * @throws {AppError} `invalid_configuration`; the address itself is not repeated
 */
export function parseBaseUrl(name: string, raw: string | undefined, fallback: string | undefined): string {
  const text = raw ?? fallback;
  if (text === undefined) throw invalid(name, "base_url", "needs a base_url");
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol))
    throw invalid(name, "base_url", "needs an http or https address as its base_url");
  if (url.username !== "" || url.password !== "")
    throw invalid(name, "base_url", "must not have a user or password in its base_url; use api_key_env");
  return text.replace(/\/+$/, "");
}

/**
 * A key as it can stand in a header; blanks around it, such as the line end of a file, are dropped.
 * @throws {AppError} `invalid_configuration`; the key itself is not repeated
 */
export function parseApiKey(name: string, raw: string | undefined, { needed }: { readonly needed: boolean }): string | undefined {
  const key = raw?.trim() || undefined;
  if (key === undefined && needed) throw invalid(name, "api_key_env", "has no API key");
  if (key !== undefined && !/^[\x21-\x7e]+$/.test(key))
    throw invalid(name, "api_key_env", "has an API key that cannot stand in an HTTP header");
  return key;
}
