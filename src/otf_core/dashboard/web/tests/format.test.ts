import { expect, test } from "vitest";
import { session } from "./facts";
import { age, brief, bytes, count, plural, setting, sig, span, standing, tick } from "../src/format";

test.each([
  [12_400, "12,400"], [0, "0"], [null, "–"], [undefined, "–"], [NaN, "–"], [Infinity, "–"],
])("count of %s is %s", (value, said) => expect(count(value)).toBe(said));

test("one step, two steps", () => {
  expect(plural(1, "step")).toBe("1 step");
  expect(plural(2, "step")).toBe("2 steps");
  expect(plural(12_400, "step")).toBe("12,400 steps");
});

test.each([
  [0.312, "0.312"], [0.0864, "0.0864"], [15.34, "15.3"], [312.4, "312"], [3912, "3,912"], [0, "0"],
  [5e-4, "5e-4"], [1.234e-7, "1.23e-7"], [2e9, "2e9"], [-0.5, "-0.500"], [NaN, "–"], [null, "–"],
])("a measured %s reads %s", (value, said) => expect(sig(value)).toBe(said));

test.each([
  [0.1, "0.1"], [0.05999999865889549, "0.05999999865889549"], [5e-4, "5e-4"], [256, "256"], [50_000, "50,000"],
  [[0.1, 0.1], "0.1"], [[0.1, 0.01], "0.1, 0.01"], [null, "none"], [true, "true"], ["auto", "auto"], [{ a: 1 }, '{"a":1}'],
])("a setting %s reads as it is: %s", (value, said) => expect(setting(value)).toBe(said));

test("where a line is short a setting has four figures", () => {
  expect(brief(0.05999999865889549)).toBe("0.06");
  expect(brief([0.123456, 0.1])).toBe("0.1235, 0.1");
});

test.each([
  [0, "0"], [0.05, "0.05"], [12_000, "12k"], [1_250_000, "1.25M"], [1e-4, "1e-4"],
])("an axis label of %s is %s", (value, said) => expect(tick(value)).toBe(said));

test.each([
  [0, "0.0 s"], [0.64, "0.6 s"], [12.9, "12 s"], [66, "1 min 6 s"], [120, "2 min"], [301, "5 min"], [2460, "41 min"],
  [8040, "2 h 14 min"], [7200, "2 h"], [200_000, "2 d 7 h"], [-5, "0.0 s"], [null, "–"], [Infinity, "–"],
])("%s seconds are %s, two units at most", (seconds, said) => expect(span(seconds)).toBe(said));

test.each([[0.4, "now"], [44, "44 s"], [60, "1 min"], [7300, "2 h"], [200_000, "2 d"]])(
  "an age of %s is %s", (seconds, said) => expect(age(seconds)).toBe(said),
);

test.each([[0, "0 B"], [999, "999 B"], [44_700_000, "44.7 MB"], [447_000_000, "447 MB"], [1.4e10, "14.0 GB"], [null, "–"]])(
  "%s bytes are %s", (n, said) => expect(bytes(n)).toBe(said),
);

test.each([
  ["running", true, null, "running"], ["running", false, null, "lost"], ["journal", false, null, "journal"],
  ["journal", false, "failed", "failed"], ["lost", false, "failed", "failed"], ["journal", false, "completed", "finished"],
  ["journal", false, "stopped", "stopped"], ["paused", true, "failed", "paused"],
])("a run whose session is %s, with a trainer: %s, and has ended %s, is %s", (state, connected, status, said) => {
  const finished = status === null ? null : { status, step: 4 };
  expect(standing(session({ state, connected, finished }))).toBe(said);
});
