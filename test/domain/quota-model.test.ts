import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { NanoUsd } from "../../domain/money.ts";
import { QuotaLease, type Reservation } from "../../domain/quota-lease.ts";
import {
  type Amount,
  type HolderId,
  type LeaseAnswer,
  type LeaseOrder,
  type QuotaLedger,
  type CallRow,
  type DayBooks,
  type Recovery,
  type Want,
  applyRows,
  beginRecovery,
  booksOf,
  callsToCheck,
  covers,
  freeOf,
  heldOf,
  hold,
  keyOf,
  minus,
  noAmount,
  openLedger,
  plus,
  recover,
  rollDay,
  takeBack,
  takeOrder,
  utcDayOf,
  wantNothing,
} from "../../domain/quota-ledger.ts";
import type { CallId } from "../../domain/turn-id.ts";

const amount = (tokens: number): Amount => ({ tokens, nanoUsd: (BigInt(tokens) * 7n) as NanoUsd });
const sum = (amounts: readonly Amount[]): Amount => amounts.reduce(plus, noAmount);

type Row = Reservation & { readonly state: "started" | "done" | "void"; readonly actual: Amount };
type LocalCall = {
  readonly callId: CallId;
  readonly reservation: Reservation | undefined;
  /** Of the call; only the last one may write its row. */
  readonly attempt: number;
  readonly step: "reserved" | "calling" | "counted";
};
type Process = { lease: QuotaLease; readonly calls: LocalCall[]; answer: LeaseAnswer | undefined };
type Admission = { readonly atMs: number; readonly jumps: number; readonly holder: HolderId; readonly batch: number; refused: boolean };

const limits = { tokensPerDay: 800, nanoUsdPerDay: 6_000n as NanoUsd, requestsPerMinute: 5 };
const startMs = Date.UTC(2026, 1, 28, 23, 50);

/** Two processes, their rows, a workflow and a network that loses either way; every step checks what may never be. */
class World {
  /** What nobody's clock tells but the stopwatches. */
  monotonicMs = startMs;
  /** How far the clocks of all are ahead of it. */
  aheadMs = 0;
  jumps = 0;
  readonly ledger: QuotaLedger = openLedger(limits, utcDayOf(startMs));
  /** True while a lease may open something; one that was taken back is known as such for longer than an order may be late. */
  readonly leases = new Map<HolderId, boolean>();
  readonly rows = new Map<CallId, Row>();
  readonly admissions: Admission[] = [];
  readonly processes: [Process, Process];
  reads: { readonly recovery: Recovery; readonly rows: readonly CallRow[]; readonly requests: number }[] = [];
  checks: readonly CallRow[] = [];
  readonly sent: LeaseOrder[] = [];
  readonly attempts = new Map<CallId, number>();
  #names = 0;

  constructor() {
    this.processes = [this.#begin(), this.#begin()];
  }

  #begin(): Process {
    const holder = `holder-${++this.#names}`;
    return { lease: new QuotaLease(holder), calls: [], answer: undefined };
  }

  get nowMs(): number {
    return this.monotonicMs + this.aheadMs;
  }

