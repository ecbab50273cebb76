import { expect, test } from "vitest";
import { lineOf } from "../src/log";
import { costOf, failedText, heat, placesMeaning, placesText, rankNames, readPlaces, readRanks, stepOfCheckpoint, worstFirst, type Rank } from "../src/ranks";
import { band, stateOf } from "../src/state";
import { Joined } from "../src/told";
import type { OtfEvent } from "../src/types";
import { NOW, session, told, view } from "./facts";

test.each([
  [[1], "rank 1"], [[3, 0, 2], "ranks 0, 2, 3"], [[0, 1, 2, 3], "ranks 0–3"], [[0, 1, 2, 5, 7, 8], "ranks 0–2, 5, 7, 8"],
  [Array.from({ length: 4_000 }, (_, i) => 2 * i), "ranks 0, 2, 4, 6, 8, 10 and 3,994 more"],
])("%j are called %s", (ranks, name) => expect(rankNames(ranks)).toBe(name));

const HANG = readPlaces([
  { ranks: [0, 2, 3], where: "train.py:71 in forward", call: "broadcast", stack: ["train.py:71", "broadcast"] },
  { ranks: [1], where: "train.py:91 in step", call: "all_reduce", stack: "train.py:91\nall_reduce\n" },
  { ranks: [], where: "nowhere", call: null, stack: [] },
]);

test("the odd rank comes first, with what the places say of each other", () => {
  expect(placesText(HANG, [])).toBe("rank 1 in all_reduce, ranks 0, 2, 3 in broadcast");
  expect(HANG[0]?.stack).toEqual(["train.py:91", "all_reduce"]);
  expect(placesMeaning(HANG)).toBe("The calls differ: they may be waiting for each other.");
  const late = readPlaces([{ ranks: [0, 2], call: "all_reduce" }, { ranks: [1], where: "data.py:4 in read", call: null }]);
  expect(placesText(late, [3])).toBe("rank 1 in data.py:4 in read, ranks 0, 2 in all_reduce, rank 3 not heard");
  expect(placesMeaning(late)).toBe("Rank 1 is in no call to other ranks: most likely the others wait for it.");
  expect(placesMeaning(readPlaces([{ ranks: [0, 1], call: "barrier" }]))).toBe("All that answered wait in barrier.");
  expect(placesMeaning(readPlaces([{ ranks: [0, 1], where: "a" }]))).toBeNull();
  expect(placesText(readPlaces([{ ranks: [0] }]), [])).toBe("rank 0 at a place that nobody knows");
  expect(readPlaces(undefined)).toEqual([]);
});

const said = (data: ReturnType<typeof told>, changes: Partial<ReturnType<typeof session>> = {}): string =>
  band(view({ data, session: session({ max_steps: null, ...changes }) })).sentence.map((piece) => piece.text).join("");

test("a stall of several ranks names their places, that of one its line", () => {
  const stall = { type: "stall", event_seq: 1, ts: NOW, step: 400, seconds: 43, where: "train.py:71 in forward", over: false };
  expect(said(told(stall))).toBe("Stalled 43 s — base at step 400: train.py:71 in forward");
  expect(said(told({ ...stall, ranks: [{ ranks: [1], call: "all_reduce" }, { ranks: [0], call: "broadcast" }], unheard: [2] })))
    .toBe("Stalled 43 s — base at step 400: rank 0 in broadcast, rank 1 in all_reduce, rank 2 not heard");
});

const gone = (seq: number, rank: number, state: string, more: Record<string, unknown> = {}): OtfEvent =>
  ({ type: "rank_state", event_seq: seq, ts: NOW - 2, step: 400, rank, state, seconds: 5, exit_code: null, why: "", checkpoint: null, resume: null, ...more });

test("a silent rank is said in the sentence until it is back, in whatever order it was told", () => {
  const data = told(gone(1, 3, "silent"));
  expect(said(data)).toBe("Training base — step 400, epoch 3, rank 3 silent for 7 s");
  expect(band(view({ data })).tone).toBe("warn");
  expect(said(data, { state: "paused" })).toContain(", rank 3 silent for 7 s");
  expect(said(data, { connected: false })).not.toContain("silent");
  data.take(gone(3, 5, "silent", { seconds: 8 }));
  expect(said(data)).toContain("ranks 3, 5 silent for 10 s");
  data.take(gone(4, 3, "back"));
  expect(said(data)).toContain(", rank 5 silent for 10 s");
  data.take(gone(2, 5, "back"));
  expect(said(data)).toContain("rank 5 silent");
});

