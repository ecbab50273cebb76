import { expect, test } from "vitest";
import { cli, nearest, nearestCheckpoints, outcome, paramName, unchanged, waits, what, why } from "../src/words";
import { held, NOW } from "./facts";

test.each([
  ["lr", "Learning rate"], ["optim.0.groups.1.lr", "Learning rate, group 1"],
  ["optim.1.groups.0.weight_decay", "Weight decay, optimizer 1, group 0"], ["something.else", "something.else"],
])("the parameter %s is called %s", (path, name) => expect(paramName(path)).toBe(name));

const LR = [{ path: "lr", kind: "float", value: 0.1 }];

test("what a command asks for says old and new", () => {
  const set = held({ cmd: "set_param", payload: { path: "lr", value: 0.06 } });
  expect(what(set, LR)).toBe("Learning rate 0.1 → 0.06");
  expect(what(set, [])).toBe("Learning rate → 0.06");
  expect(what(held({ cmd: "set_param", payload: { path: "lr", release: true } }), LR)).toBe("Learning rate back to the script");
  expect(what(held({ cmd: "stop", payload: { save: false } }), [])).toBe("Stop without saving");
  expect(what(held({ cmd: "rollback", payload: { step: 12_000 } }), [])).toBe("Roll back to step 12,000");
});

test("applied is said only after the read-back, with its step", () => {
  const set = held({ cmd: "set_param", payload: { path: "lr", value: 0.06 }, accepted_ts: NOW, state: "accepted", waits_for: "safe_point" });
  expect(outcome(set, true, NOW * 1000)).not.toContain("applied");
  expect(outcome(set, true, NOW * 1000)).toContain("waiting for step end");
  const done = { ...set, state: "applied" as const, reply: { ok: true, data: { applied_step: 61, old: 0.1, new: 0.06 } } };
  expect(outcome(done, true, NOW * 1000)).toBe("applied at step 61, read back 0.06");
});

test("without a connection the outcome is unknown", () => {
  expect(outcome(held({ state: "accepted", accepted_ts: NOW }), false, NOW * 1000)).toBe("sent, no answer — unknown until reconnected");
});

const REFUSED = held({
  cmd: "set_param", payload: { path: "lr", value: 9 }, state: "refused",
  reply: { ok: false, code: "bad_payload", detail: "lr 9 asked; 0 to 2 allowed", allowed: { min: 0, max: 2 } },
});

test("a refusal says why, that nothing changed, and the nearest that works", () => {
  expect(why(REFUSED)).toBe("lr 9 asked; 0 to 2 allowed.");
  expect(unchanged(REFUSED, LR)).toBe("Nothing changed: learning rate is still 0.1.");
  expect(nearest(REFUSED)).toBe(2);
  expect(nearest({ ...REFUSED, payload: { path: "lr", value: -1 } })).toBe(0);
  expect(nearest({ ...REFUSED, payload: { path: "lr", value: 1 } })).toBeNull();
});

test("a refused rollback offers the nearest steps that there are", () => {
  const asked = held({ cmd: "rollback", state: "refused", reply: { ok: false, allowed: [300, 400] } });
  expect(nearestCheckpoints(asked).map((one) => one.label)).toEqual(["step 300", "step 400"]);
});

test.each([
  ["pause", {}, "otf pause --run base"],
  ["set_param", { path: "lr", value: 0.06 }, "otf set lr 0.06 --run base"],
  ["set_param", { path: "lr", release: true }, "otf resume lr --run base"],
  ["rollback", { checkpoint: "300-ring" }, "otf rollback 300-ring --run base"],
  ["stop", { save: false }, "otf stop --no-save --run base"],
])("%s with %j on the command line", (cmd, payload, line) => expect(cli(cmd, payload as never, "base")).toBe(line));

test("a hostile run name stays one word of the shell", () => {
  expect(cli("pause", {}, "a'; rm -rf $HOME")).toBe("otf pause --run 'a'\\''; rm -rf $HOME'");
});

test("what a command waits for", () => {
  expect([waits(null), waits("safe_point"), waits("step 500")]).toEqual(["the trainer", "step end", "step 500"]);
});
