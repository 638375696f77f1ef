import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { loadAdminConfig, parseAdminConfig } from "../../control-plane/admin-config.ts";
import { type Changes, createChanges } from "../../control-plane/changes.ts";
import { type LiveConfiguration, type RateCardWriter, openLiveConfiguration } from "../../control-plane/live-configuration.ts";
import { intendWrite } from "../../control-plane/rate-card-in-force.ts";
import { createRateCard, storeRateCard } from "../../control-plane/rate-cards.ts";
import { systemOwner } from "../../domain/tenant.ts";
import { readChain } from "../../storage/audit-repository.ts";
import { chainClient, guardedClient } from "../../temporal/chain-client.ts";
import { quiet } from "../turn-stack.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";
import { emptyHome } from "./control-stage.ts";

let stage: ChangesStage;
beforeAll(async () => {
  stage = await startChanges();
});
afterAll(async () => await stage.close());

const textOf = (input: number, more = ""): string => `# ours
default_model: m
providers: { p: { kind: demo } }
models:
  m: { provider: p, context_window: 100, max_output_tokens: 10 }
billing:
  rate_card:
    m: { input: ${input}, output: 1 }
${more}`;
const cardOf = (input: number) => ({ m: { input: String(input), output: "1" } });
const hashOf = (input: number): string => createRateCard(cardOf(input)).hash;

let prices = 100;
const freshPrice = (): number => ++prices;

type Home = { readonly path: string; readonly home: string; read(): string; write(text: string): void };
function newHome(text: string): Home {
  const home = emptyHome();
  const path = join(home, "config.yaml");
  const write = (whole: string): void => {
    writeFileSync(`${path}.new`, whole);
    renameSync(`${path}.new`, path);
  };
  write(text);
  return { home, path, read: () => readFileSync(path, "utf8"), write };
}

/** As a process of the product starts on a home; `stop` is its end, which a crash leaves out of nothing but memory. */
async function startOn(
  { home }: Home,
  { isWriter = true, changes = stage.changes }: { readonly isWriter?: boolean; readonly changes?: Changes } = {},
): Promise<{ readonly live: LiveConfiguration; readonly writer: RateCardWriter; stop(): Promise<void> }> {
  const { database } = stage.stack;
  const live = await openLiveConfiguration({ database, home, config: loadAdminConfig(home), log: quiet, intervalMs: 100 });
  const writer = await live.follow({ changes, isWriter });
  let stopped: Promise<void> | undefined;
  const stop = async (): Promise<void> => await (stopped ??= writer.stop());
  onTestFinished(stop);
  return { live, writer, stop };
}

const inForce = async (live: LiveConfiguration, input: number): Promise<void> => {
  while (live.current().rateCard.hash !== hashOf(input)) await new Promise((resolve) => setTimeout(resolve, 20));
};
/** Waits for the file to hold this text; one that never comes fails by the test's time. */
const whenRead = async ({ read }: Home, text: string): Promise<void> => {
  while (read() !== text) await new Promise((resolve) => setTimeout(resolve, 20));
};
const entries = async () =>
  (await stage.stack.database.withControl(async (tx) => await readChain(tx, "system", 0, 1_000))).filter(
    ({ action }) => action === "rate-card.update",
  );
/** A home whose card is in force, with nothing left to do. */
async function settledHome(more = ""): Promise<{ readonly input: number; readonly home: Home }> {
  const input = freshPrice();
  const home = newHome(textOf(input, more));
  const { live, stop } = await startOn(home);
  await inForce(live, input);
  await stop();
  return { input, home };
}

/** What a gateway has done when it dies between the change and the file. */
async function dieBeforeWriting({ path }: Home, from: number, to: number): Promise<void> {
  await stage.stack.database.withControl(async (tx) => {
    await storeRateCard(tx, createRateCard(cardOf(to)));
    await intendWrite(tx, `${hostname()}:${path}`, { hash: hashOf(to), fromHash: hashOf(from) });
  });
  await stage.make(systemOwner, { type: "rate-card.update", hash: hashOf(to) });
}

test("a change whose gateway died before it wrote the file is written by the next start", async () => {
  const { input, home } = await settledHome("# the end\n");
  const before = (await entries()).length;
  const to = freshPrice();
  await dieBeforeWriting(home, input, to);

  const { live } = await startOn(home);

  expect(live.current().rateCard.hash).toBe(hashOf(to));
  await whenRead(home, textOf(to, "# the end\n"));
  expect((await entries()).slice(before).map(({ actor, target }) => [actor.type, target])).toEqual([["admin", `rate-card:${hashOf(to)}`]]);
});

test("a change whose gateway died is written beside what was edited elsewhere in the file since", async () => {
  const { input, home } = await settledHome();
  const to = freshPrice();
  await dieBeforeWriting(home, input, to);
  home.write(textOf(input, "# edited meanwhile\n"));

  const { live } = await startOn(home);

  await whenRead(home, textOf(to, "# edited meanwhile\n"));
  expect(live.current().rateCard.hash).toBe(hashOf(to));
});

