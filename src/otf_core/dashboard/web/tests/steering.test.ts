// @vitest-environment happy-dom
import { expect, test } from "vitest";
import { curveFor, readComing } from "../src/plans";
import { marksOf } from "../src/lanes";
import { lineOf } from "../src/log";
import { notices } from "../src/notices";
import { band, controls } from "../src/state";
import { answerFor, asked, changesOf, readDraft, receiptFor, sections } from "../src/steering";
import { store } from "../src/store";
import type { Param } from "../src/types";
import { byWhom, changeText, cli, guardText, outcome, paramName, what } from "../src/words";
import { held, NOW, session, told, view } from "./facts";

const param = (path: string, changes: Partial<Param> = {}): Param => ({ path, kind: "float", value: 0.1, min: 0, max: 1, owner: "scheduler", ...changes });

test.each([
  [{ text: "0.06" }, { path: "lr", value: 0.06 }],
  [{ text: "0.06", mode: "override", until: "900" }, { path: "lr", value: 0.06, mode: "override", until: 900 }],
  [{ text: "0", over: "1,000", mode: "scale" }, { path: "lr", to: 0, over: 1000, shape: "linear" }],
  [{ text: "0", over: "20", shape: "cosine", until: "800" }, { path: "lr", to: 0, over: 20, shape: "cosine", until: 800 }],
])("%j typed for the rate at step 400 is %j", (draft, change) => {
  expect(readDraft(param("lr"), draft, 400)).toEqual({ ok: true, value: change });
});

test.each([
  [{ text: "2" }, "at most 1"], [{ text: "-1" }, "at least 0"], [{ text: "" }, "not a number"],
  [{ text: "0", over: "0" }, "over a whole number of steps"], [{ text: "0", over: "x" }, "over a whole number of steps"],
  [{ text: "0", until: "400" }, "until a step after 400"],
])("%j is not possible: %s", (draft, reason) => expect(readDraft(param("lr"), draft, 400)).toEqual({ ok: false, reason }));

test.each([
  [param("model.ema", { kind: "bool" }), "true", true], [param("x", { kind: "int", max: 9 }), "3", 3],
  [param("after_fit", { kind: "enum", choices: ["auto", "hold"] }), "hold", "hold"],
  [param("model.frozen", { kind: "str", min: null, max: null }), "net.0.*, net.1.*", "net.0.*, net.1.*"],
  [param("model.frozen", { kind: "str" }), "", ""],
])("a value of each kind: %j", (row, text, value) => expect(readDraft(row, { text }, 0)).toEqual({ ok: true, value: { path: row.path, value } }));

test("rows stand in their sections, the rate first", () => {
  const rows = ["momentum", "lr", "optim.0.groups.1.lr", "data.batch_size", "model.dropout.head", "model.ema"].map((path) => param(path));
  expect(sections(rows).map(([name, of]) => [name, of.map((one) => one.path)])).toEqual([
    ["", ["lr", "momentum"]], ["Model", ["model.dropout.head", "model.ema"]], ["Data", ["data.batch_size"]], ["Single groups", ["optim.0.groups.1.lr"]],
  ]);
});

test.each([
  ["model.dropout", "Dropout"], ["model.dropout.net.8", "Dropout, net.8"], ["data.batch_size", "Batch size"], ["attr.mixup_alpha", "mixup_alpha"],
  ["data.sampler.weights.cat", "Sampler weight, cat"], ["trainer.accumulate_grad_batches", "Accumulated batches"], ["optim.0.groups.1.lr", "Learning rate, group 1"],
])("%s is called %s", (path, name) => expect(paramName(path)).toBe(name));

const BOTH = held({
  cmd: "set_params", state: "applied", payload: { changes: [{ path: "lr", to: 0, over: 9, until: 700 }, { path: "momentum", value: 0.8 }] },
  reply: { ok: true, data: { applied: [{ path: "lr", new: 0.1 }, { path: "momentum", new: 0.8 }], applied_step: 61, applied_on: { ranks: 3, of: 4 } } },
});

test("a change of several is a change of each, and its receipt says on how many ranks", () => {
  expect(changesOf(BOTH).map(asked)).toEqual(["0 over 9 steps, until step 700", "0.8"]);
  expect(receiptFor([held(), BOTH], "momentum")).toBe(BOTH);
  expect(answerFor(BOTH, "momentum")?.["new"]).toBe(0.8);
  expect(what(BOTH, [])).toBe("Set Learning rate and Momentum");
  expect(outcome(BOTH, true, 0)).toBe("applied at step 61 on 3 of 4 ranks, all read back");
  expect(outcome(held({ state: "applied", reply: { ok: true, data: { step: 61 } } }), true, 0)).toBe("applied at step 61");
  expect(cli("set_param", { path: "lr", to: 0, over: 9, until: 700 }, "base")).toBe("otf set lr --until 700 --to 0 --over 9 --run base");
});

