import { expect, test } from "vitest";
import { cameFrom, difference, family, selectionWords } from "../src/family";
import type { Dict, Run } from "../src/types";
import { session } from "./facts";

function run(run_id: string, at: number, more: Partial<Run> = {}): Run {
  return {
    run_id, project: "p", run_name: run_id, session_ids: ["s"], parents: [], created_ts: at,
    summary: { step: 10 * at, best_val_loss: 1 / at }, checkpoints: [], ...more,
  };
}

const runs = [
  run("m", 3, { parents: ["r", "<b>"], made: { kind: "merge", strategy: "fisher", at_step: 120, sources: ["r/120-auto", "<b>/500-pause"] } }),
  run("<b>", 2, {
    parents: ["r"],
    made: { kind: "fork", at_step: 100, subset_count: 126, selection: { kind: "region", minLoss: 2.1, maxLoss: 6.2 }, init_from: "100-auto" },
  }),
  run("r", 1, { checkpoints: [{ id: "120-auto", path: null, step: 120, kind: "auto", bytes: 1, ts: 1 }] }),
  run("other", 4, { project: "q" }),
];
const members = family(runs, [session({ session_id: "s", run_id: "m", project: "p", state: "paused", step: 33 })], "p", () => "A");

test("a family has the runs of its project, the oldest first, each with where it came from", () => {
  expect(members.map((one) => one.run_id)).toEqual(["r", "<b>", "m"]);
  expect(members.map((one) => one.state)).toEqual(["left", "left", "paused"]);
  expect(members.map((one) => one.step)).toEqual([10, 20, 33]);
  expect(members[2]?.parents.map((one) => [one.run_id, one.step])).toEqual([["r", 120], ["<b>", 500]]);
});

test("what came from what is said in words, and names stay text", () => {
  const letter = (): string => "A";
  expect(members.map((one) => cameFrom(one, letter))).toEqual(["started new", "A r at step 100", "A r at step 120 and A <b> at step 500"]);
  expect(members.map(difference)).toEqual(["first run", "126 samples: loss 2.100 – 6.200", "Fisher merge of 2 checkpoints"]);
});

test.each<[Dict, string]>([
  [{ kind: "quantile", from: 0.9, to: 1 }, "the worst 10 % by loss"],
  [{ kind: "quantile", from: 0, to: 0.25 }, "the best 25 % by loss"],
  [{ kind: "complement", of: { kind: "label_noise" } }, "all but doubtful labels"],
  [{ kind: "kmeans", k: 4, target_clusters: [3] }, "cluster 4 of 4 by loss"],
  [{ kind: "union", of: [{ kind: "label_noise" }, { kind: "quantile", from: 0.9, to: 1 }] }, "doubtful labels, or the worst 10 % by loss"],
  [{ kind: "what is to come" }, "chosen samples"],
])("the selection %j is %s", (selection, words) => {
  expect(selectionWords(selection)).toBe(words);
});
