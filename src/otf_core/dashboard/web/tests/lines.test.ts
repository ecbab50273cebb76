import { expect, test } from "vitest";
import { Columns } from "../src/columns";
import { readPart, sizeOf } from "../src/curves";
import { bucketOf, Lines } from "../src/lines";
import { step } from "./facts";

function lines(...events: Parameters<Columns["add"]>[0][]): Lines {
  const columns = new Columns();
  for (const event of events) columns.add(event);
  return new Lines(columns);
}

/** As the server answers: of each bucket the least and the greatest. */
function answer(from: number, to: number, size: number, value: (at: number) => number): unknown {
  const told = { step: [] as number[], value: [] as number[], seq: [] as number[], session: [] as number[] };
  for (let at = Math.floor(from / size) * size; at <= to; at += size) {
    for (const one of [Math.max(from, at), Math.min(to, at + size - 1)]) {
      told.step.push(one);
      told.value.push(value(one));
      told.seq.push(one + 1000);
      told.session.push(0);
    }
  }
  return { run_id: "r", session_ids: ["s"], total: to - from + 1, from, to, bucket_steps: size, series: { loss: told, train_acc: told }, thinned: false };
}

test("a bucket is a power of two, and the range has at most as many as were asked for", () => {
  expect(sizeOf(0, 99, 100)).toBe(1);
  expect(sizeOf(0, 100, 100)).toBe(2);
  expect(sizeOf(1, 1_000_000, 1000)).toBe(1024);
  for (const [from, to, most] of [[3, 777, 40], [500, 5_500, 300]] as const) {
    const size = sizeOf(from, to, most);
    expect(Math.floor(to / size) - Math.floor(from / size)).toBeLessThan(most);
    expect(Math.floor(to / (size / 2)) - Math.floor(from / (size / 2))).toBeGreaterThanOrEqual(most);
  }
});

test("the same bucket for charts of nearly the same width, so that peaks line up", () => {
  expect(bucketOf(0, 12_500, 960)).toBe(bucketOf(0, 12_500, 967));
});

test("each bucket keeps its peak", () => {
  const run = lines(...Array.from({ length: 1000 }, (_, i) => step(i + 1, i + 1, { loss: i === 500 ? 99 : 1 })));
  const [x, high, low] = run.thinned("loss", 0, 1000, sizeOf(0, 1000, 50), 0, false);
  expect(x.length).toBeLessThanOrEqual(50);
  expect(Math.max(...high)).toBe(99);
  expect(Math.min(...low)).toBe(1);
});

test("a logarithmic axis leaves out what is not above zero", () => {
  const run = lines(step(1, 1, { loss: 0 }), step(2, 2, { loss: 0.5 }), step(3, 3, { loss: null }));
  expect(run.thinned("loss", 0, 3, 1, 0, true)).toEqual([[2], [0.5], [0.5], [0.5]]);
});

test("what the server has thinned goes on with what came live, each step once", () => {
  const run = lines(step(2001, 1001, { loss: 7 }), step(2002, 1002, { loss: 8 }));
  run.whole = readPart(answer(1, 1000, 64, (at) => at / 1000), new Set(["loss"]));
  expect(run.names().sort()).toEqual(["loss", "metrics.train_acc"]);
  expect([run.firstStep(), run.lastStep()]).toEqual([1, 1002]);
  const [x, high] = run.thinned("loss", 0, 1100, 64, 0, false);
  expect([...x].sort((a, b) => a - b)).toEqual(x);
  expect(new Set(x).size).toBe(x.length);
  expect(x.at(-1)).toBe(1002);
  expect(Math.max(...high)).toBe(8);
});

test("a value says the event that it came in, of either kind", () => {
  const run = lines(step(2001, 1001, { loss: 7 }));
  run.whole = readPart(answer(1, 1000, 64, (at) => at / 1000), new Set(["loss"]));
  expect(run.at("loss")).toEqual({ step: 1001, seq: 2001, value: 7 });
  expect(run.at("loss", 70)).toEqual({ step: 64, seq: 1064, value: 0.064 });
  expect(run.at("loss", 0)).toBeNull();
});

test("within a zoom the finer part is read", () => {
  const run = lines();
  run.whole = readPart(answer(1, 10_000, 1024, (at) => at), new Set(["loss"]));
  run.fine = readPart(answer(2000, 2100, 2, (at) => at), new Set(["loss"]));
  expect(run.at("loss", 2051)?.step).toBe(2051);
  expect(run.at("loss", 5000)?.step).toBe(4096);
  expect(run.thinned("loss", 2000, 2100, 1, 0, false)[0].length).toBeGreaterThan(90);
});

test("beside another run it says nothing where it does not reach", () => {
  const run = lines(step(5, 5), step(6, 6));
  expect(run.within("loss", 3)).toBeNull();
  expect(run.within("loss", 7)).toBeNull();
  expect(run.within("loss", 6)?.seq).toBe(6);
  expect(run.within("loss", null)?.seq).toBe(6);
});

test("an answer that is none is none", () => {
  for (const one of [null, [], {}, { series: {} }, { series: { loss: 1 }, from: null, to: null, bucket_steps: 1 }]) expect(readPart(one, new Set())).toBeNull();
});
