import { createWriteStream } from "node:fs";
import { get as getHttp } from "node:http";
import { get as getHttps } from "node:https";
import { pipeline } from "node:stream/promises";

/** How long nothing may arrive before we give up; a locked-down network then costs little. */
const silenceMs = 8000;
const maxRedirects = 5;

/**
 * Opens a URL for reading; redirects are followed. Plain http is for loopback only.
 * @param {URL} url
 * @param {number} [redirects]
 * @returns {Promise<import("node:http").IncomingMessage>}
 */
function open(url, redirects = maxRedirects) {
  return new Promise((resolve, reject) => {
    const isLoopback = ["127.0.0.1", "localhost", "[::1]"].includes(url.hostname);
    if (url.protocol !== "https:" && !isLoopback) throw new Error(`${url.origin} is not https`);
    const request = (url.protocol === "https:" ? getHttps : getHttp)(url, (response) => {
      const { statusCode = 0, headers } = response;
      if (statusCode >= 300 && statusCode < 400 && headers.location !== undefined && redirects > 0) {
        response.resume();
        resolve(open(new URL(headers.location, url), redirects - 1));
      } else if (statusCode === 200) {
        resolve(response);
      } else {
        response.resume();
        reject(new Error(`${url.host} answered ${statusCode}`));
      }
    });
    request.setTimeout(silenceMs, () => request.destroy(new Error(`${url.host} does not answer`)));
    request.on("error", reject);
  });
}

/** @param {URL} url @returns {Promise<unknown>} */
export async function fetchJson(url) {
  const chunks = [];
  for await (const chunk of await open(url)) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString("utf8"));
}

/**
 * @param {URL} url
 * @param {string} file
 * @param {(sizeBytes: number, ofBytes: number | undefined) => void} onProgress
 */
export async function downloadTo(url, file, onProgress) {
  const response = await open(url);
  const length = Number(response.headers["content-length"]);
  const ofBytes = Number.isSafeInteger(length) && length > 0 ? length : undefined;
  let sizeBytes = 0;
  response.on("data", (chunk) => onProgress((sizeBytes += chunk.length), ofBytes));
  await pipeline(response, createWriteStream(file));
  if (ofBytes !== undefined && sizeBytes !== ofBytes) throw new Error(`${url.host} sent ${sizeBytes} of ${ofBytes} bytes`);
}
