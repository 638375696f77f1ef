import { expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import { createFailedAuthenticationLimiter } from "../../gateway/failed-authentication-limiter.ts";

const refused = new AppError("invalid_api_key");

test("the twenty-first failure within a minute is answered with when the minute ends, and the next minute begins anew", () => {
  let nowMs = 5_000;
  const limiter = createFailedAuthenticationLimiter({ now: () => nowMs });
  const fail = () => limiter.refuse("192.0.2.1", refused);

  const first = Array.from({ length: 20 }, fail);
  nowMs += 59_001;
  const limited = fail();
  nowMs += 999;
  const later = fail();

  expect(first).toEqual(first.map(() => refused));
  expect(limited).toMatchObject({ code: "rate_limited", client: { retryAfterSeconds: 1 } });
  expect(later).toBe(refused);
});

test("a flood from many addresses is forgotten from its oldest on, not the address that goes on failing", () => {
  const limiter = createFailedAuthenticationLimiter({ now: () => 0 });
  for (let failure = 0; failure < 20; failure++) limiter.refuse("192.0.2.1", refused);
  for (let address = 0; address < 9_999; address++) limiter.refuse(`flood ${address}`, refused);

  expect(limiter.refuse("192.0.2.1", refused)).toMatchObject({ code: "rate_limited" });
  limiter.refuse("one more", refused);
  expect(limiter.refuse("192.0.2.1", refused)).toMatchObject({ code: "rate_limited" });
  expect(limiter.refuse("flood 0", refused)).toBe(refused);
});