  #now() {
    return { monotonicMs: this.monotonicMs, wallMs: this.nowMs };
  }

  wait(ms: number): void {
    this.monotonicMs += ms;
  }

  waitUntilBeforeMidnight(): void {
    this.wait(Math.max(0, Date.parse(`${utcDayOf(this.nowMs)}T23:59:59.950Z`) - this.nowMs));
  }

  jump(aheadMs: number): void {
    if (aheadMs !== this.aheadMs) this.jumps++;
    this.aheadMs = aheadMs;
  }

  restart(index: 0 | 1): void {
    this.processes[index] = this.#begin();
  }

  sayGoodbye(index: 0 | 1): void {
    takeBack(this.ledger, this.processes[index].lease.holder);
    this.restart(index);
  }

  renew(process: Process): void {
    if (!process.lease.isGone) return;
    const { holder } = this.#begin().lease;
    process.lease = new QuotaLease(holder);
    process.answer = undefined;
  }

  reserve(process: Process, least: number, desired: number, callId = `call-${++this.#names}` as CallId): void {
    const reservation = process.lease.reserve(callId, { least: amount(least), desired: amount(desired) }, this.#now());
    if (reservation === undefined) return;
    assert(covers(reservation.reserved, amount(least)), "less than what a call can begin with");
    const day = utcDayOf(this.nowMs);
    assert(this.jumps === 0 ? reservation.day === day : reservation.day >= day, "a lease of one day is spent on another");
    const attempt = (this.attempts.get(callId) ?? 0) + 1;
    this.attempts.set(callId, attempt);
    process.calls.push({ callId, reservation, attempt, step: "reserved" });
  }

  /** Another attempt of a call that has reserved elsewhere and not written its row yet: the first one is slow, not dead. */
  rival(process: Process, desired: number): void {
    const slow = this.processes.flatMap(({ calls }) => calls).find(({ step, callId }) => step === "reserved" && !this.rows.has(callId));
    if (slow !== undefined) this.reserve(process, 1, desired, slow.callId);
  }

  /** The journal's update: refused once the lease is fenced or another attempt has begun. */
  journal(process: Process): void {
    const call = this.#takeLocal(process, "reserved");
    if (call?.reservation === undefined || this.attempts.get(call.callId) !== call.attempt) return;
    if (this.leases.get(call.reservation.holder) !== true) return process.lease.drop();
    this.rows.set(call.callId, { ...call.reservation, state: "started", actual: noAmount });
    process.calls.push({ ...call, step: "calling" });
  }

  /** The journal's update failed, or another attempt has begun. */
  failToJournal(process: Process): void {
    const call = this.#takeLocal(process, "reserved");
    if (call?.reservation?.holder === process.lease.holder) process.lease.giveCallBack(call.callId, call.reservation);
  }

  /** The provider's count, in the row's own transaction: the first one stands. */
  count(process: Process, actual: Amount | undefined): void {
    const call = this.#takeLocal(process, "calling");
    const row = call === undefined ? undefined : this.rows.get(call.callId);
    if (call === undefined || row === undefined) return;
    if (row.state === "started")
      this.rows.set(call.callId, { ...row, state: actual === undefined ? "void" : "done", actual: actual ?? noAmount });
    process.calls.push({ ...call, step: "counted" });
  }

  report(process: Process): void {
    const call = this.#takeLocal(process, "counted");
    const row = call === undefined ? undefined : this.rows.get(call.callId);
    if (call === undefined || row === undefined) return;
    const { holder, batch } = row;
    process.lease.settle({ callId: call.callId, holder, batch, actual: row.state === "done" ? row.actual : undefined });
  }

  /** The turn goes on elsewhere after its worker died: another process makes the call again. */
  adopt(process: Process): void {
    const known = new Set(this.processes.flatMap(({ calls }) => calls.map(({ callId }) => callId)));
    const [orphan] = [...this.rows].find(([callId, { state }]) => state === "started" && !known.has(callId)) ?? [];
    if (orphan !== undefined) process.calls.push({ callId: orphan, reservation: undefined, attempt: 0, step: "calling" });
  }

  #takeLocal(process: Process, step: LocalCall["step"]): LocalCall | undefined {
    const index = process.calls.findIndex((call) => call.step === step);
    return index < 0 ? undefined : process.calls.splice(index, 1)[0];
  }

  /** The turn's row is refused as the journal's is. */
  admit(process: Process): void {
    const taken = process.lease.admit(this.monotonicMs);
    if (taken === undefined) return;
    if (this.leases.get(taken.holder) !== true) return process.lease.drop();
    this.admissions.push({ atMs: this.monotonicMs, jumps: this.jumps, ...taken, refused: false });
  }

  refuseAdmitted(process: Process): void {
    const admission = this.admissions.findLast(({ holder, refused }) => holder === process.lease.holder && !refused);
    if (admission === undefined) return;
    admission.refused = true;
    process.lease.giveRequestBack(admission.batch);
  }

  send(process: Process, want: Want, fate: "arrives" | "lost" | "answer lost"): void {
    const order: LeaseOrder | undefined = process.lease.order(want, this.monotonicMs);
    if (order === undefined || fate === "lost") return;
    this.sent.push(order);
    const answer = this.#take(order);
    if (fate === "arrives") process.answer = answer;
  }

  /** The network brings an order once more, late, and its answer to nobody. */
  bringAgain(back: number): void {
    const order = this.sent.at(-1 - back);
    if (order !== undefined) this.#take(order);
  }

  /** A lease is registered once. */
  #take(order: LeaseOrder): LeaseAnswer {
    if (!this.ledger.holders.has(order.holder) && order.seq === 1) {
      if (this.leases.get(order.holder) === false) return { state: "gone" };
      this.leases.set(order.holder, true);
    }
    return takeOrder(this.ledger, order, this.nowMs);
  }

  receive(process: Process): void {
    if (process.answer !== undefined) process.lease.take(process.answer);
    process.answer = undefined;
    this.renew(process);
  }

  /** The activity: fences and reads. Its answer reaches the workflow later. */
  readLeases(): void {
    for (const recovery of beginRecovery(this.ledger, this.nowMs)) {
      this.leases.set(recovery.holder, false);
      const unreported = [...this.rows].filter(([, row]) => row.holder === recovery.holder && row.batch > recovery.afterBatch);
      const rows = [...unreported.map(([callId]) => callId), ...recovery.callIds].map((callId) => this.#read(callId));
      const requests = this.admissions.filter(
        ({ holder, batch, refused }) => holder === recovery.holder && batch > recovery.afterBatch && !refused,
      ).length;
      this.reads.push({ recovery, rows, requests });
    }
    this.checks = callsToCheck(this.ledger, this.nowMs).map((callId) => this.#read(callId));
  }

  #read(callId: CallId): CallRow {
    const row = this.rows.get(callId);
    if (row === undefined) return { callId, holder: "", batch: 0, day: "", state: "missing" };
    const { holder, batch, day, state, reserved, actual } = row;
    const id = { callId, holder, batch, day };
    return state === "done" ? { ...id, state, reserved, actual } : state === "started" ? { ...id, state, reserved } : { ...id, state };
  }

  applyReads(): void {
    for (const { recovery, rows, requests } of this.reads.splice(0)) recover(this.ledger, recovery, rows, requests, this.nowMs);
    applyRows(this.ledger, this.checks, this.nowMs);
    this.checks = [];
  }

  check(): void {
    const { used, overshoot, holders } = this.ledger;
    const ceiling = plus({ tokens: limits.tokensPerDay, nanoUsd: limits.nanoUsdPerDay }, overshoot);
    assert(covers(ceiling, plus(used, heldOf(this.ledger))), "more is used and held than there is");
    for (const { granted, requests } of holders.values())
      assert(covers(granted, noAmount) && requests >= 0, "less than nothing is granted");
    for (const { lease } of this.processes)
      assert(covers(lease.granted, noAmount) && lease.requests >= 0, "a process holds less than nothing");

    // What the rows say, whatever the workflow believes: no provider was called beyond the limit, but for what it counted above.
    for (const ofDay of Map.groupBy(this.rows.values(), ({ day }) => day).values()) {
      const spent = sum(
        ofDay.filter(({ state }) => state !== "void").map(({ state, reserved, actual }) => (state === "done" ? actual : reserved)),
      );
      const above = sum(ofDay.filter(({ state }) => state === "done").map(({ actual, reserved }) => positive(minus(actual, reserved))));
      assert(covers(plus({ tokens: limits.tokensPerDay, nanoUsd: limits.nanoUsdPerDay }, above), spent), "more was spent than the limit");
    }

    for (const books of [booksOf(this.ledger), this.ledger.last]) if (books !== undefined) this.checkBooks(books);

    const minute = this.admissions.filter(
      ({ atMs, jumps, refused }) => !refused && jumps === this.jumps && atMs > this.monotonicMs - 60_000,
    );
    assert(minute.length <= limits.requestsPerMinute, "more was let in than a minute may hold");
  }

  /** At any moment, and for the day before, the workflow can say which rows it has counted (docs/adr/015). */
  checkBooks({ day, used, open, leases }: DayBooks): void {
    const isOpen = new Set(open.map(keyOf));
    const reported = new Map(leases.map(({ holder, seq }) => [holder, seq]));
    const counted = [...this.rows].filter(
      ([callId, row]) =>
        row.state === "done" &&
        row.day === day &&
        !isOpen.has(keyOf({ ...row, callId })) &&
        row.batch <= (reported.get(row.holder) ?? row.batch),
    );
    assert.deepEqual(used, sum(counted.map(([, { actual }]) => actual)), "the counter is not what its rows come to");
  }

  /** Nobody asks for anything: the workflow's own timer. */
  changeDay(): void {
    const before = this.ledger.day;
    rollDay(this.ledger, this.nowMs);
    if (this.ledger.day === before) return;
    assert.deepEqual([this.ledger.used, this.ledger.overshoot, heldOf(this.ledger)], [noAmount, noAmount, noAmount]);
  }

  /** Everybody stops; nothing may be held afterwards, and the counter is what the rows say. */
  drain(): void {
    for (const process of this.processes) {
      for (let left = 0; left < 100 && process.calls.length > 0; left++) {
        this.journal(process);
        this.count(process, amount(10));
        this.report(process);
      }
    }
    for (const [callId, row] of this.rows) if (row.state === "started") this.rows.set(callId, { ...row, state: "void" });
    this.restart(0);
    this.restart(1);
    for (let round = 0; round < 3; round++) {
      this.wait(61_000);
      this.readLeases();
      this.applyReads();
      this.check();
    }
    rollDay(this.ledger, this.nowMs);
    assert.equal(this.ledger.holders.size, 0);
    assert.equal(this.ledger.calls.size, 0);
    const today = [...this.rows].filter(([, { day, state }]) => day === this.ledger.day && state === "done");
    assert.deepEqual(this.ledger.used, sum(today.map(([, { actual }]) => actual)));
    // A rival's reservation is held beside the row's own, so what it counted above the row's may go unrecorded.
    if (today.every(([callId]) => this.attempts.get(callId) === 1))
      assert.deepEqual(this.ledger.overshoot, sum(today.map(([, { actual, reserved }]) => positive(minus(actual, reserved)))));
    // Requests of seconds that a clock has taken back are counted for one minute more, and no longer.
    const door = new QuotaLease("door");
    for (let round = 0; round < 2; round++) {
      this.wait(62_000);
      const order = door.order({ ...wantNothing, requests: limits.requestsPerMinute }, this.monotonicMs);
      if (order !== undefined) door.take(takeOrder(this.ledger, order, this.nowMs));
    }
    assert.equal(door.requests, limits.requestsPerMinute, "what was let in minutes ago still counts");
  }
}

