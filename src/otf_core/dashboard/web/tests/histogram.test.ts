import { expect, test } from "vitest";
import { about, byKey, extentOf, heightOf, lossTicks, moved, ticksOf, worstTenth } from "../src/histogram";

const figures = { edges: [0, 1, 2, 4], counts: [1000, 100, 1] };

test("one sample is seen, and a power of ten is always the same height", () => {
  const heights = [1, 10, 100, 1000].map((n) => heightOf(n, 1000));
  expect(heightOf(0, 1000)).toBe(0);
  expect(heights[0]).toBeGreaterThan(0.03);
  expect(heights[3]).toBeLessThan(1);
  const steps = heights.slice(1).map((height, i) => height - (heights[i] as number));
  for (const step of steps) expect(step).toBeCloseTo(steps[0] as number, 12);
});

test("the axis has round numbers, four of counts at most", () => {
  expect(ticksOf(1)).toEqual([1]);
  expect(ticksOf(1284)).toEqual([1, 10, 100, 1000]);
  expect(ticksOf(190_000)).toEqual([1, 100, 10_000]);
  expect(lossTicks(0, 6.2)).toEqual([0, 2, 4, 6]);
  expect(lossTicks(0.013, 0.31)).toEqual([0.1, 0.2, 0.3]);
  expect(lossTicks(2, 2)).toEqual([2]);
});

test("a range is about the bars that it covers, and parts of them", () => {
  expect(about(figures, { from: 0, to: 4 })).toBe(1101);
  expect(about(figures, { from: 1, to: 4 })).toBe(101);
  expect(about(figures, { from: 1.5, to: 2 })).toBe(50);
  expect(about({ edges: [2, 2], counts: [7] }, { from: 2, to: 2 })).toBe(7);
});

test("a handle stays within the losses and does not pass the other one", () => {
  const extent = { from: 0, to: 4 };
  expect(moved({ from: 1, to: 3 }, "from", -5, extent)).toEqual({ from: 0, to: 3 });
  expect(moved({ from: 1, to: 3 }, "from", 3.5, extent)).toEqual({ from: 3, to: 3 });
  expect(moved({ from: 1, to: 3 }, "to", 99, extent)).toEqual({ from: 1, to: 4 });
  expect(moved({ from: 1, to: 3 }, "to", 0.5, extent)).toEqual({ from: 1, to: 1 });
});

test("keys of a slider move by a hundredth or a tenth, and to the ends", () => {
  const extent = { from: 0, to: 4 };
  expect(byKey(2, "ArrowLeft", extent)).toBeCloseTo(1.96, 12);
  expect(byKey(2, "PageUp", extent)).toBeCloseTo(2.4, 12);
  expect(byKey(2, "Home", extent)).toBe(0);
  expect(byKey(2, "End", extent)).toBe(4);
  expect(byKey(2, "f", extent)).toBeNull();
});

test("at first the worst tenth is chosen", () => {
  const extent = extentOf(figures) as { from: number; to: number };
  expect(worstTenth([{ share: 0.5, loss: 0.2 }, { share: 0.9, loss: 1.7 }], extent)).toEqual({ from: 1.7, to: 4 });
  expect(worstTenth([], extent)).toEqual({ from: 3.6, to: 4 });
  expect(extentOf({ edges: [], counts: [] })).toBeNull();
});
