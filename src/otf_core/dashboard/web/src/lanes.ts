/** The timeline as facts: where each run leaves its parents, what happened in it. Pure functions. */

import { isDict } from "./columns";
import { count, setting, sig, span } from "./format";
import type { Told, Turn } from "./told";
import type { OtfEvent, Receipt, Run } from "./types";
import { byWhom, guardText, paramName } from "./words";

export type MarkKind = "command" | "checkpoint" | "fork" | "note" | "health" | "stall" | "pause";

export interface Mark {
  kind: MarkKind;
  step: number;
  text: string;
  /** A refused command. */
  bad?: boolean;
}

/** Marks that became one, since they would touch. */
export interface Group {
  /** Of the one that is shown. */
  kind: MarkKind;
  bad: boolean;
  step: number;
  at: number;
  texts: string[];
}

export interface Join {
  /** The run it comes from. */
  from: string;
  step: number;
}

/** Marks nearer than this on one lane become one. */
export const NEAR_PX = 9;

/** Where several marks meet, the weightiest is shown. */
const WEIGHT: Record<MarkKind, number> = { stall: 7, health: 6, fork: 5, command: 4, note: 3, pause: 2, checkpoint: 1 };

/** Marks nearer than 9 px on the lane become one with a count. */
export function gather(marks: readonly Mark[], x: (step: number) => number): Group[] {
  const groups: Group[] = [];
  for (const mark of marks) {
    const at = x(mark.step);
    const last = groups.at(-1);
    if (last === undefined || at - last.at >= NEAR_PX) {
      groups.push({ kind: mark.kind, bad: mark.bad === true, step: mark.step, at, texts: [mark.text] });
      continue;
    }
    last.texts.push(mark.text);
    if (WEIGHT[mark.kind] > WEIGHT[last.kind]) Object.assign(last, { kind: mark.kind, bad: mark.bad === true });
  }
  return groups;
}

/** From which runs, and at which steps of theirs, a run comes; `run` as the dashboard lists it. */
export function joinsOf(run: Run | undefined, events: readonly OtfEvent[], first: number | null): { start: number | null; joins: Join[] } {
  const said = events.find((event) => event.type === "newRun" && event.run_id === run?.run_id);
  const meta = isDict(said?.["meta"]) ? said["meta"] : {};
  const made: Record<string, unknown> = { ...meta, ...(run?.made ?? {}) };
  const at = typeof made["at_step"] === "number" ? made["at_step"] : first === null ? null : first - 1;
  const sources = Array.isArray(made["sources"]) ? made["sources"].map(String) : [];
  const joins = (run?.parents ?? []).map((from) => ({ from, step: stepOfSource(sources, from) ?? at ?? 0 }));
  return { start: joins.length === 0 ? first : at, joins };
}

/** "gentle/260-pause-2" is step 260 of gentle. */
function stepOfSource(sources: readonly string[], run: string): number | null {
  const found = sources.find((source) => source.startsWith(`${run}/`));
  const step = found === undefined ? NaN : Number.parseInt(found.slice(run.length + 1), 10);
  return Number.isNaN(step) ? null : step;
}

/** Lanes by age; where there are more than fit, the run in focus comes first. */
export function inOrder<T extends { key: string; letter: string }>(runs: readonly T[], focus: string, most: number): T[] {
  const sorted = [...runs].sort((a, b) => a.letter.length - b.letter.length || a.letter.localeCompare(b.letter));
  if (sorted.length <= most) return sorted;
  return [...sorted.filter((one) => one.key === focus), ...sorted.filter((one) => one.key !== focus)];
}

