/*
 * The last resort: whoever logs should not log secrets, and what slips through is taken out here by its shape. A log is also read in
 * terminals and by other programs, so no control character gets there, and no entry is larger than what one is for.
 */

/** Our own credentials keep their owner's name: who used what is worth knowing. */
const ownCredential = /\b(tk_[a-z0-9-]{1,32}|ak_[a-z0-9]{1,16})_[0-9a-fA-F]{32}\b/g;

const secrets: readonly RegExp[] = [
  /-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[^]*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|$)/g,
  /\bAGE-SECRET-KEY-1[A-Z0-9]{20,}/g,
  /(?<=\b(?:[Bb]earer|BEARER|[Bb]asic)\s+)[A-Za-z0-9._~+/=-]{8,}/g,
  // Providers and platforms: OpenAI, Anthropic, Groq, xAI, Google, GitHub, Slack, AWS.
  /\b(?:sk|rk|pk)-[A-Za-z0-9_-]{16,}/g,
  /\b(?:gsk_|xai-)[A-Za-z0-9]{20,}/g,
  /\bAIza[A-Za-z0-9_-]{30,}/g,
  /\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})/g,
  /\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}/g,
  /\b(?:AKIA|ASIA)[A-Z0-9]{16}\b/g,
  // Bots: Telegram, Discord. Signed tokens of any issuer.
  /\b\d{6,12}:[A-Za-z0-9_-]{30,}/g,
  /\b[A-Za-z0-9_-]{23,30}\.[A-Za-z0-9_-]{6,7}\.[A-Za-z0-9_-]{27,}/g,
  /\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*/g,
  // A password in a URL.
  /(?<=:\/\/[^:@/\s]{0,256}:)[^@/\s]+(?=@)/g,
];

/** Fields whose value is a secret whatever it looks like. */
const secretField = /^(?:authorization|proxy-authorization|cookie|set-cookie|password|passphrase|secret|token|api[-_]?key|x-api-key)$/i;

const maxTextBytes = 8 * 1024;
/** Looked through before it is cut, so that a secret is not cut in two and its first half kept. */
const lookedAtCharacters = 8 * maxTextBytes;
const maxEntries = 100;
const maxDepth = 8;

/** Colours, cursor movements and titles of terminals, whole: what would be left of one could hide where a secret begins. */
// oxlint-disable-next-line no-control-regex
const terminalSequences = /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]|(?:\u001b\]|\u009d)[^\u0007\u001b\u009c]*(?:\u0007|\u001b\\|\u009c)/g;

/** Tab and line feed stay: they are escaped in JSON, and stack traces have them. */
// oxlint-disable-next-line no-control-regex
const controls = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

export function scrubText(text: string): string {
  let scrubbed = text
    .slice(0, lookedAtCharacters)
    .replaceAll(terminalSequences, "")
    .replaceAll(controls, " ")
    .replaceAll(ownCredential, "$1_…");
  for (const secret of secrets) scrubbed = scrubbed.replaceAll(secret, "[redacted]");
  const bytes = Buffer.from(scrubbed);
  if (bytes.length <= maxTextBytes && text.length <= lookedAtCharacters) return scrubbed;
  return `${new TextDecoder().decode(bytes.subarray(0, maxTextBytes - 16)).replace(/\ufffd+$/, "")}… [cut]`;
}

/** One line of the log, which is JSON, with every text in it scrubbed; keys too. */
export function scrubLine(line: string): string {
  try {
    return `${JSON.stringify(scrubValue(JSON.parse(line), 0))}\n`;
  } catch {
    return `${JSON.stringify({ msg: scrubText(line) })}\n`;
  }
}

function scrubValue(value: unknown, depth: number): unknown {
  if (typeof value === "string") return scrubText(value);
  if (value === null || typeof value !== "object") return value;
  if (depth >= maxDepth) return "[deeper]";
  if (Array.isArray(value)) return value.slice(0, maxEntries).map((entry) => scrubValue(entry, depth + 1));
  return Object.fromEntries(
    Object.entries(value)
      .slice(0, maxEntries)
      .map(([key, entry]) => [
        scrubText(key),
        secretField.test(key) && typeof entry === "string" && entry !== "" ? scrubField(entry) : scrubValue(entry, depth + 1),
      ]),
  );
}

/** The name of one of our credentials may stay. */
const scrubField = (text: string): string => {
  const scrubbed = scrubText(text);
  return /^(?:tk_[a-z0-9-]+|ak_[a-z0-9]+)_…$/.test(scrubbed) ? scrubbed : "[redacted]";
};
