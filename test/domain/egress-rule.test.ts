import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  allowsTarget,
  coversRule,
  type EgressRule,
  type EgressTarget,
  formatEgressRule,
  formatEgressTarget,
  isWithinRules,
  parseEgressRule,
  parseEgressTarget,
} from "../../domain/egress-rule.ts";

test.each([
  ["pypi.org:443", "pypi.org:443"],
  ["PyPI.org.:443", "pypi.org:443"],
  ["*.Example.com:8443", "*.example.com:8443"],
  ["*.a.b.example.com:1", "*.a.b.example.com:1"],
  ["xn--bcher-kva.example:443", "xn--bcher-kva.example:443"],
  ["_acme.example.com:65535", "_acme.example.com:65535"],
  ["intranet:80", "intranet:80"],
  ["198.51.100.7:5432", "198.51.100.7:5432"],
  ["[2001:DB8:0::1]:443", "[2001:db8::1]:443"],
  ["[::ffff:198.51.100.7]:443", "[::ffff:c633:6407]:443"],
])("the rule %s is written %s", (text, written) => {
  expect(formatEgressRule(parseEgressRule(text) as EgressRule)).toBe(written);
  expect(parseEgressRule(written)).toEqual(parseEgressRule(text));
});

const refused: readonly (readonly [text: string, says: string])[] = [
  ["", "must be host:port"],
  ["pypi.org", "must be host:port"],
  ["https://pypi.org:443", "must be host:port"],
  ["pypi.org:443/simple", "port from 1"],
  ["pypi.org:", "port from 1"],
  ["pypi.org:0", "port from 1"],
  ["pypi.org:65536", "port from 1"],
  ["pypi.org:0443", "port from 1"],
  ["pypi.org:4 43", "port from 1"],
  ["pypi.org:*", "port from 1"],
  ["*", "must be host:port"],
  ["*:443", "whole first label"],
  ["*com:443", "whole first label"],
  ["*.com:443", "at least two labels"],
  ["*.:443", "name a host"],
  ["*.*.example.com:443", "name a host"],
  ["a.*.example.com:443", "name a host"],
  ["*.10.0.0.1:443", "four decimal numbers"],
  ["bücher.example:443", "xn--"],
  ["pypi。org:443", "xn--"],
  ["a..b:1", "name a host"],
  [".a.b:1", "name a host"],
  ["a b.c:1", "name a host"],
  ["user@pypi.org:443", "name a host"],
  ["-a.b:1", "name a host"],
  [`${"a".repeat(64)}.b:1`, "name a host"],
  [`${"a.".repeat(127)}b:1`, "name a host"],
  ["pypi.org\n:443", "xn--"],
  ["pypi.org\0:443", "xn--"],
  ["0x7f.1:80", "four decimal numbers"],
  ["0x7f000001:80", "four decimal numbers"],
  ["2130706433:80", "four decimal numbers"],
  ["127.1:80", "four decimal numbers"],
  ["0177.0.0.1:80", "four decimal numbers"],
  ["127.0.0.01:80", "four decimal numbers"],
  ["256.0.0.1:80", "four decimal numbers"],
  ["1.2.3.4.5:80", "four decimal numbers"],
  ["10.0.0.0/8:443", "name a host"],
  ["::1:80", "must be host:port"],
  ["[::1]", "must be host:port"],
  ["[fe80::1%eth0]:80", "IPv6 address"],
  ["[127.0.0.1]:80", "IPv6 address"],
  ["[pypi.org]:443", "IPv6 address"],
  ["[::1]x:80", "must be host:port"],
];

test.each(refused)("%j is no rule", (text, says) => {
  expect(parseEgressRule(text)).toContain(says);
});

test.each(refused.filter(([text]) => !text.startsWith("*")))("nor is %j a destination", (text) => {
  expect(typeof parseEgressTarget(text)).toBe("string");
});

test("a destination may leave out the port that its scheme has, and holds no wildcard", () => {
  expect(parseEgressTarget("Example.COM", 80)).toEqual(parseEgressTarget("example.com.:80"));
  expect(parseEgressTarget("[::1]", 80)).toEqual(parseEgressTarget("[0:0::1]:80"));
  expect(typeof parseEgressTarget("*.example.com:443")).toBe("string");
  expect(typeof parseEgressTarget("::1", 80)).toBe("string");
});

