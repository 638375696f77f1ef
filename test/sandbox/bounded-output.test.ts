import { once } from "node:events";
import { PassThrough } from "node:stream";
import { expect, test } from "vitest";
import { keepOutput } from "../../sandbox/bounded-output.ts";

test("an output that was closed before anybody listened has ended", async () => {
  const stream = new PassThrough();
  stream.destroy();
  await once(stream, "close"); // nobody else has heard of it

  const kept = keepOutput(stream, { limitBytes: 10, onFlood: () => expect.fail("there is no flood") });

  await kept.ended;
  expect([kept.bytes().length, kept.truncated()]).toEqual([0, false]);
});
