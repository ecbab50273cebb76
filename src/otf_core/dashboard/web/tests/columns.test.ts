import { expect, test } from "vitest";
import { Columns, lowerBound, upperBound } from "../src/columns";
import { step } from "./facts";

function columns(...events: Parameters<Columns["add"]>[0][]): Columns {
  const made = new Columns();
  for (const event of events) made.add(event);
  return made;
}

test("an event that came twice counts once", () => {
  const made = columns(step(1, 1), step(2, 2));
  expect(made.add(step(2, 2))).toBe(false);
  expect(made.length).toBe(2);
});

test("a gap is filled in order", () => {
  const made = columns(step(1, 1), step(3, 3), step(2, 2));
  expect([...made.step.values.subarray(0, 3)]).toEqual([1, 2, 3]);
  expect(made.rowOf("loss")).toBe(2);
});

test("null is no value, and the latest one before a step is found", () => {
  const made = columns(step(1, 1, { val_loss: 0.5 }), step(2, 2, { val_loss: null }), step(3, 3, { val_loss: null }));
  expect(made.rowOf("val_loss")).toBe(0);
  expect(made.at("val_loss", made.rowOf("val_loss", 3))).toBe(0.5);
  expect(made.rowOf("nothing")).toBe(-1);
});

test("a rollback takes what came after it out of the line", () => {
  const made = columns(...[1, 2, 3, 4].map((at) => step(at, at)));
  made.turnBack(5, 2);
  expect(made.lastStep()).toBe(2);
  expect(made.undone).toHaveLength(1);
  expect(made.reach()).toBe(4);
  // Told late, from before the rollback: superseded.
  expect(made.add(step(4, 4))).toBe(false);
  made.add(step(6, 3, { run_gen: 1 }));
  expect(made.lastStep()).toBe(3);
});

test("a later generation supersedes what it does again", () => {
  const made = columns(...[1, 2, 3, 4].map((at) => step(at, at)), step(5, 3, { run_gen: 1, loss: 9 }));
  expect([...made.step.values.subarray(0, made.length)]).toEqual([1, 2, 3]);
  expect(made.at("loss", 2)).toBe(9);
});

test("more rows than there was room for keep their values", () => {
  const made = columns(...Array.from({ length: 3000 }, (_, i) => step(i + 1, i + 1)));
  expect(made.length).toBe(3000);
  expect(made.at("loss", 2999)).toBeCloseTo(1 / 3000);
});

test("what is let go of is gone, and the rest is as it was", () => {
  const made = columns(...Array.from({ length: 10 }, (_, i) => step(i + 1, i + 1, { val_loss: i === 3 ? 0.5 : null })));
  made.forget(6);
  expect([...made.step.values.subarray(0, made.length)]).toEqual([6, 7, 8, 9, 10]);
  expect(made.at("loss", made.rowOf("loss", 7))).toBeCloseTo(1 / 7);
  expect(made.rowOf("val_loss")).toBe(-1);
  made.add(step(11, 11));
  expect(made.lastStep()).toBe(11);
});

test("bounds", () => {
  const values = Float64Array.from([1, 3, 3, 5]);
  expect([lowerBound(values, 4, 3), upperBound(values, 4, 3), lowerBound(values, 4, 9), upperBound(values, 4, 0)]).toEqual([1, 3, 4, 0]);
});

test("smoothing goes on where it was left", () => {
  const made = columns(step(1, 1, { loss: 1 }), step(2, 2, { loss: 0 }));
  made.smoothed("loss", 0.5);
  made.add(step(3, 3, { loss: 0 }));
  expect([...(made.smoothed("loss", 0.5) as Float64Array).subarray(0, 3)]).toEqual([1, 0.5, 0.25]);
});
