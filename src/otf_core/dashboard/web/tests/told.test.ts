import { expect, test } from "vitest";
import { Joined } from "../src/told";
import { NOW, step, told } from "./facts";

test("a pause begins and ends", () => {
  const data = told({ type: "paused", event_seq: 1, ts: NOW, step: 5 });
  expect(data.pauses).toEqual([{ step: 5, from_ts: NOW, to_ts: null }]);
  data.take({ type: "resumed", event_seq: 2, ts: NOW + 60, step: 5 });
  expect(data.pauses[0]?.to_ts).toBe(NOW + 60);
});

test("a stall began before it was told of, and a step ends it", () => {
  const data = told(step(1, 1), { type: "stall", event_seq: 2, ts: NOW, step: 1, seconds: 13, where: "train.py:91 in collate", over: false });
  expect(data.stall).toEqual({ step: 1, since_ts: NOW - 13, where: "train.py:91 in collate", stack: [], places: [], unheard: [], flight: [] });
  data.take(step(3, 2));
  expect(data.stall).toBeNull();
});

test("an event that comes late is put in its place and told once", () => {
  const data = told({ type: "note", event_seq: 1 }, { type: "note", event_seq: 4 }, { type: "log", event_seq: 2 }, { type: "log", event_seq: 2 });
  expect(data.events.map((event) => event.event_seq)).toEqual([1, 2, 4]);
});

test("a rollback is a turn from where the run was", () => {
  const data = told(step(1, 1), step(2, 2), { type: "checkpoint_loaded", event_seq: 3, step: 1, from_step: 2, path: "/r/1-ring.ckpt" });
  expect(data.turns).toEqual([{ kind: "rollback", step: 1, from: 2, checkpoint: "1-ring" }]);
  expect(data.columns.lastStep()).toBe(1);
});

test("a run that was resumed is one line over its sessions", () => {
  const first = told(step(1, 1), step(2, 2), step(3, 3));
  const second = told({ type: "checkpoint_loaded", event_seq: 1, step: 2, id: "2-ring" }, step(2, 3, { run_gen: 1 }), step(3, 4, { run_gen: 1 }));
  const joined = new Joined().refresh([first, second]);
  expect([...joined.columns.step.values.subarray(0, joined.columns.length)]).toEqual([1, 2, 3, 4]);
  expect(joined.turns.map((turn) => turn.kind)).toEqual(["resume"]);
  second.take(step(4, 5, { run_gen: 1 }));
  expect(joined.refresh([first, second]).columns.lastStep()).toBe(5);
});