test("an edit of the card goes before a change whose gateway died, and is recorded as the system's", async () => {
  const { input, home } = await settledHome();
  const [to, edited] = [freshPrice(), freshPrice()];
  await dieBeforeWriting(home, input, to);
  home.write(textOf(edited));

  const { live } = await startOn(home);

  await inForce(live, edited);
  expect(home.read()).toBe(textOf(edited));
  expect((await entries()).at(-1)).toMatchObject({
    actor: { type: "system", id: "config" },
    target: `rate-card:${hashOf(edited)} markup_ppm:0`,
  });
});

test("an edit made while nothing ran holds only once it is recorded", async () => {
  const { input, home } = await settledHome();
  const edited = freshPrice();
  home.write(textOf(edited));
  let obstacle: string | undefined = "the audit file cannot be written";
  const { database, keys, connection, pool } = stage.stack;
  const changes = createChanges({
    database,
    dataKeys: keys.dataKeys,
    chainOf: (owner) => chainClient(owner, guardedClient(owner, connection), {}),
    wake: pool.wake,
    obstacle: () => obstacle,
    log: quiet,
  });

  const { live, writer } = await startOn(home, { changes });
  while (live.fault() === undefined) await new Promise((resolve) => setTimeout(resolve, 20));

  expect(live.current().rateCard.hash).toBe(hashOf(input));
  expect(live.fault()).toContain("the audit file cannot be written");
  await expect(writer.write(cardOf(freshPrice()), { actor: { type: "admin", id: "root" }, requestId: "req_1" })).rejects.toMatchObject({
    code: "unavailable",
  });
  obstacle = undefined;
  await inForce(live, edited);
  while (live.fault() !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
  expect((await entries()).at(-1)?.target).toBe(`rate-card:${hashOf(edited)} markup_ppm:0`);
});

test("processes of one home take an edit over together, and it is one entry", async () => {
  const { home } = await settledHome();
  const before = (await entries()).length;
  const processes = await Promise.all([startOn(home), startOn(home, { isWriter: false }), startOn(home, { isWriter: false })]);
  const [first, second] = [freshPrice(), freshPrice()];

  home.write(textOf(first));
  await Promise.all(processes.map(async ({ live }) => await inForce(live, first)));
  await processes[0].writer.write(cardOf(second), { actor: { type: "admin", id: "root" }, requestId: "req_2" });
  await Promise.all(processes.map(async ({ live }) => await inForce(live, second)));

  expect(parseAdminConfig(home.read()).rateCard.hash).toBe(hashOf(second));
  expect((await entries()).slice(before).map(({ actor, target }) => [actor.type, target])).toEqual([
    ["system", `rate-card:${hashOf(first)} markup_ppm:0`],
    ["admin", `rate-card:${hashOf(second)}`],
  ]);
});

test("a file that a gateway is about to write is no edit to the other processes", async () => {
  const { input, home } = await settledHome();
  const before = (await entries()).length;
  const to = freshPrice();
  await dieBeforeWriting(home, input, to);

  const follower = await startOn(home, { isWriter: false });
  const gateway = await startOn(home);
  await whenRead(home, textOf(to));
  for (const { live } of [follower, gateway]) await inForce(live, to);

  expect((await entries()).slice(before).map(({ actor }) => actor.type)).toEqual(["admin"]);
});

test("cards that are put one after the other are no edits to the other processes", async () => {
  const { home } = await settledHome();
  const before = (await entries()).length;
  const [gateway, ...followers] = await Promise.all([
    startOn(home),
    startOn(home, { isWriter: false }),
    startOn(home, { isWriter: false }),
  ]);

  const inputs = Array.from({ length: 12 }, freshPrice);
  for (const input of inputs)
    await gateway.writer.write(cardOf(input), { actor: { type: "admin", id: "root" }, requestId: `req_fast_${input}` });
  for (const { live } of followers) await inForce(live, inputs.at(-1) ?? 0);

  expect((await entries()).slice(before).map(({ target }) => target)).toEqual(inputs.map((input) => `rate-card:${hashOf(input)}`));
});

test("edits and cards that are put at the same time end with one card: in the file, in force, and last in the chain", async () => {
  const { home } = await settledHome();
  const { live, writer } = await startOn(home);

  const puts = Array.from({ length: 6 }, async (_one, n) => {
    await new Promise((resolve) => setTimeout(resolve, 150 * n));
    return await writer.write(cardOf(freshPrice()), { actor: { type: "admin", id: "root" }, requestId: `req_mixed_${n}` }).then(
      () => "done",
      (error: { code?: string }) => error.code,
    );
  });
  for (let n = 0; n < 4; n++) {
    home.write(home.read().replace(/m: \{ input: \d+/, `m: { input: ${freshPrice()}`));
    await new Promise((resolve) => setTimeout(resolve, 170));
  }
  const outcomes = await Promise.all(puts);

  expect(outcomes.filter((outcome) => outcome !== "done" && outcome !== "conflict")).toEqual([]);
  while (live.current().rateCard.hash !== parseAdminConfig(home.read()).rateCard.hash)
    await new Promise((resolve) => setTimeout(resolve, 50));
  expect((await entries()).at(-1)?.target.split(" ")[0]).toBe(`rate-card:${live.current().rateCard.hash}`);
  expect(live.fault()).toBeUndefined();
});
