import { expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import { createFailedAuthenticationLimiter } from "../../gateway/failed-authentication-limiter.ts";

const failed = new AppError("invalid_api_key");

test("an address may fail twenty times in a minute and is then told when to come back", () => {
  let nowMs = 0;
  const limiter = createFailedAuthenticationLimiter({ now: () => nowMs });

  const first = Array.from({ length: 20 }, () => limiter.refuse("10.0.0.1", failed).code);
  nowMs = 15_500;
  const twentyFirst = limiter.refuse("10.0.0.1", failed);
  const elsewhere = limiter.refuse("10.0.0.2", failed);
  nowMs = 60_000;
  const nextMinute = limiter.refuse("10.0.0.1", failed);

  expect(new Set(first)).toEqual(new Set(["invalid_api_key"]));
  expect(twentyFirst.code).toBe("rate_limited");
  expect(twentyFirst.client.retryAfterSeconds).toBe(45);
  expect(elsewhere.code).toBe("invalid_api_key");
  expect(nextMinute.code).toBe("invalid_api_key");
});

test("a flood from many addresses is forgotten, oldest first", () => {
  const limiter = createFailedAuthenticationLimiter({ now: () => 0 });
  for (let failure = 0; failure < 21; failure++) limiter.refuse("old", failed);

  for (let address = 0; address < 10_000; address++) limiter.refuse(`flood-${address}`, failed);

  expect(limiter.refuse("old", failed).code).toBe("invalid_api_key");
});