test.each([
  ["example.com:443", "example.com:443", true],
  ["example.com:443", "example.com:80", false],
  ["example.com:443", "a.example.com:443", false],
  ["*.example.com:443", "a.b.example.com:443", true],
  ["*.example.com:443", "*.b.example.com:443", true],
  ["*.example.com:443", "*.example.com:443", true],
  ["*.example.com:443", "*.example.com:80", false],
  ["*.example.com:443", "example.com:443", false],
  ["*.example.com:443", "evilexample.com:443", false],
  ["*.example.com:443", "*.evilexample.com:443", false],
  ["*.example.com:443", "example.com.evil:443", false],
  ["*.b.example.com:443", "*.example.com:443", false],
  ["a.example.com:443", "*.a.example.com:443", false],
  ["10.0.0.1:443", "10.0.0.1:443", true],
  ["10.0.0.1:443", "[::ffff:10.0.0.1]:443", false],
  ["[2001:db8::1]:443", "[2001:0db8:0::1]:443", true],
  // nonsense covers nothing, itself included
  ["*", "*", false],
  ["example.com", "example.com", false],
  ["10.0.0.0/8", "10.0.0.0/8", false],
])("%s covers %s: %s", (outer, inner, covers) => {
  expect(isWithinRules([outer], inner)).toBe(covers);
});

describe("coverage", () => {
  const label = fc.constantFrom("a", "b", "ab");
  const name = fc.array(label, { minLength: 1, maxLength: 3 }).map((labels) => labels.join("."));
  const port = fc.constantFrom(80, 443);
  const address = fc.constantFrom("10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "198.51.100.7");
  const rules = fc
    .tuple(
      fc.oneof(
        name,
        name.map((one) => `*.${one}.a`),
        address,
      ),
      port,
    )
    .map(([host, number]) => parseEgressRule(`${host}:${number}`) as EgressRule);

  /** A destination that the rule lets through. */
  const within = (rule: EgressRule, below: string): EgressTarget =>
    rule.host.kind === "below"
      ? (parseEgressTarget(`${below}.${rule.host.name}:${rule.port}`) as EgressTarget)
      : { host: rule.host, port: rule.port };

  test("whatever a covered rule lets through, its bound lets through too; a rule that is not covered lets something through that its bound does not", () => {
    let covered = 0;
    fc.assert(
      fc.property(rules, rules, name, (outer, inner, below) => {
        const target = within(inner, below);
        expect(allowsTarget(inner, target)).toBe(true);
        if (coversRule(outer, inner)) {
          covered += 1;
          expect(allowsTarget(outer, target), `${formatEgressRule(outer)} ${formatEgressRule(inner)} ${formatEgressTarget(target)}`).toBe(
            true,
          );
        } else expect(allowsTarget(outer, within(inner, "not-in-any-rule"))).toBe(false);
      }),
      { numRuns: 20_000 },
    );
    expect(covered).toBeGreaterThan(0);
  });

  test("covers itself and is transitive", () => {
    fc.assert(
      fc.property(rules, rules, rules, (one, two, three) => {
        expect(coversRule(one, one)).toBe(true);
        if (coversRule(one, two) && coversRule(two, three)) expect(coversRule(one, three)).toBe(true);
      }),
      { numRuns: 5_000 },
    );
  });

  test("any text is a rule in one spelling, or a sentence; never an exception", () => {
    const texts = fc.oneof(
      fc.string({ unit: "binary", maxLength: 40 }),
      fc.string({ unit: fc.constantFrom(...Array.from("*.:[]0x1f%@/ab-_ \0é")), maxLength: 30 }),
    );
    fc.assert(
      fc.property(texts, (text) => {
        const rule = parseEgressRule(text);
        if (typeof rule !== "string") expect(parseEgressRule(formatEgressRule(rule))).toEqual(rule);
      }),
      { numRuns: 10_000 },
    );
  });
});