const positive = ({ tokens, nanoUsd }: Amount): Amount => ({
  tokens: Math.max(0, tokens),
  nanoUsd: (nanoUsd > 0n ? nanoUsd : 0n) as NanoUsd,
});

type Step = (world: World) => void;

class Act implements fc.Command<object, World> {
  readonly #name: string;
  readonly #step: Step;
  constructor(name: string, step: Step) {
    this.#name = name;
    this.#step = step;
  }
  check = (): boolean => true;
  run(_model: object, world: World): void {
    this.#step(world);
    world.check();
  }
  toString = (): string => this.#name;
}

const which = fc.constantFrom<0 | 1>(0, 1);
const tokens = fc.integer({ min: 40, max: 300 });
const act = (name: string, step: (world: World, process: Process) => void) =>
  which.map((index) => new Act(`${name}(${index})`, (world) => step(world, world.processes[index])));
const fates = fc.constantFrom<"arrives" | "lost" | "answer lost">("arrives", "arrives", "arrives", "lost", "answer lost");

const wants = fc
  .record({
    calls: fc.integer({ min: 0, max: 4 }),
    tokens,
    least: fc.integer({ min: 1, max: 50 }),
    requests: fc.integer({ min: 0, max: 4 }),
  })
  .map(({ calls, tokens: first, least, requests }): Want =>
    calls === 0
      ? { ...wantNothing, requests }
      : { calls, least: amount(Math.min(least, first)), first: amount(first), total: amount(first * calls), requests },
  );

