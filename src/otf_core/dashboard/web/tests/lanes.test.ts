import { expect, test } from "vitest";
import { gather, inOrder, joinsOf, marksOf, spaced, ticks, type Mark } from "../src/lanes";
import type { Run } from "../src/types";
import { held, NOW, told } from "./facts";

const run = (run_id: string, parents: string[] = [], made: Run["made"] = null): Run => ({
  run_id, project: "p", run_name: run_id, session_ids: ["s"], parents, created_ts: NOW, summary: null, checkpoints: [], made,
});

const mark = (kind: Mark["kind"], step: number): Mark => ({ kind, step, text: `${kind} ${step}` });

test("marks nearer than 9 px are one with a count, those at 9 px are two", () => {
  const groups = gather([mark("checkpoint", 10), mark("note", 18), mark("pause", 27)], (step) => step);
  expect(groups.map((one) => [one.step, one.texts.length])).toEqual([[10, 2], [27, 1]]);
});

test("of marks that meet the weightiest shows its shape", () => {
  const groups = gather([mark("checkpoint", 1), mark("stall", 2), mark("note", 3)], (step) => step);
  expect(groups).toEqual([{ kind: "stall", bad: false, step: 1, at: 1, texts: ["checkpoint 1", "stall 2", "note 3"] }]);
});

test("a fork leaves its parent at the step where it was made", () => {
  expect(joinsOf(run("hard", ["digits"], { kind: "fork", from: "digits", at_step: 120 }), [], 121)).toEqual({
    start: 120, joins: [{ from: "digits", step: 120 }],
  });
  expect(joinsOf(run("hard", ["digits"]), [], 121).start).toBe(120); // nobody has said where
});

test("a merge joins each parent where its weights were taken", () => {
  const made = { kind: "merge", from: "digits", at_step: 200, sources: ["digits/200-ring", "gentle/260-pause-2"] };
  expect(joinsOf(run("both", ["digits", "gentle"], made), [], 201)).toEqual({
    start: 200, joins: [{ from: "digits", step: 200 }, { from: "gentle", step: 260 }],
  });
  const event = { type: "newRun", run_id: "both", meta: made };
  expect(joinsOf(run("both", ["digits", "gentle"]), [event], 201).joins[1]).toEqual({ from: "gentle", step: 260 });
});

test("a run without parents begins with its first step", () => {
  expect(joinsOf(run("base"), [], 1)).toEqual({ start: 1, joins: [] });
});

test("lanes go by letter; where there are too many the run in focus is on top", () => {
  const runs = ["B", "A", "AA", "C"].map((letter) => ({ key: letter, letter }));
  expect(inOrder(runs, "C", 6).map((one) => one.key)).toEqual(["A", "B", "C", "AA"]);
  expect(inOrder(runs, "C", 3).map((one) => one.key)).toEqual(["C", "A", "B", "AA"]);
});

test("a refused command is a mark of its own where the run was", () => {
  const refused = held({ cmd: "set_param", state: "refused", settled_ms: 1, answered_ts: NOW, reply: { ok: false, detail: "at most 10" } });
  expect(marksOf(told(), [refused], () => 40)).toEqual([
    { kind: "command", step: 40, bad: true, text: "set_param refused at step 40: at most 10" },
  ]);
});

test("a note that was taken back is no mark", () => {
  const data = told(
    { type: "note", event_seq: 1, step: 5, note_id: "n", text: "here" },
    { type: "note", event_seq: 2, step: 6, note_id: "m", text: "there" },
    { type: "note", event_seq: 3, step: 5, note_id: "n", removed: true },
  );
  expect(marksOf(data, [], () => null).map((one) => one.text)).toEqual(["note at step 6: there"]);
});

test("a promise that is broken is a mark of health, one that never was is none", () => {
  const said = (seq: number, exact: boolean) => ({ type: "exactness", event_seq: seq, ts: NOW + seq, exact, text: "not exact because x" });
  expect(marksOf(told(said(1, true), said(2, false)), [], () => 7).map((one) => [one.kind, one.step])).toEqual([["health", 7]]);
  expect(marksOf(told(said(1, true)), [], () => 7)).toEqual([]);
});

test("the axis has round steps, and epochs that do not touch", () => {
  expect(ticks(0, 500, 600)).toEqual([0, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500]);
  expect(spaced([[2, 50], [1, 0], [3, 70]], (step) => step)).toEqual([[1, 0], [3, 70]]);
});