/** Marks of one run, in the order of their steps. `settled` are receipts with an outcome. */
export function marksOf(data: Told, settled: readonly Receipt[], stepAt: (ts: number) => number | null): Mark[] {
  const marks: Mark[] = [];
  const removed = new Set(
    data.events.filter((event) => event.type === "note" && event["removed"] === true).map((event) => event["note_id"]),
  );
  let promised = true;
  for (const event of data.events) {
    if (event.type === "exactness") {
      const worse = promised && event["exact"] === false;
      const step = typeof event.ts === "number" ? stepAt(event.ts) : null;
      if (worse && step !== null) marks.push({ kind: "health", step, text: `no longer exact from step ${count(step)}: ${String(event["text"] ?? "")}` });
      promised = event["exact"] !== false;
    }
    const mark = markOf(event, removed);
    if (mark !== null) marks.push(mark);
  }
  for (const pause of data.pauses) {
    const long = pause.to_ts === null ? "paused, still held" : `paused ${span(pause.to_ts - pause.from_ts)}`;
    marks.push({ kind: "pause", step: pause.step, text: `${long} at step ${count(pause.step)}` });
  }
  for (const turn of data.turns) marks.push({ kind: "command", step: turn.step, text: turnText(turn) });
  for (const receipt of settled) {
    const at = receipt.reply?.data?.["applied_step"];
    if (receipt.cmd === "validate_now" && receipt.state === "applied" && typeof at === "number") {
      marks.push({ kind: "command", step: at, text: `validated at step ${count(at)}` });
    }
    const refused = receipt.state === "refused" && receipt.answered_ts !== null ? stepAt(receipt.answered_ts) : null;
    if (refused !== null) {
      marks.push({ kind: "command", step: refused, bad: true, text: `${receipt.cmd} refused at step ${count(refused)}: ${receipt.reply?.detail ?? receipt.reply?.error ?? ""}` });
    }
  }
  return marks.sort((a, b) => a.step - b.step);
}

function turnText(turn: Turn): string {
  const from = turn.checkpoint === null ? "" : ` (${turn.checkpoint})`;
  if (turn.kind === "resume") return `resumed at step ${count(turn.step)} in a new process${from}`;
  if (turn.from === null || turn.from < turn.step) return `checkpoint of step ${count(turn.step)} loaded${from}`;
  return `rolled back from step ${count(turn.from)} to ${count(turn.step)}${from}`;
}

function markOf(event: OtfEvent, removed: Set<unknown>): Mark | null {
  const step = typeof event["applied_step"] === "number" ? event["applied_step"] : event.step;
  if (typeof step !== "number") return null;
  switch (event.type) {
    case "param_changed":
      return {
        kind: "command", step,
        text: `${paramName(String(event["path"]))} ${setting(event["old"])} → ${setting(event["new"])}, applied at step ${count(step)}${event["by"] === "guard" || event["who"] ? `, ${byWhom(event)}` : ""}`,
      };
    case "test_complete":
    case "auto_test_complete": {
      const loss = typeof event["avg_loss"] === "number" ? `, loss ${sig(event["avg_loss"])}` : "";
      return { kind: "command", step, text: `tested at step ${count(step)}${loss}` };
    }
    case "checkpoint_saved":
      return { kind: "checkpoint", step, text: `${String(event["kind"] ?? "checkpoint")} checkpoint at step ${count(step)}` };
    case "note":
      return removed.has(event["note_id"]) ? null : { kind: "note", step, text: `note at step ${count(step)}: ${String(event["text"] ?? "")}` };
    case "guard":
      return { kind: "health", step, text: `guard at step ${count(step)}, ${guardText(event)}` };
    case "rank_state":
      return event["state"] === "back" ? null : {
        kind: "health", step, bad: event["state"] === "failed", text: `rank ${setting(event["rank"])} ${String(event["state"])} at step ${count(step)}: ${String(event["why"] ?? "")}`,
      };
    case "stall":
      return event["over"] === true ? null : { kind: "stall", step, text: `stalled at step ${count(step)}${event["where"] ? `: ${String(event["where"])}` : ""}` };
    default:
      return null;
  }
}

/** Round steps for the axis. */
export function ticks(from: number, to: number, width: number): number[] {
  const most = Math.max(2, Math.floor(width / 60));
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  const stride = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? power * 10;
  const out: number[] = [];
  for (let at = Math.ceil(from / stride) * stride; at <= to; at += stride) out.push(at);
  return out;
}

/** Epoch labels that do not touch each other. */
export function spaced(epochs: readonly [number, number][], x: (step: number) => number): [number, number][] {
  const out: [number, number][] = [];
  let free = -Infinity;
  for (const [epoch, at] of [...epochs].sort((a, b) => a[1] - b[1])) {
    if (x(at) < free) continue;
    out.push([epoch, at]);
    free = x(at) + 64;
  }
  return out;
}
