import { expect, test } from "vitest";
import { band, controls, left, stateOf, totalSteps } from "../src/state";
import { held, NOW, session, step, told, view } from "./facts";

const said = (of: Parameters<typeof band>[0]): string => band(of).sentence.map((piece) => piece.text).join("");

test("the state that is shown: connection before session, stall before running", () => {
  const stalled = told({ type: "stall", event_seq: 1, ts: NOW, step: 400, seconds: 43, where: null, over: false });
  expect(stateOf(view())).toBe("running");
  expect(stateOf(view({ data: stalled }))).toBe("stalled");
  expect(stateOf(view({ data: stalled, session: session({ state: "paused" }) }))).toBe("paused");
  expect(stateOf(view({ session: session({ connected: false }) }))).toBe("trainer-lost");
  expect(stateOf(view({ session: session({ connected: false, state: "finished" }) }))).toBe("finished");
  const lost = { state: "lost", since_ms: NOW, retry_at_ms: null } as const;
  expect(stateOf(view({ link: lost, data: stalled }))).toBe("connection-lost");
  expect(stateOf(view({ session: null }))).toBe("empty");
  expect(stateOf(view({ link: { state: "refused" } }))).toBe("refused");
});

test("a pause of hours is said in two units at most", () => {
  const data = told({ type: "paused", event_seq: 1, ts: NOW - 8040, step: 400 });
  expect(said(view({ session: session({ state: "paused" }), data }))).toBe("Paused base at step 400 for 2 h 14 min — 54 min of training left");
});

test("what is left is steps over rate, and nothing where either is unknown", () => {
  expect(left(session(), null)).toBeCloseTo((50_000 - 400) / 15.3);
  expect(left(session({ status: null }), null)).toBeNull();
  expect(left(session({ max_steps: null }), null)).toBeNull();
});

test("the total is worked out from the first epoch's length", () => {
  const data = told(step(1, 1), step(2, 11, { epoch: 1 }));
  expect(totalSteps(session({ max_steps: -1, max_epochs: 5 }), data)).toEqual({ steps: 50, exact: false });
});

test("a control is pending until it is answered, and refused until the next try", () => {
  const of = (...receipts: ReturnType<typeof held>[]): string[] =>
    controls(view(), receipts, NOW * 1000).filter((one) => one.cmd === "validate_now").map((one) => `${one.state}: ${one.line}`);
  expect(of()).toEqual(["idle: not run yet"]);
  expect(of(held({ cmd: "validate_now" }))).toEqual(["pending: waits for the trainer"]);
  expect(of(held({ cmd: "validate_now", first_ms: NOW * 1000 - 6000 }))).toEqual(["pending: no answer yet"]);
  expect(of(held({ cmd: "validate_now", state: "refused", settled_ms: 0 }))).toEqual(["refused: refused: see why"]);
  const applied = { ok: true, data: { applied_step: 412 } };
  expect(of(held({ cmd: "validate_now", state: "applied", settled_ms: NOW * 1000 - 100, reply: applied }))).toEqual(["applied: applied @ 412"]);
  expect(of(held({ cmd: "validate_now", state: "applied", settled_ms: NOW * 1000 - 7000, reply: applied }))).toEqual(["idle: not run yet"]);
});

test("offline nothing can be pressed, and every line says so", () => {
  const lines = controls(view({ link: { state: "lost", since_ms: 0, retry_at_ms: null } }), [], NOW * 1000);
  expect(new Set(lines.map((one) => `${one.state} ${one.line}`))).toEqual(new Set(["off offline"]));
});
