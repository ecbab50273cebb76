import { expect, test } from "vitest";
import { LEFT, runKey, store } from "../src/store";
import type { Run } from "../src/types";
import { NOW, session, step } from "./facts";

const run = (run_id: string, at: number, parents: string[] = [], session_ids = ["s1"]): Run => ({
  run_id, project: "cifar", run_name: run_id, session_ids, parents, created_ts: NOW + at, summary: { step: 10 * at }, checkpoints: [],
});

function welcome(runs: Run[], ...sessions: ReturnType<typeof session>[]): void {
  store.take({ kind: "welcome", server_ts: NOW, version: "0", sessions, runs });
}

globalThis.requestAnimationFrame ??= () => 0;

test("a run that its session has left is a run of its own, which nobody trains", () => {
  welcome([run("base", 1), run("hard", 2, ["base"])], session({ run_id: "hard" }));
  const base = store.byKey("cifar/base");
  expect([base?.state, base?.connected, base?.step, base?.reason]).toEqual([LEFT, false, 10, "hard"]);
  expect(store.sorted().map(runKey)).toEqual(["cifar/hard", "cifar/base"]);
  expect(store.sessionsOf(base as never).map((one) => one.session_id)).toEqual(["s1"]);
});

test("each run has its own steps, though one session told of both", () => {
  store.take({ kind: "events", session_id: "s1", events: [step(1, 1, { run_id: "base" }), step(2, 2, { run_id: "hard" })] });
  expect(store.linesOf(store.byKey("cifar/base") as never).lastStep()).toBe(1);
  expect(store.linesOf(store.byKey("cifar/hard") as never).lastStep()).toBe(2);
});

test("a session that begins another run takes the page along, but not from a run that it had left", () => {
  store.focus("cifar/hard");
  store.take({ kind: "session", session: session({ run_id: "soup" }) });
  expect(runKey(store.current() as never)).toBe("cifar/soup");
  store.focus("cifar/base");
  store.take({ kind: "session", session: session({ run_id: "hard" }) });
  expect(runKey(store.current() as never)).toBe("cifar/base");
});

test("the family is all that is kin, the run itself first; no other project", () => {
  const other = { ...run("base", 0, [], ["s9"]), project: "mnist" };
  welcome(
    [other, run("base", 1), run("hard", 2, ["base"]), run("soft", 3, ["base"]), run("soup", 4, ["hard", "soft"]), run("alone", 5)],
    session({ run_id: "soup" }), session({ session_id: "s9", project: "mnist" }),
  );
  const family = store.family(store.byKey("cifar/hard") as never);
  expect(family.map(runKey)).toEqual(["cifar/hard", "cifar/base", "cifar/soft", "cifar/soup"]);
});

test("a run over several sessions is spoken for by the one with a trainer", () => {
  welcome(
    [run("base", 1, [], ["s1", "s2"])],
    session({ session_id: "s2", state: "paused", started_ts: NOW }), session({ state: "interrupted", connected: false }),
  );
  expect(store.byKey("cifar/base")?.session_id).toBe("s2");
  expect(store.sorted()).toHaveLength(1);
});
