import { expect, test } from "vitest";
import { mintTurnId } from "../../domain/turn-id.ts";
import { createInProcessTokenBus } from "../../streams/in-process-token-bus.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";

const turnA = mintTurnId(1, new Uint8Array(10));
const turnB = mintTurnId(2, new Uint8Array(10));
const word = (offset: number): TurnEvent => ({ type: "text", offset, text: "x" });

test("every listener of a turn hears its events in their order, and no other turn's", () => {
  const bus = createInProcessTokenBus();
  const [one, two, other]: TurnEvent[][] = [[], [], []];
  bus.subscribe(turnA, (event) => one?.push(event));
  bus.subscribe(turnA, (event) => two?.push(event));
  bus.subscribe(turnB, (event) => other?.push(event));

  for (let offset = 0; offset < 100; offset++) bus.publish(turnA, word(offset));

  expect(one).toEqual(Array.from({ length: 100 }, (_, offset) => word(offset)));
  expect(two).toEqual(one);
  expect(other).toEqual([]);
});

test("who has left hears nothing more, and takes nobody along", () => {
  const bus = createInProcessTokenBus();
  const heard: string[] = [];
  const leave = bus.subscribe(turnA, () => heard.push("first"));
  bus.subscribe(turnA, () => heard.push("second"));
  bus.publish(turnA, word(0));

  leave();
  leave(); // twice does no harm
  bus.publish(turnA, word(1));

  expect(heard).toEqual(["first", "second", "second"]);
});

test("a listener may leave, or bring another, while it is told", () => {
  const bus = createInProcessTokenBus();
  const heard: string[] = [];
  const leave = bus.subscribe(turnA, ({ type }) => {
    heard.push(`once ${type}`);
    leave();
    bus.subscribe(turnB, () => heard.push("of the other turn"));
  });
  bus.subscribe(turnA, ({ type }) => heard.push(`always ${type}`));

  bus.publish(turnA, word(0));
  bus.publish(turnA, { type: "finished" });
  bus.publish(turnB, word(0));

  expect(heard).toEqual(["once text", "always text", "always finished", "of the other turn"]);
});

test("an event that nobody waits for is gone", () => {
  const bus = createInProcessTokenBus();
  bus.publish(turnA, word(0));
  const heard: TurnEvent[] = [];

  bus.subscribe(turnA, (event) => heard.push(event));
  bus.publish(turnA, word(1));

  expect(heard).toEqual([word(1)]);
});