test("a failed rank is why the run failed, also where rank 0 was killed with it", () => {
  const data = told(gone(1, 3, "silent"), gone(2, 1, "failed", { exit_code: -9, why: "rank 1 on gpu ended with exit code -9 (SIGKILL)", checkpoint: "/runs/c/300-ring.ckpt" }));
  expect(stateOf(view({ data }))).toBe("failed");
  expect(stateOf(view({ data, session: session({ state: "finished" }) }))).toBe("finished");
  const sentence = "Failed base at step 400 — rank 1 on gpu ended with exit code -9 (SIGKILL); the checkpoint at 300 is intact";
  expect(said(data, { connected: false, state: "lost" })).toBe(sentence);
  expect(said(data, { state: "journal", connected: false })).toBe(sentence);
  expect(failedText([...told(gone(1, 2, "failed", { exit_code: 1 })).gone.values()])).toBe("rank 2 ended with exit code 1");
  const both = [...told(gone(1, 1, "failed", { why: "its process group broke." }), gone(2, 0, "failed", { ts: NOW })).gone.values()];
  expect(failedText(both)).toBe("rank 1: its process group broke, and 1 other after it");
  const later = new Joined().refresh([data, told({ type: "session_started", event_seq: 1, ts: NOW })]);
  expect(later.gone.size).toBe(0);
});

test("the log has it in words", () => {
  expect(lineOf(gone(1, 3, "silent", { why: "rank 3 was not heard for 5 s." }))).toEqual({ level: "warn", text: "rank 3 was not heard for 5 s" });
  expect(lineOf(gone(1, 1, "failed", { exit_code: -9, checkpoint: "300-ring", resume: "OTF_RESUME=auto python t.py" })))
    .toEqual({ level: "bad", text: "rank 1 failed; exit code -9; the checkpoint 300-ring is intact; OTF_RESUME=auto python t.py" });
  expect(lineOf(gone(1, 3, "back", { seconds: 12 })).text).toBe("rank 3 back after 12 s");
  expect(lineOf({ type: "stall", seconds: 43, ranks: [{ ranks: [0, 1], call: "barrier" }] }).text).toBe("no batch has ended for 43 s: ranks 0, 1 in barrier");
});

test("the samples of ranks replace each other and are no events", () => {
  const data = told({ type: "ranks", ts: NOW, step: 9, world_size: 2, slowest: 1, rows: [{ rank: 1, step_ms: 70, wait_ms: 5 }, { rank: 0, step_ms: 71, wait_ms: 30 }] });
  data.take({ type: "ranks", ts: NOW - 5, step: 4, world_size: 2, rows: [] });
  expect(data.events).toEqual([]);
  expect(data.eventsVersion).toBe(0);
  expect(data.ranks).toMatchObject({ step: 9, size: 2, slowest: 1 });
  expect(data.ranks?.rows.map((row) => [row.rank, row.state, row.loss])).toEqual([[0, "ok", null], [1, "ok", null]]);
  expect(band(view({ data })).facts.map((fact) => fact.map((piece) => piece.text).join(""))).toContain("2 ranks");
});

const rows = (...made: Partial<Rank>[]): Rank[] => readRanks({ type: "ranks", rows: made.map((row, rank) => ({ rank, ...row })) }, NOW).rows;

test("the worst come first: failed, silent, the slowest, then by their own part of a step", () => {
  const many = rows({ step_ms: 70, wait_ms: 0 }, { step_ms: 70, wait_ms: 60 }, { state: "silent" }, { step_ms: 70, wait_ms: 10 }, { state: "failed" }, { step_ms: 60, wait_ms: 0 });
  const ranks = { ts: NOW, step: 1, size: 6, slowest: 3, rows: many };
  expect(worstFirst(ranks, 4).map((row) => row.rank)).toEqual([4, 2, 3, 0]);
  expect(worstFirst(ranks, 16).map((row) => row.rank)).toEqual([4, 2, 0, 1, 3, 5]);
});

test("heat goes from the fastest to the slowest, and small differences are none", () => {
  const waits = rows({ step_ms: 100, wait_ms: 50 }, { step_ms: 100, wait_ms: 25 }, { step_ms: 100, wait_ms: 0 }, {}, { state: "silent", step_ms: 9 });
  expect(heat(waits)).toEqual([0, 0.5, 1, null, null]);
  const data = rows({ step_ms: 100, data_wait_ms: 1 }, { step_ms: 99, data_wait_ms: 2 });
  expect([costOf(waits).what, costOf(data).what, costOf(rows({ step_ms: 50 }, { step_ms: 100 })).what]).toEqual(["of its own", "for its data", ""]);
  expect(heat(data)[1]).toBeCloseTo(0.1);
  expect(heat([])).toEqual([]);
});

test.each([["300-ring", 300], ["/runs/a-1/checkpoints/12000-pause-2.ckpt", 12_000], ["best.ckpt", null], [null, null]])("the step of %s", (name, at) =>
  expect(stepOfCheckpoint(name)).toBe(at));
