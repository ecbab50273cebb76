/** Asks the server for the curves that the charts need and the page has not. */

import { BUCKETS, readPart, sizeOf, type Part } from "./curves";
import type { Lines } from "./lines";
import { getJson } from "./live";
import { KNOWN } from "./metrics";
import { runKey, store } from "./store";
import type { Session } from "./types";

/** Steps that came live and lie behind the curves, before these are asked for anew. */
export const TAIL = 20_000;
/** Of a long run these come first: the large chart is there before the others. */
const FIRST = ["loss", "val_loss"];
const LONG = 50_000;
/** A run that others train and that is not followed step by step. */
const AGAIN_MS = 3_000;

const known = new Set([...KNOWN.map((metric) => metric.key), "epoch"]);

interface Asked {
  busy: boolean;
  at_ms: number;
  turns: number;
  fine: string;
}

const asked = new Map<string, Asked>();

/** Whether every step of a run is here. */
export function isWhole(session: Session): boolean {
  return store.sessionsOf(session).every((one) => !store.partly.has(one.session_id));
}

/** Keep the curves of a run up to date for a range. Called once a frame for each run that is drawn. */
export function keep(session: Session, lines: Lines, zoom: { from: number; to: number } | null): void {
  if (store.link.state !== "up" || session.run_id === null) return;
  const key = runKey(session);
  let state = asked.get(key);
  if (state === undefined) asked.set(key, (state = { busy: false, at_ms: 0, turns: 0, fine: "" }));
  if (state.busy) return;
  const { columns } = lines;
  const now = Date.now();
  const long = columns.length > TAIL;
  if (isWhole(session) && !long && lines.whole === null) return;
  const turns = columns.undone.length + store.toldOf(session).turns.length;
  const last = store.runOf(session)?.summary?.step ?? session.step ?? 0;
  const followed = columns.length > 0 && (columns.lastStep() ?? 0) >= last - 1;
  const behind = lines.stale || lines.whole === null || turns !== state.turns || long || (!followed && last !== lines.whole.to);
  if (behind && (lines.stale || now - state.at_ms > AGAIN_MS)) {
    lines.stale = false;
    Object.assign(state, { busy: true, at_ms: now, turns });
    void whole(session, lines, state);
    return;
  }
  if (zoom === null || lines.whole === null) return;
  const fine = `${zoom.from} ${zoom.to} ${turns}`;
  const finest = sizeOf(zoom.from, zoom.to, BUCKETS) < lines.whole.size;
  if (!finest || fine === state.fine || zoom.from > lines.whole.to || zoom.to < lines.whole.from) return;
  Object.assign(state, { busy: true, fine });
  void finer(session, lines, zoom, state);
}

async function whole(session: Session, lines: Lines, state: Asked): Promise<void> {
  const last = store.runOf(session)?.summary?.step ?? 0;
  if (lines.whole === null && last > LONG) put(lines, await ask(session, { names: FIRST.join(",") }));
  const part = await ask(session, {});
  state.busy = false;
  if (part === null) {
    // Nothing to be had from this server: what is here is all there is.
    if (lines.whole === null) state.at_ms = Date.now() + 10 * AGAIN_MS;
    return;
  }
  lines.fine = null;
  state.fine = "";
  put(lines, part);
  if (!isWhole(session) || lines.columns.length > TAIL) store.forget(session, part.to - TAIL / 10);
  store.changed();
}

function put(lines: Lines, part: Part | null): void {
  if (part === null) return;
  lines.whole = part;
  lines.parts += 1;
  store.changed();
}

async function finer(session: Session, lines: Lines, zoom: { from: number; to: number }, state: Asked): Promise<void> {
  const part = await ask(session, { from: String(Math.max(0, zoom.from)), to: String(zoom.to) });
  state.busy = false;
  if (part === null) return;
  lines.fine = part;
  lines.parts += 1;
  store.changed();
}

async function ask(session: Session, query: Record<string, string>): Promise<Part | null> {
  const search = new URLSearchParams({ buckets: String(BUCKETS), project: session.project ?? "", ...query });
  const answer = await getJson(`api/runs/${encodeURIComponent(session.run_id ?? "")}/metrics?${search.toString()}`);
  return readPart(answer, known);
}
