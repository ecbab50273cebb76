// @vitest-environment happy-dom
import { beforeEach, expect, test } from "vitest";
import { notices } from "../src/notices";
import { store } from "../src/store";
import type { FromServer, Session } from "../src/types";
import { held, session } from "./facts";

const said = (): string[] => notices.list.map((one) => `${one.kind}: ${one.text}`);

function hear(message: FromServer): void {
  notices.hear(message);
  store.take(message);
}

let number = 0;
let key = "";

function tell(changes: Partial<Session>): void {
  hear({ kind: "session", session: session({ session_id: key, run_id: key, run_name: "base", ...changes }) });
}

beforeEach(() => {
  key = `s${(number += 1)}`;
  notices.list = [];
  notices.unread = 0;
  store.welcomed = true;
  tell({});
});

test("what was so when the page came is no news; what becomes so is, once", () => {
  expect(said()).toEqual([]);
  tell({ state: "paused", reason: "user" });
  tell({ state: "paused", reason: "user" });
  expect(said()).toEqual(["paused: base is paused"]);
  expect(notices.unread).toBe(1);
  tell({});
  tell({ state: "failed", finished: { status: "failed", step: 412, error: "out of memory" } });
  expect(said()[0]).toBe("failed: base failed");
  expect(notices.list[0]?.detail).toBe("at step 412, out of memory");
});

test("a stall of any run is told, once, and none from the history", () => {
  const stall = { type: "stall", event_seq: 5, ts: Date.now() / 1000, step: 7, seconds: 12, where: "collate", over: false };
  hear({ kind: "events", session_id: key, events: [stall], history: true } as FromServer);
  expect(said()).toEqual([]);
  hear({ kind: "events", session_id: key, events: [stall] });
  hear({ kind: "events", session_id: key, events: [stall] });
  expect(said()).toEqual(["stalled: base stalls"]);
});

test("a refusal of somebody else is told, one of this page has its banner", () => {
  const refused = held({
    id: `x${key}`, cmd: "test_now", state: "refused", answered_ts: null, by: "cli", reply: { ok: false, detail: "no test loader" },
  });
  hear({ kind: "receipt", session_id: key, receipt: refused });
  expect(said()).toEqual(["refused: Test refused"]);
  expect(notices.list[0]?.detail).toContain("no test loader. Asked from cli.");
  store.mine.add("mine");
  hear({ kind: "receipt", session_id: key, receipt: { ...refused, id: "mine" } });
  expect(said()).toHaveLength(1);
});

test("a link that only watches, an old build and another's store are known from the welcome", () => {
  hear({ kind: "welcome", server_ts: 0, version: "1", build: "new", read_only: true, store: { mode: "reader" }, sessions: [], runs: [] });
  expect([store.watching, store.served]).toEqual([true, "new"]);
  expect(store.kept).toContain("read-only copy");
  hear({ kind: "welcome", server_ts: 0, version: "1", store: { mode: "writer", text: null }, sessions: [], runs: [] });
  expect([store.watching, store.served, store.kept]).toEqual([false, null, null]);
});
