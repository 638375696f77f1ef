import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type ChannelPrefix,
  channelPrefixes,
  encodePeer,
  parseSessionId,
  sessionPartsOf,
  statelessSessionOf,
} from "../../domain/session-id.ts";
import { mintTurnId } from "../../domain/turn-id.ts";

const invalid = expect.objectContaining({ code: "invalid_session_id" });

describe("a session id", () => {
  test("knows the contract's fourteen prefixes and no other", () => {
    expect(Object.keys(channelPrefixes).join(" ")).toBe("wa tg sl dc sg im ms mx ln lk gc web api cron");
    for (const prefix of Object.keys(channelPrefixes)) expect(parseSessionId(`${prefix}:jane:default`)).toBe(`${prefix}:jane:default`);
  });

  test.each([
    ["wa:+15551234567:default", { prefix: "wa", peer: "+15551234567", scope: "default" }],
    ["sl:T024BE7LD+U2147483697:default", { prefix: "sl", peer: "T024BE7LD+U2147483697", scope: "default" }],
    ["mx:@jane%3Aexample.org:default", { prefix: "mx", peer: "@jane%3Aexample.org", scope: "default" }],
    ["tg:42:g.-100123", { prefix: "tg", peer: "42", scope: "g.-100123" }],
    ["tg:42:g.-100123.t.7", { prefix: "tg", peer: "42", scope: "g.-100123.t.7" }],
    ["dc:7:g.caf%C3%A9", { prefix: "dc", peer: "7", scope: "g.caf%C3%A9" }],
  ])("%s falls into its parts", (raw, parts) => {
    expect(sessionPartsOf(parseSessionId(raw))).toEqual(parts);
  });

  test.each([
    "",
    "api",
    "api:jane",
    "api::default",
    "api:jane:",
    "api:jane:default:more",
    "xx:jane:default",
    "API:jane:default",
    "api:jane:Default",
    "api:jane:other",
    "api:jane:g.",
    "api:jane:g",
    "api:jane:t.1",
    "api:ja ne:default",
    "api:jäne:default",
    "api:jane\n:default",
    "api:jane:default\n",
    "api:a/b:default",
    "api:..%2f:default", // hex is written in capitals: one spelling per peer
    "api:50%:default",
    "api:%G0:default",
    "toString:jane:default",
  ])("%j is malformed", (raw) => {
    expect(() => parseSessionId(raw)).toThrow(invalid);
  });

  test("has a peer of at most 200 bytes, and is refused at any length without delay", () => {
    expect(parseSessionId(`api:${"a".repeat(200)}:default`)).toHaveLength(212);
    expect(() => parseSessionId(`api:${"a".repeat(201)}:default`)).toThrow(invalid);
    expect(() => parseSessionId(`api:${"%41".repeat(67)}:default`)).toThrow(invalid);
    expect(() => parseSessionId(`api:jane:g.${"a.t.".repeat(400_000)}`)).toThrow(invalid);
  });

  test("of a call that continues nothing is made from its turn", () => {
    const turnId = mintTurnId(0, new Uint8Array(10));

    expect(sessionPartsOf(statelessSessionOf(turnId))).toEqual({ prefix: "api", peer: turnId, scope: "default" });
  });
});

describe("a peer", () => {
  test.each([
    ["+15551234567", "+15551234567"],
    ["T1+U2", "T1+U2"],
    ["jane@example.org", "jane@example.org"],
    ["a b", "a%20b"],
    ["a:b", "a%3Ab"],
    ["50%", "50%25"],
    ["é", "%C3%A9"],
    ["🦞", "%F0%9F%A6%9E"],
    ["\u0000", "%00"],
    ["../../etc", "..%2F..%2Fetc"],
  ])("%j stands as %s", (peer, encoded) => {
    expect(encodePeer(peer)).toBe(encoded);
  });

  test("is neither empty nor longer than 200 bytes once encoded", () => {
    expect(() => encodePeer("")).toThrow(invalid);
    expect(encodePeer("é".repeat(33))).toHaveLength(198);
    expect(() => encodePeer("é".repeat(34))).toThrow(invalid);
    expect(() => encodePeer("a".repeat(201))).toThrow(invalid);
  });

  test("of any text comes back out of its session id, and two texts never share one", () => {
    const prefix = fc.constantFrom(...(Object.keys(channelPrefixes) as ChannelPrefix[]));
    const character = fc.integer({ min: 0, max: 0x10_ff_ff }).filter((point) => point < 0xd8_00 || point > 0xdf_ff);
    const peer = fc.array(character, { minLength: 1, maxLength: 16 }).map((points) => String.fromCodePoint(...points));
    fc.assert(
      fc.property(prefix, peer, (channel, raw) => {
        const parts = sessionPartsOf(parseSessionId(`${channel}:${encodePeer(raw)}:default`));

        expect(parts.prefix).toBe(channel);
        expect(decodeURIComponent(parts.peer)).toBe(raw);
      }),
    );
  });
});
