import { expect, test } from "vitest";
import { parsePeriod } from "../../control-plane/billing-period.ts";

const leapDay = Date.parse("2028-02-29T23:59:59.999Z");

test.each([
  ["today", "2028-02-29", "2028-02-29"],
  ["yesterday", "2028-02-28", "2028-02-28"],
  ["current-month", "2028-02-01", "2028-02-29"],
  ["last-month", "2028-01-01", "2028-01-31"],
  ["2027-12", "2027-12-01", "2027-12-31"],
  ["2028-02", "2028-02-01", "2028-02-29"],
  ["2027-02", "2027-02-01", "2027-02-28"],
  ["2028-02-29..2028-02-29", "2028-02-29", "2028-02-29"],
  ["2027-12-31..2028-01-01", "2027-12-31", "2028-01-01"],
])("%s is %s to %s", (text, firstDay, lastDay) => {
  const period = parsePeriod(text, leapDay);

  expect(period).toMatchObject({
    text,
    firstDay,
    lastDay,
    fromMs: Date.parse(`${firstDay}T00:00:00Z`),
    untilMs: Date.parse(`${lastDay}T00:00:00Z`) + 86_400_000,
  });
});

test("a millisecond later it is the next month", () => {
  expect(parsePeriod("today", leapDay + 1).firstDay).toBe("2028-03-01");
  expect(parsePeriod("last-month", leapDay + 1)).toMatchObject({ firstDay: "2028-02-01", lastDay: "2028-02-29" });
});

test("January's last month is December", () => {
  expect(parsePeriod("last-month", Date.parse("2027-01-31T12:00:00Z"))).toMatchObject({ firstDay: "2026-12-01", lastDay: "2026-12-31" });
});

test.each([
  "",
  "tomorrow",
  "Today",
  "2027",
  "2027-13",
  "2027-00",
  "2027-1",
  "2027-02-29..2027-03-01",
  "2027-03-02..2027-03-01",
  "2027-03-01..",
  "2027-03-01",
  "2027-03-01...2027-03-02",
  "0001-01-01..9999-12-31",
  "2027-03-01..2027-03-02; drop table",
  "2027-03\n",
])("%j is refused", (text) => {
  expect(() => parsePeriod(text, leapDay)).toThrow(expect.objectContaining({ code: "invalid_period" }));
});