/** Steps that come one upon the other make the rare states frequent; the weights keep crashes and midnights rare. */
const asks = fc.tuple(which, wants, fates).map(
  ([index, want, fate]) =>
    new Act(`send(${index}, ${want.calls} x ${want.first.tokens}, ${want.requests} requests, ${fate})`, (world) => {
      world.send(world.processes[index], want, fate);
      if (fate === "arrives") world.receive(world.processes[index]);
    }),
);
const reserves = fc
  .tuple(which, fc.integer({ min: 1, max: 40 }), tokens)
  .map(
    ([index, least, desired]) =>
      new Act(`reserve(${index}, ${desired})`, (world) => world.reserve(world.processes[index], Math.min(least, desired), desired)),
  );
const counts = fc
  .tuple(which, fc.option(tokens, { nil: undefined }))
  .map(
    ([index, actual]) =>
      new Act(`count(${index}, ${actual})`, (world) =>
        world.count(world.processes[index], actual === undefined ? undefined : amount(actual)),
      ),
  );
const askRequests = (world: World, index: 0 | 1, requests: number): void => {
  const process = world.processes[index];
  world.send(process, { ...wantNothing, requests }, "arrives");
  world.receive(process);
  for (let taken = 0; taken < requests; taken++) world.admit(process);
};
/** All requests of a minute at one door, reported or not. */
const bursts = fc.tuple(which, fc.boolean()).map(
  ([index, isReported]) =>
    new Act(`burst(${index}, ${isReported ? "reported" : "not reported"})`, (world) => {
      askRequests(world, index, limits.requestsPerMinute);
      if (isReported) askRequests(world, index, 0);
    }),
);
/** A process stops for longer than its lease, and its order comes between the look at its rows and their counting. */
const pauses = fc.tuple(which, fc.integer({ min: 0, max: 3 })).map(
  ([index, calls]) =>
    new Act(`pause(${index}, ${calls} calls)`, (world) => {
      const process = world.processes[index];
      for (let call = 0; call < calls; call++) {
        world.reserve(process, 1, 60);
        world.journal(process);
        world.count(process, amount(70));
        world.report(process);
      }
      world.wait(60_100);
      world.readLeases();
      world.send(process, wantNothing, "arrives");
      world.applyReads();
      world.receive(process);
    }),
);
const rivals = fc
  .tuple(which, tokens)
  .map(([index, desired]) => new Act(`rival(${index}, ${desired})`, (world) => world.rival(world.processes[index], desired)));

