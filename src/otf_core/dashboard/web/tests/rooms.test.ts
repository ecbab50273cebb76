// @vitest-environment happy-dom
import { expect, test } from "vitest";
import { checkpointsOf, resumeLine } from "../src/checkpoints";
import { find, stepIn, type Entry } from "../src/found";
import { KEYS, bind, bound, keyOf, listed, strike } from "../src/keys";
import { matching } from "../src/log";
import { progressOf, remaining, share } from "../src/progress";
import { titleOf } from "../src/title";
import { NOW, session, told, view } from "./facts";

const entry = (label: string, cli?: string, more: Partial<Entry> = {}): Entry =>
  ({ group: "Run", icon: "", label, hint: "", act: () => {}, ...(cli === undefined ? {} : { cli }), ...more });

test("the palette matches labels first, then the start of the verb, and no run names in it", () => {
  const all = [
    entry("Roll back…", "otf rollback 3 --run validator"), entry("Validate", "otf validate --run base"), entry("Test", "otf test --run valley"),
    entry("A base"), entry("Set learning rate…", "otf set lr", { also: "lr" }), entry("Gradient norm", undefined, { asked: true }),
  ];
  const labels = (query: string): string[] => find(all, query).map((one) => one.label);
  expect(labels("val")).toEqual(["Validate"]);
  expect(labels("rollb")).toEqual(["Roll back…"]);
  expect(labels("back roll")).toEqual(["Roll back…"]);
  expect(labels("lr")).toEqual(["Set learning rate…"]);
  expect(labels("set")).toEqual(["Set learning rate…"]);
  expect(labels("base")).toEqual(["A base"]);
  expect(labels("")).not.toContain("Gradient norm");
  expect(labels("norm")).toEqual(["Gradient norm"]);
});

test.each([["step 7420", 7420], ["7,420", 7420], ["Step 12k", 12_000], ["step", null], ["7420 x", null], ["lr", null], ["1.5", null]])(
  "a step in %j is %s", (query, step) => expect(stepIn(query)).toBe(step),
);

test("one table of keys: what is listed acts, and what nobody has bound is not listed", () => {
  const keys = KEYS.flatMap((row) => [...row.keys]);
  expect(new Set(keys).size).toBe(keys.length);
  expect(bound("m")).toBe(false);
  expect(listed().some((row) => row.shown === "M")).toBe(false);
  expect(strike("m")).toBe(false);
  let struck = 0;
  bind("m", () => { struck += 1; });
  expect(listed().some((row) => row.shown === "M")).toBe(true);
  expect(strike("m")).toBe(true);
  expect(struck).toBe(1);
  expect(keyOf("resume")).toBe("Space");
});

test("50,000 events are filtered within a frame or two, newest first", () => {
  const events = Array.from({ length: 50_000 }, (_, i) => ({
    type: i % 1000 === 0 ? "error" : "log", event_seq: i + 1, ts: NOW + i, level: "info", text: `line ${i}`,
  }));
  expect(matching(events, "", "all")).toHaveLength(50_000);
  const found = matching(events, "LINE 4999", "all").map((row) => row.text);
  expect(found).toEqual([...Array.from({ length: 10 }, (_, i) => `line ${49_999 - i}`), "line 4999"]);
  expect(matching(events, "", "bad")).toHaveLength(50);
  expect(matching(events, "nothing of it", "all")).toEqual([]);
});

test("how far a command is, until its state is over", () => {
  const progress = { type: "progress", event_seq: 2, ts: NOW, request_id: "r1", cmd: "validate_now", done: 41, total: 79, eta_s: 3 };
  const data = told({ type: "state", event_seq: 1, state: "validating" }, progress);
  const found = progressOf(data);
  expect(found === null ? null : [found.cmd, share(found), remaining(found, NOW + 1)]).toEqual(["validate_now", "41 of 79", "2 s"]);
  data.take({ type: "state", event_seq: 3, state: "running" });
  expect(progressOf(data)).toBeNull();
  expect(progressOf(told({ ...progress, total: 0 }))).toBeNull();
});

test("the title begins with the percent, or with what is wrong", () => {
  expect(titleOf(view({ session: session({ step: 12_400 }) }))).toBe("24 % · base · otf");
  expect(titleOf(view({ session: session({ state: "failed" }) }))).toBe("FAILED · base · otf");
  expect(titleOf(view({ session: null }))).toBe("no run · otf");
});

test("a checkpoint that is removed vanishes, and a hostile path stays one word", () => {
  const saved = { type: "checkpoint_saved", event_seq: 1, id: "300-ring", step: 300, path: "/r/300-ring.ckpt", kind: "ring", exact: true };
  expect(checkpointsOf(undefined, [saved]).map((one) => one.id)).toEqual(["300-ring"]);
  expect(checkpointsOf(undefined, [saved, { type: "checkpoint_removed", event_seq: 2, id: "300-ring" }])).toEqual([]);
  expect(resumeLine("/r/a; rm -rf ~.ckpt")).toBe("OTF_RESUME='/r/a; rm -rf ~.ckpt'");
});
