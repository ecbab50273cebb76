/** What the tests are made of: a session, a receipt, events. */

import type { Held } from "../src/store";
import { SessionData } from "../src/told";
import type { View } from "../src/state";
import type { OtfEvent, Session } from "../src/types";

export const NOW = 1_750_000_000;

export function session(changes: Partial<Session> = {}): Session {
  return {
    session_id: "s1", run_id: "base", project: "cifar", run_name: null, state: "running", reason: null, step: 400, epoch: 3,
    max_steps: 50_000, max_epochs: null, connected: true, protocol: "otf/1", pid: 1, host: "gpu-box", device: "GPU",
    version: "0.2.0", started_ts: NOW - 900, last_ts: NOW, last_seq: 1, capabilities: [], pending: [], params: [],
    last_checkpoint: null, exactness: "exact", status: { steps_per_s: 15.3 }, status_ts: NOW, cadence: null,
    finished: null, journal_complete: true, ...changes,
  };
}

export function held(changes: Partial<Held> = {}): Held {
  return {
    id: "r1", cmd: "pause", payload: {}, by: "page", sent_ts: NOW, accepted_ts: null, waits_for: null, answered_ts: null,
    reply: null, state: "sent", first_ms: NOW * 1000, settled_ms: null, mine: true, ...changes,
  };
}

export function step(seq: number, at: number, more: Record<string, unknown> = {}): OtfEvent {
  return { type: "trainStep", event_seq: seq, ts: NOW + at, step: at, epoch: 0, run_gen: 0, loss: 1 / at, ...more };
}

export function told(...events: OtfEvent[]): SessionData {
  const data = new SessionData();
  for (const event of events) data.take(event);
  return data;
}

export function view(changes: Partial<View> = {}): View {
  return {
    session: session(), data: new SessionData(), link: { state: "up", delay_ms: null, rate_hz: 5 }, now_s: NOW,
    opened_s: NOW - 60, bestVal: null, bestStep: null, checkpointStep: null, checkpoints: [], partners: 0,
    undo: null, watching: false, ...changes,
  };
}