const weighted: readonly (readonly [number, fc.Arbitrary<Act>])[] = [
  [8, asks],
  [
    4,
    fc
      .tuple(which, wants)
      .map(
        ([index, want]) => new Act(`send(${index}), its answer on the way`, (world) => world.send(world.processes[index], want, "arrives")),
      ),
  ],
  [4, act("receive", (world, process) => world.receive(process))],
  [12, reserves],
  [8, act("journal", (world, process) => world.journal(process))],
  [2, act("fail to journal", (world, process) => world.failToJournal(process))],
  [6, counts],
  [6, act("report", (world, process) => world.report(process))],
  [2, act("adopt", (world, process) => world.adopt(process))],
  [8, act("admit", (world, process) => world.admit(process))],
  [1, act("refuse", (world, process) => world.refuseAdmitted(process))],
  [3, bursts],
  [1, pauses],
  [1, rivals],
  [1, which.map((index) => new Act(`crash(${index})`, (world) => world.restart(index)))],
  [2, which.map((index) => new Act(`goodbye(${index})`, (world) => world.sayGoodbye(index)))],
  [1, act("take back", (world, process) => void takeBack(world.ledger, process.lease.holder))],
  [6, fc.integer({ min: 100, max: 3_000 }).map((ms) => new Act(`wait(${ms})`, (world) => world.wait(ms)))],
  [
    2,
    fc.constantFrom(19_900, 20_100, 58_000, 59_100, 59_500, 59_900, 60_100).map((ms) => new Act(`wait(${ms})`, (world) => world.wait(ms))),
  ],
  [1, fc.constant(new Act("midnight", (world) => world.waitUntilBeforeMidnight()))],
  [1, fc.constant(new Act("change day", (world) => world.changeDay()))],
  [3, fc.constant(new Act("read leases", (world) => world.readLeases()))],
  [3, fc.constant(new Act("apply reads", (world) => world.applyReads()))],
];
const commands = weighted.flatMap(([weight, command]) => Array.from({ length: weight }, () => command));
const late = fc.integer({ min: 0, max: 4 }).map((back) => new Act(`bring again(${back})`, (world) => world.bringAgain(back)));

