import { expect, test } from "vitest";
import { family } from "../src/family";
import { accuracyOf, asked, axisOf, bestCandidate, bestParent, notMergeable, partedAt, placeOn, previewOf, rowsOf } from "../src/merging";
import type { Run } from "../src/types";

const data = {
  parents: [{ run_id: "b", checkpoint: "110-pause", score: 0.298, metrics: { val_acc: 0.911 } }, { run_id: "c", checkpoint: null, score: 0.351, metrics: {} }],
  candidates: [
    { strategy: "linear", score: 0.327, metrics: { "val/accuracy": 0.899 }, told: ["a"], seconds: 2 },
    { strategy: "fisher", score: 0.289, metrics: {}, told: [], seconds: 3 },
    { strategy: "adapter", score: null, refused: "no adapters" },
  ],
};
const preview = previewOf(rowsOf(data));

test("a preview is its parents and candidates, as the trainer has them", () => {
  expect(preview.parents.map((one) => one.score)).toEqual([0.298, 0.351]);
  expect(preview.candidates.map((one) => [one.strategy, one.score, one.refused])).toEqual([
    ["linear", 0.327, null], ["fisher", 0.289, null], ["adapter", null, "no adapters"],
  ]);
  expect(bestParent(preview)?.run_id).toBe("b");
  expect(bestCandidate(preview)?.strategy).toBe("fisher");
  expect(bestCandidate({ parents: [], candidates: [] })).toBeNull();
});

test("all lie on one axis, the best near its left end", () => {
  const axis = axisOf(preview) as { low: number; high: number };
  const places = [0.289, 0.298, 0.351].map((score) => placeOn(axis, score));
  expect(places[0]).toBeGreaterThan(0);
  expect(places[2]).toBeLessThan(100);
  expect([...places].sort((a, b) => a - b)).toEqual(places);
  expect(axisOf({ parents: [], candidates: [] })).toBeNull();
  expect(placeOn(axisOf(previewOf([{ run_id: "x", score: 2 }])) as { low: number; high: number }, 2)).toBeCloseTo(50, 9);
});

test("accuracy is found by its name and by nothing that only has its letters", () => {
  expect(accuracyOf({ val_acc: 0.9 })).toBe(0.9);
  expect(accuracyOf({ val_accuracy_top1: 0.8 })).toBe(0.8);
  expect(accuracyOf({ accumulated: 3, val_loss: 1 })).toBeNull();
});

test("checkpoints are named for all parents or for none", () => {
  const options = { recalibrate: false, limit_batches: null };
  expect(asked([{ run_id: "a", checkpoint: null }, { run_id: "b", checkpoint: null }], options)).toEqual({ parents: ["a", "b"] });
  expect(asked([{ run_id: "a", checkpoint: "3-pause" }, { run_id: "b", checkpoint: null }], { recalibrate: true, limit_batches: 2 }))
    .toEqual({ parents: ["a", "b"], checkpoints: ["3-pause", null], recalibrate: true, limit_batches: 2 });
});

test("one parent alone, or one named twice, is no merge", () => {
  const a = { run_id: "a", checkpoint: null };
  expect(notMergeable([a])).toBe("two parents are needed");
  expect(notMergeable([a, { ...a }])).toBe("one parent is named twice");
  expect(notMergeable([a, { run_id: "a", checkpoint: "3-pause" }])).toBeNull();
});

test("two runs parted where the first of them left what they have in common", () => {
  const run = (run_id: string, parents: string[], at_step: number): Run => ({
    run_id, project: null, run_name: run_id, session_ids: [], parents, created_ts: at_step, summary: null, checkpoints: [], made: { kind: "fork", at_step },
  });
  const members = family([run("a", [], 0), run("b", ["a"], 120), run("c", ["a"], 200), run("d", ["c"], 260)], [], null, () => "A");
  expect(partedAt(members, "a", "b")).toEqual({ run_id: "a", step: 120 });
  expect(partedAt(members, "b", "d")).toEqual({ run_id: "a", step: 120 });
  expect(partedAt(members, "d", "c")).toEqual({ run_id: "c", step: 260 });
  expect(partedAt(members, "a", "elsewhere")).toBeNull();
});