test("what comes is read as the trainer tells it, and a refusal is said", () => {
  const coming = readComing({ ok: true, data: { step: [5, 6], now: { "optim.0.lr": [1, 2] }, then: { "optim.0.lr": [3, 4] }, ends: { step: 6, why: "over" }, assumes: ["x"], cut: true } });
  expect([curveFor(coming?.then ?? new Map(), "lr"), coming?.ends, coming?.assumes, coming?.cut]).toEqual([[3, 4], { step: 6, why: "over" }, ["x"], true]);
  expect(curveFor(coming?.then ?? new Map(), "eps")).toBeUndefined();
  expect(readComing({ ok: false, detail: "lr 9 asked" })?.refused).toBe("The trainer would refuse this: lr 9 asked.");
  expect(readComing({ ok: false, detail: "A preview was asked; X cannot be copied." })?.refused).toBe("No preview: A preview was asked; X cannot be copied.");
  expect(readComing(null)).toBeNull();
});

test("a change says what, who and why", () => {
  expect(changeText({ path: "lr", old: 0.1, new: 0.06, until: 900 })).toBe("Learning rate 0.1 → 0.06, until step 900");
  expect(changeText({ path: null, cmd: "extend", old: { max_steps: 400 }, new: { max_steps: 900 } })).toBe("Extend: 400 → 900");
  expect(changeText({ path: null, cmd: "rollback", old: { step: 90 }, new: { step: 40, checkpoint: "40-ring" } })).toBe("Roll back: 90 → 40 (40-ring)");
  expect(changeText({ path: null, cmd: "note", old: null, new: "warm" })).toBe("Note: warm");
  expect(cli("undo", { change: 7 }, "base")).toBe("otf undo 7 --run base");
  expect([{ by: "user", who: "ada@lab" }, { by: "guard", cause: "spike" }, { by: "user" }, { by: "until" }, { by: "undo", who: "ada@lab" }].map(byWhom))
    .toEqual(["ada@lab", "by the guard spike", "by user", "its time was over", "ada@lab, by undo"]);
});

const GUARD = { type: "guard", event_seq: 9, step: 420, ts: NOW, rule: "spike", metric: "loss", value: 4.2, bound: 2.1, action: "pause", did: "pause", budget_left: 1 };

test("what a guard did is on the timeline, in the log and at the bell", () => {
  expect(guardText(GUARD)).toBe("spike: loss 4.200, bound 2.100; pause");
  expect(guardText({ ...GUARD, text: "loss 4.2 is far above; the run is held" })).toBe("spike: loss 4.2 is far above; the run is held");
  expect(marksOf(told(GUARD), [], () => null)).toEqual([{ kind: "health", step: 420, text: "guard at step 420, spike: loss 4.200, bound 2.100; pause" }]);
  expect(lineOf(GUARD).level).toBe("warn");
  store.take({ kind: "welcome", server_ts: Date.now() / 1000, version: "0", sessions: [session({ last_seq: 9 })], runs: [] });
  notices.hear({ kind: "events", session_id: "s1", events: [{ ...GUARD, ts: Date.now() / 1000 }] });
  expect([notices.list[0]?.kind, notices.list[0]?.text]).toEqual(["guard", "base: guard spike"]);
});

test("a parked run says what it has given back, and offers to bring it back", () => {
  const parked = { freed_bytes: 14.1e9, since_s: 65 };
  const shown = view({ session: session({ state: "paused", capabilities: ["pause", "resume", "park", "set_param"], status: { steps_per_s: 15.3, parked } }) });
  expect(band(shown).sentence.map((one) => one.text).join("")).toContain("— GPU memory parked, 54 min of training left");
  expect(band(shown).facts[0]?.map((one) => one.text).join("")).toBe("14.1 GB of the GPU given back, 1 min 5 s ago");
  const line = (cmd: string): string | undefined => controls(shown, [], 0).find((one) => one.cmd === cmd)?.line;
  expect([line("resume"), line("park"), line("validate_now"), line("save_ckpt")]).toEqual(["brings back first", "to the GPU, stays paused", "not in this run", "not in this run"]);
  const running = view({ session: session({ capabilities: ["park"], status: { parked: null } }) });
  expect(controls(running, [], 0).some((one) => one.cmd === "park")).toBe(false);
});