/** A day ahead and back, or on: an administrator's mistake, or a time server's. */
const jumps = fc
  .constantFrom(0, 0, 3_600_000, 86_400_000, -86_400_000)
  .map((aheadMs) => new Act(`clocks(${aheadMs})`, (world) => world.jump(aheadMs)));

describe("quota leases", () => {
  it("never pass the limit, and hold nothing at the end", () => {
    const runs = process.env["OPENCLAW_TEST_FULL"] === undefined ? 5_000 : 60_000;
    fc.assert(
      fc.property(fc.commands([...commands, late, late], { maxCommands: 200, size: "max" }), (steps) => {
        const world = new World();
        fc.modelRun(() => ({ model: {}, real: world }), steps);
        world.drain();
      }),
      { numRuns: runs },
    );
  }, 300_000);

  it("never pass a day's limit and hold nothing at the end when every clock jumps by an hour or a day, and back", () => {
    const runs = process.env["OPENCLAW_TEST_FULL"] === undefined ? 2_000 : 60_000;
    fc.assert(
      fc.property(fc.commands([...commands, late, late, jumps, jumps, jumps, jumps], { maxCommands: 200, size: "max" }), (steps) => {
        const world = new World();
        fc.modelRun(() => ({ model: {}, real: world }), steps);
        world.drain();
      }),
      { numRuns: runs },
    );
  }, 300_000);

  it("count a request until its whole second has left the window, and tell when", () => {
    const limits = { tokensPerDay: undefined, nanoUsdPerDay: undefined, requestsPerMinute: 1 };
    const order = (seq: number, requestsSpent: number, requestsGivenBack: readonly number[] = []): LeaseOrder => ({
      holder: "door",
      seq,
      opened: [],
      settled: [],
      requestsSpent,
      requestsGivenBack,
      want: { ...wantNothing, requests: 1 },
    });
    const at = startMs + 999; // the last moment of a second
    const ask = (ledger: QuotaLedger, nowMs: number, ...what: Parameters<typeof order>) => {
      const answer = takeOrder(ledger, order(...what), nowMs);
      assert(answer.state === "granted");
      return answer;
    };
    const ledger = openLedger(limits, utcDayOf(startMs));
    expect(ask(ledger, at, 1, 0).requests).toBe(1);

    const spent = ask(ledger, at, 2, 1);
    const freeAtMs = at + spent.requestsAgainInMs;

    expect([spent.requests, freeAtMs]).toEqual([0, startMs + 61_000]);
    expect(ask(ledger, at + 59_000, 3, 0).requests).toBe(0);
    expect(ask(ledger, at + 60_000, 4, 0).requests).toBe(0); // a request of that very moment is still in the window
    expect(ask(ledger, freeAtMs - 1, 5, 0)).toMatchObject({ requests: 0, requestsAgainInMs: 1 });
    expect(ask(ledger, freeAtMs, 6, 0).requests).toBe(1);
  });

  it("answer a repeated order as the first time, whatever it asks, and hold the larger of two reservations of one name", () => {
    const ledger = openLedger(limits, utcDayOf(startMs));
    const order = { holder: "one", seq: 1, opened: [], settled: [], requestsSpent: 0, requestsGivenBack: [] };
    const want = { calls: 2, least: amount(100), first: amount(100), total: amount(200), requests: 1 };
    const first = takeOrder(ledger, { ...order, want }, startMs);
    const before = structuredClone(ledger);

    expect(takeOrder(ledger, { ...order, want: { ...want, requests: 4 } }, startMs + 10_000)).toEqual(first);
    expect(ledger).toEqual(before);

    const callId = "call" as CallId;
    const day = utcDayOf(startMs);
    const opened = [amount(60), amount(40)].map((reserved) => ({ callId, day, reserved }));
    takeOrder(ledger, { ...order, seq: 2, opened, want: wantNothing }, startMs);
    expect([...ledger.calls.values()].map(({ reserved }) => reserved)).toEqual([amount(60)]);
  });

  it("are spent for 20 s after they were asked for, and kept for 60 s after they were granted", () => {
    const ledger = openLedger(limits, utcDayOf(startMs));
    const lease = new QuotaLease("one");
    const order = lease.order({ calls: 1, least: amount(10), first: amount(10), total: amount(10), requests: 1 }, startMs);
    assert(order !== undefined);
    const grantedMs = startMs + 15_000;
    lease.take(takeOrder(ledger, order, grantedMs));
    const need = { least: amount(1), desired: amount(1) };
    const reserveAt = (atMs: number) => lease.reserve("call" as CallId, need, { monotonicMs: atMs, wallMs: atMs });

    expect(reserveAt(startMs + 19_999)).toBeDefined();
    expect([reserveAt(startMs + 20_000), lease.admit(startMs + 20_000)]).toEqual([undefined, undefined]);
    expect(beginRecovery(ledger, grantedMs + 59_999)).toEqual([]);
    expect(beginRecovery(ledger, grantedMs + 60_000)).toHaveLength(1);
  });

  it("free a reservation at once when its call's row knows another one", () => {
    const ledger = openLedger(limits, utcDayOf(startMs));
    const call = { callId: "call" as CallId, reserved: amount(50), checkedAtMs: startMs };
    hold(ledger, { ...call, holder: "slow", batch: 2 });
    hold(ledger, { ...call, holder: "quick", batch: 3 });

    const row = { ...call, holder: "quick", batch: 3, day: utcDayOf(startMs), state: "started" } as const;
    applyRows(ledger, [row], startMs);

    expect([...ledger.calls.values()].map(({ holder }) => holder)).toEqual(["quick"]);
  });

  it("give a refused request back to its own second, and not at all once that has left the window", () => {
    const { ledger, processes, nowMs } = new World();
    const [door] = processes;
    const take = (order: LeaseOrder | undefined, atMs: number) => {
      assert(order !== undefined);
      const answer = takeOrder(ledger, order, atMs);
      door.lease.take(answer);
      return answer;
    };
    const want = { ...wantNothing, requests: 5 };
    take(door.lease.order(want, nowMs), nowMs);
    const old = door.lease.admit(nowMs);
    take(door.lease.order(want, nowMs), nowMs);
    const later = nowMs + 61_000;
    take(door.lease.order(want, later), later);
    for (let taken = 0; taken < 5; taken++) expect(door.lease.admit(later)).toBeDefined();
    door.lease.giveRequestBack(old?.batch ?? 0);

    expect(take(door.lease.order(want, later), later)).toMatchObject({ requests: 0 });

    door.lease.giveRequestBack(4); // one of the five, which the fourth order reported

    expect(take(door.lease.order(want, later), later)).toMatchObject({ requests: 1 });
  });

  it("let exactly as many calls through as the quota holds when their reservations are what they use", () => {
    const world = new World();
    const [first, second] = world.processes;
    const each = 100;
    let passed = 0;
    for (let round = 0; round < 400; round++) {
      const process = round % 2 === 0 ? first : second;
      const waiting = 200 - passed;
      world.send(
        process,
        { calls: waiting, least: amount(each), first: amount(each), total: amount(each * waiting), requests: 0 },
        "arrives",
      );
      world.receive(process);
      for (;;) {
        const before = process.calls.length;
        world.reserve(process, each, each);
        if (process.calls.length === before) break;
        passed++;
        world.journal(process);
      }
      world.check();
    }
    expect(passed).toBe(limits.tokensPerDay / each);
    expect(freeOf(world.ledger).tokens).toBe(0);
  });
});
