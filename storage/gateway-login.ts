import { createHash, createHmac, pbkdf2Sync } from "node:crypto";

/** The role as which every process works: it may log in, inherits nothing and owns nothing. */
export const gatewayRole = "openclaw_gateway";

/**
 * URL of the gateway's login on the owner's database. Its password follows from the owner's, so that every process with the
 * same DATABASE_URL has the same and none is stored.
 * @throws {Error} when the owner's URL has no password.
 */
export function gatewayUrlOf(ownerUrl: string): string {
  const url = new URL(ownerUrl);
  if (url.password === "") {
    throw new Error("DATABASE_URL must hold the owner's password: the password of the role openclaw_gateway is derived from it");
  }
  url.password = createHmac("sha256", decodeURIComponent(url.password)).update("openclaw_gateway login, version 1").digest("hex");
  url.username = gatewayRole;
  return url.href;
}

/** The SCRAM verifier that the server stores (RFC 5803), made here so that no password is ever part of a statement. */
export function scramVerifierOf(password: string): string {
  const iterations = 4096;
  const salt = createHash("sha256").update(`salt of ${gatewayRole}`).update(password).digest().subarray(0, 16);
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const hmac = (label: string): Buffer => createHmac("sha256", salted).update(label).digest();
  const storedKey = createHash("sha256").update(hmac("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${iterations}:${salt.toString("base64")}$${storedKey}:${hmac("Server Key").toString("base64")}`;
}
