import { createHash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { callIdOf, deriveTurnId, mintTurnId, parseTurnId, turnTimeMs } from "../../domain/turn-id.ts";
import { encodeUlid } from "../../domain/ulid.ts";

const random = fc.uint8Array({ minLength: 10, maxLength: 10 });
const instant = fc.integer({ min: 0, max: 2 ** 48 - 1 });
const digestOf = (text: string): Uint8Array => createHash("sha256").update(text).digest();

test("a turn id is trn_ and a ULID that begins with the time it was minted at", () => {
  expect(mintTurnId(1_469_918_176_385, new Uint8Array(10))).toBe("trn_01ARYZ6S410000000000000000"); // the ULID specification's time

  fc.assert(
    fc.property(instant, random, (nowMs, bytes) => {
      const turnId = mintTurnId(nowMs, bytes);

      expect(parseTurnId(turnId)).toBe(turnId);
      expect(turnTimeMs(turnId)).toBe(nowMs);
    }),
  );
});

test("turn ids sort by time, and all their random bits count", () => {
  fc.assert(
    fc.property(instant, instant, random, random, (earlier, later, one, other) => {
      fc.pre(earlier < later);
      expect(mintTurnId(earlier, one) < mintTurnId(later, other)).toBe(true);
      expect(mintTurnId(later, one) === mintTurnId(later, other)).toBe(Buffer.from(one).equals(other));
    }),
  );
});

test("a repeat derives the same turn id, anything else another one", () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (one, other) => {
      expect(deriveTurnId(digestOf(one))).toBe(deriveTurnId(digestOf(one)));
      expect(parseTurnId(deriveTurnId(digestOf(one)))).toMatch(/^trn_[0-7]/);
      expect(deriveTurnId(digestOf(one)) === deriveTurnId(digestOf(other))).toBe(one === other);
    }),
  );
});

test.each([
  "",
  "trn_",
  "01ARYZ6S410000000000000000",
  "trn_01ARYZ6S41000000000000000",
  "trn_01ARYZ6S4100000000000000000",
  "trn_81ARYZ6S410000000000000000", // more than 128 bits
  "trn_01aryz6s410000000000000000",
  "trn_01ARYZ6S41000000000000000I", // I, L, O and U are no digits
  "trn_01ARYZ6S41000000000000000U",
  "req_01ARYZ6S410000000000000000",
  "trn_01ARYZ6S410000000000000000\n",
])("%j is no turn id", (raw) => {
  expect(() => parseTurnId(raw)).toThrow(
    expect.objectContaining({ code: "invalid_request", client: expect.objectContaining({ param: "turn_id" }) }),
  );
});

test("a call is known by its turn and its step", () => {
  expect(callIdOf(mintTurnId(0, new Uint8Array(10)), 3)).toBe("trn_00000000000000000000000000.3");
});

test("a ULID is made of exactly 16 bytes", () => {
  expect(encodeUlid(new Uint8Array(16).fill(255))).toBe("7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
  expect(() => encodeUlid(new Uint8Array(15))).toThrow(RangeError);
  expect(() => deriveTurnId(new Uint8Array(8))).toThrow(RangeError);
});
