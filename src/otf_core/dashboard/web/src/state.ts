/** The state band's words: sentence, facts, and what each control may do. Pure functions of the store's facts. */

import { isDict } from "./columns";
import { bytes, clock, clockSeconds, count, plural, sig, span } from "./format";
import { isSettled, type Held, type Link } from "./store";
import type { Told } from "./told";
import { progressOf, remaining, share } from "./progress";
import { failedText, goneOf, placesText, silentText, stepOfCheckpoint, type Gone } from "./ranks";
import type { Checkpoint, Param, Session } from "./types";
import type { Undoable } from "./undo";
import { waits } from "./words";

export type Tone = "live" | "warn" | "bad" | "mute" | "done";

/** A piece of a sentence: strong ones are numbers and names. */
export interface Piece {
  text: string;
  kind?: "strong" | "verb" | "good" | "worse";
}

export interface Band {
  /** What the page takes the state to be, connection and stalls included. */
  state: string;
  tone: Tone;
  glyph: string;
  sentence: Piece[];
  facts: Piece[][];
}

export interface View {
  session: Session | null;
  data: Told | null;
  link: Link;
  now_s: number;
  opened_s: number;
  bestVal: number | null;
  bestStep: number | null;
  checkpointStep: number | null;
  checkpoints: Checkpoint[];
  /** Other runs of the project that have a checkpoint. */
  partners: number;
  undo: Undoable | null;
  /** This page may look and not command. */
  watching: boolean;
}

const b = (text: string): Piece => ({ text, kind: "strong" });
const t = (text: string): Piece => ({ text });
const v = (text: string): Piece => ({ text, kind: "verb" });

/** The name that people gave the run, else its id. */
export function nameOf(session: Session): string {
  return session.run_name || session.run_id || session.session_id;
}

/** Steps done: the newest that the page has seen. */
export function stepOf(session: Session, data: Told | null): number | null {
  const seen = data?.columns.lastStep() ?? null;
  if (session.step === null) return seen;
  if (seen === null) return session.step;
  // After a rollback the stream knows before the session does; what it told of is undone.
  const isUndone = session.step > seen && (data?.columns.undone.length ?? 0) > 0 && session.step <= (data?.columns.reach() ?? 0);
  return isUndone ? seen : Math.max(seen, session.step);
}

export function epochOf(session: Session, data: Told | null): number | null {
  const columns = data?.columns;
  const seen = columns !== undefined && columns.length > 0 ? columns.epoch.values[columns.length - 1] : undefined;
  const epoch = seen === undefined || Number.isNaN(seen) ? session.epoch : seen;
  return epoch;
}

/** Total number of steps, told by the trainer or worked out from the first epoch's length. */
export function totalSteps(session: Session, data: Told | null): { steps: number; exact: boolean } | null {
  if (session.max_steps !== null && session.max_steps > 0) return { steps: session.max_steps, exact: true };
  const starts = data?.columns.epochStarts;
  if (session.max_epochs === null || session.max_epochs <= 0 || starts === undefined) return null;
  const first = starts.get(0);
  const second = starts.get(1);
  if (first === undefined || second === undefined) return null;
  return { steps: (second - first) * session.max_epochs, exact: false };
}

export function speedOf(session: Session): number | null {
  const speed = session.status?.["steps_per_s"];
  return typeof speed === "number" && speed > 0 ? speed : null;
}

/** Seconds of training left; pauses, validation and stalls are not in it. */
export function left(session: Session, data: Told | null): number | null {
  const total = totalSteps(session, data);
  const step = stepOf(session, data);
  const speed = speedOf(session);
  if (total === null || step === null || speed === null) return null;
  return Math.max(0, total.steps - step) / speed;
}

/** The state the page shows. */
export function stateOf(view: View): string {
  const { session, link, data } = view;
  if (link.state === "refused") return "refused";
  if (session === null) {
    if (link.state === "up") return "empty";
    return link.state === "lost" ? "connection-lost" : "connecting";
  }
  if (link.state === "lost") return "connection-lost";
  // The launcher kills rank 0 as well: what it said last is the truth, not how it went.
  if (session.state !== "finished" && failedOf(data).length > 0) return "failed";
  if (session.state === "finished" || session.state === "failed" || session.state === "interrupted") {
    return session.state;
  }
  if (session.state === "journal" || session.state === "left") return session.state;
  if (session.state === "lost" || !session.connected) return "trainer-lost";
  if (data !== null && data.stall !== null && session.state !== "paused") return "stalled";
  return session.state;
}

/** Ranks that have failed. */
export function failedOf(data: Told | null): Gone[] {
  return data === null ? [] : goneOf(data.gone, "failed");
}

/** Ranks that are not heard, of a run that is there to be asked. */
export function silentOf(view: View): Gone[] {
  const here = view.session?.connected === true && view.link.state === "up" && !["failed", "finished"].includes(stateOf(view));
  return view.data === null || !here ? [] : goneOf(view.data.gone, "silent");
}

/** What the panel Health has to say: a stall, ranks that are silent or have failed. */
export function amissIn(view: View): number {
  return Number(stateOf(view) === "stalled") + silentOf(view).length + failedOf(view.data).length;
}

/** How many ranks a run has. */
export function ranksOf(session: Session, data: Told | null): number {
  const said = session.status?.["world_size"];
  return data?.ranks?.size ?? (typeof said === "number" ? said : 1);
}

export function band(view: View): Band {
  const found = sentenceOf(view);
  const silent = silentOf(view);
  if (silent.length === 0 || (view.data?.stall?.places.length ?? 0) > 0) return found;
  return { ...found, tone: found.tone === "bad" ? "bad" : "warn", sentence: [...found.sentence, t(", "), b(silentText(silent, view.now_s))] };
}

function sentenceOf(view: View): Band {
  const state = stateOf(view);
  const { session, data, link, now_s } = view;
  if (session === null) return withoutRun(state, view);
  const R = b(nameOf(session));
  const step = stepOf(session, data);
  const at = step === null ? [] : [t(" at step "), b(count(step))];
  const eta = left(session, data);
  const loss = validation(data);
  const facts = factsOf(view);
  switch (state) {
    case "running": {
      const total = totalSteps(session, data);
      const epoch = epochOf(session, data);
      const where: Piece[] = step === null ? [t("no step yet")] : [t("step "), b(count(step))];
      if (step !== null && total !== null) where.push(t(` of ${total.exact ? "" : "about "}${count(total.steps)}`));
      if (epoch !== null) where.push(t(`, epoch ${count(epoch)}`));
      if (loss !== null) where.push(t(", val loss "), ...loss);
      if (eta !== null && silentOf(view).length === 0) where.push(t(", "), b(span(eta)), t(" left"));
      return { state, tone: "live", glyph: "run", sentence: [v("Training "), R, t(" — "), ...where], facts };
    }
    case "starting":
      return {
        state, tone: "live", glyph: "wait",
        sentence: [v("Starting "), R, t(" — attached, the first step has not begun")], facts,
      };
    case "pausing":
      return {
        state, tone: "warn", glyph: "pausing",
        sentence: step === null
          ? [v("Pausing "), R, t(" — it holds at the end of this step")]
          : [v("Pausing "), R, t(" — finishing step "), b(count(step + 1)), t(", then it holds there")],
        facts,
      };
    case "paused": {
      const since = pausedSince(data);
      const how = since === null ? [] : [t(" for "), b(span(now_s - since))];
      const tail: Piece[] = session.reason === "after_fit"
        ? [t(" — training is done, the process is held")]
        : [t(" — "), ...(parkedOf(session) === null ? [] : [t("GPU memory parked, ")]),
           ...(eta === null ? [t("it goes on when you press Resume")] : [b(span(eta)), t(" of training left")])];
      return { state, tone: "warn", glyph: "paused", sentence: [v("Paused "), R, ...at, ...how, ...tail], facts };
    }
    case "validating":
    case "testing": {
      const verb = state === "validating" ? "Validating " : "Testing ";
      return {
        state, tone: "live", glyph: state === "validating" ? "val" : "test",
        sentence: [v(verb), R, ...at, ...evaluating(view)], facts,
      };
    }
    case "stalled": {
      const stall = data?.stall;
      const where = stall?.places.length ? `: ${placesText(stall.places, stall.unheard)}` : stall?.where ? `: ${stall.where}` : ": no batch has ended, and the trainer does not know where";
      return {
        state, tone: "bad", glyph: "stall",
        sentence: [
          v("Stalled "), b(span(now_s - (stall?.since_ts ?? now_s))), t(" — "), R, ...at, t(where),
        ],
        facts,
      };
    }
    case "connection-lost": {
      const lost = link.state === "lost" ? link.since_ms : Date.now();
      const seconds = (Date.now() - lost) / 1000;
      const ago = seconds < 1 ? "just now" : `${span(seconds)} ago`;
      const ended = ["finished", "failed", "interrupted", "journal"].includes(session.state);
      return {
        state, tone: "mute", glyph: "lost",
        sentence: ended
          ? [v("Connection lost "), t(`${ago} — `), R, t(" had ended"), ...at]
          : [v("Connection lost "), t(`${ago} — `), R, t(` was ${doing(session.state)}`), ...at,
             t("; it goes on without this page")],
        facts: [
          ...(session.last_ts === null ? [] : [[t(`last message ${clockSeconds(session.last_ts)}`)]]),
          [t("values below are from then")],
          [t("nothing you press is kept for later")],
        ],
      };
    }
    case "trainer-lost": {
      const since = session.last_ts === null ? "" : `${span(now_s - session.last_ts)} ago `;
      return {
        state, tone: "mute", glyph: "lost",
        sentence: [v("Trainer lost "), t(`${since}— `), R, t(" was last seen"), ...at,
                   t("; it connects again by itself if it still runs")],
        facts,
      };
    }
    case "finished": {
      const took = duration(session, data);
      const best = view.bestVal === null ? [] : [
        t(", best val loss "), b(sig(view.bestVal)),
        ...(view.bestStep === null ? [] : [t(" at step "), b(count(view.bestStep))]),
      ];
      return {
        state, tone: "done", glyph: "done",
        sentence: [v("Finished "), R, t(" — "), b(plural(session.finished?.step ?? step ?? 0, "step")),
                   ...(took === null ? [] : [t(" in "), b(span(took))]), ...best],
        facts,
      };
    }
    case "failed": {
      const failed = failedOf(data);
      const error = failed.length > 0 ? failedText(failed) : session.finished?.error || session.reason || "the trainer gave no reason";
      const whole = stepOfCheckpoint(failed[0]?.checkpoint ?? null) ?? view.checkpointStep;
      const kept = whole === null ? [] : [t("; the checkpoint at "), b(count(whole)), t(" is intact")];
      return { state, tone: "bad", glyph: "fail", sentence: [v("Failed "), R, ...at, t(` — ${error}`), ...kept], facts };
    }
    case "interrupted": {
      const kept = view.checkpointStep === null
        ? [t("no checkpoint was saved")]
        : [t("the checkpoint at "), b(count(view.checkpointStep)), t(" is intact")];
      return {
        state, tone: "done", glyph: "stop",
        sentence: [v("Interrupted "), R, ...at, t(" — stopped before its end, "), ...kept], facts,
      };
    }
    case "left":
      return {
        state, tone: "mute", glyph: "journal",
        sentence: [v("Left "), R, ...at, t(" — its process went on with "), b(session.reason ?? "another run"), t("; it stands as it was")],
        facts: [[t("everything here is recorded")], [t("a fork or a switch goes on from here")]],
      };
    case "journal": {
      const ago = session.last_ts === null ? "" : `, last written ${span(now_s - session.last_ts)} ago`;
      return {
        state, tone: "mute", glyph: "journal",
        sentence: [v("Journal of "), R, t(` — read from disk${ago}`), ...at, t("; no trainer attached")],
        facts: [
          [t("everything here is recorded, nothing is live")],
          ...(session.journal_complete ? [] : [[t("the journal has gaps")]]),
          [t("to control it, start the trainer again")],
        ],
      };
    }
    default:
      return { state, tone: "mute", glyph: "wait", sentence: [R, t(` — ${state}`), ...at], facts };
  }
}

function withoutRun(state: string, view: View): Band {
  switch (state) {
    case "refused":
      return {
        state, tone: "mute", glyph: "lost",
        sentence: [v("Not let in"), t(" — this page has no valid token; open the address that "), b("otf dashboard"), t(" printed")],
        facts: [[t("the token is new each time the dashboard starts")]],
      };
    case "connection-lost":
      return {
        state, tone: "mute", glyph: "lost",
        sentence: [v("Connection lost"), t(" — the dashboard does not answer; runs go on without this page")],
        facts: [[t("nothing you press is kept for later")]],
      };
    case "connecting":
      return { state, tone: "mute", glyph: "wait", sentence: [v("Connecting"), t(" to the dashboard")], facts: [] };
    default:
      return {
        state: "empty", tone: "mute", glyph: "wait",
        sentence: [v("No run yet"), t(" — this page listens and shows the first run within a second of its start")],
        facts: [[t(`listening since ${clock(view.opened_s)}`)]],
      };
  }
}

/** "batch 41 of 79, training continues in 3 s"; less where less is told. */
function evaluating(view: View): Piece[] {
  const held = pausedSince(view.data) !== null;
  const then = held ? "then it is held again" : "training goes on when it is done";
  const progress = progressOf(view.data);
  if (progress === null) return [t(` — ${then}`)];
  const left = remaining(progress, view.now_s);
  const of = ["validate_now", "test_now", "test"].includes(progress.cmd) ? "batch " : "";
  return [
    t(` — ${of}`), b(count(progress.done)), t(` of ${count(progress.total)}`),
    ...(left === null ? [t(`, ${then}`)] : [t(held ? ", then held again, in " : ", training continues in "), b(left)]),
  ];
}

function doing(state: string): string {
  return state === "running" ? "training" : state === "lost" ? "not connected" : state;
}

/** "0.312 ↓": the latest validation and which way it went. */
function validation(data: Told | null): Piece[] | null {
  const columns = data?.columns;
  if (columns === undefined || !columns.has("val_loss")) return null;
  const row = columns.rowOf("val_loss");
  const value = columns.at("val_loss", row);
  let before = row - 1;
  const values = columns.values("val_loss");
  while (before >= 0 && (Number.isNaN(values?.[before]) || values?.[before] === value)) before -= 1;
  const pieces = [b(sig(value))];
  if (before >= 0) {
    const down = value < columns.at("val_loss", before);
    pieces.push({ text: down ? " ↓" : " ↑", kind: down ? "good" : "worse" });
  }
  return pieces;
}

export function pausedSince(data: Told | null): number | null {
  const open = data?.pauses.at(-1);
  return open !== undefined && open.to_ts === null ? open.from_ts : null;
}

function pausedFor(data: Told | null, now_s: number): number {
  let sum = 0;
  for (const pause of data?.pauses ?? []) sum += (pause.to_ts ?? now_s) - pause.from_ts;
  return sum;
}

/** The same of the session that trained last. */
function pausedSinceStart(data: Told | null, started_s: number, now_s: number): number {
  const pauses = (data?.pauses ?? []).filter((pause) => pause.from_ts >= started_s);
  return pauses.reduce((sum, pause) => sum + (pause.to_ts ?? now_s) - pause.from_ts, 0);
}

function duration(session: Session, data: Told | null): number | null {
  const end = data?.columns.lastTs() ?? session.last_ts;
  if (session.started_ts === null || end === null) return null;
  const here = end - session.started_ts - pausedSinceStart(data, session.started_ts, end);
  return (data?.earlier_s ?? 0) + Math.max(0, here);
}

/** What a held run has given back of its device. */
export function parkedOf(session: Session): Record<string, unknown> | null {
  const said = session.status?.["parked"];
  return isDict(said) ? said : null;
}

function factsOf(view: View): Piece[][] {
  const { session, data, now_s } = view;
  if (session === null) return [];
  const facts: Piece[][] = [];
  const state = stateOf(view); // a rate and an end are said only while it trains
  const speed = speedOf(session);
  const eta = left(session, data);
  if (state === "pausing") {
    const asked = session.pending.find((one) => one.cmd === "pause")?.since_ts;
    if (asked !== null && asked !== undefined) facts.push([t(`asked ${span(now_s - asked)} ago`)]);
    if (speed !== null) facts.push([t(`a step takes about ${stepTime(speed)}`)]);
  }
  if (state === "running" && speed !== null) facts.push([b(sig(speed)), t(" steps/s")]);
  if (state === "running" && eta !== null && silentOf(view).length === 0) {
    facts.push([t("done about "), b(clock(now_s + eta)), t(" without pauses, validation and stalls")]);
  }
  const parked = state === "paused" ? parkedOf(session) : null;
  if (parked !== null) {
    const [freed, since] = [parked["freed_bytes"], parked["since_s"]];
    facts.push([...(typeof freed === "number" ? [b(bytes(freed)), t(" of the GPU given back")] : [t("the GPU is given back")]), ...(typeof since === "number" ? [t(`, ${span(since)} ago`)] : [])]);
    facts.push([t("resuming brings it back first")]);
  }
  const paused = pausedFor(data, now_s);
  if (state === "finished" || state === "failed" || state === "interrupted") facts.push(...keptFacts(view));
  if ((state === "validating" || state === "testing") && eta !== null) facts.push([t("training waits meanwhile, not counted in the time left: "), b(span(eta))]);
  if (paused >= 1 && state !== "paused") facts.push([t(`${span(paused)} of pauses so far`)]);
  const ranks = ranksOf(session, data);
  if (ranks > 1) facts.push([b(count(ranks)), t(" ranks")]);
  const device = session.device ?? "";
  const host = session.host ?? "";
  if (device || host) facts.push([t([device, host].filter(Boolean).join(" on "))]);
  if (session.project) facts.push([t(`project ${session.project}`)]);
  const rewritten = session.status?.["snapshot_age_s"];
  if (state === "running" && typeof rewritten === "number" && rewritten > 10) {
    facts.push([t(`status is ${span(rewritten)} old`)]);
  }
  return facts;
}

/** What is kept of a run that has ended, and what a resume would do again. */
function keptFacts(view: View): Piece[][] {
  const { checkpoints, data, session } = view;
  const facts: Piece[][] = [];
  if (checkpoints.length > 0) {
    const sizes = checkpoints.map((one) => one.bytes ?? 0).reduce((sum, one) => sum + one, 0);
    facts.push([t(`${plural(checkpoints.length, "checkpoint")}${sizes > 0 ? `, ${bytes(sizes)}` : ""}`)]);
  }
  const step = session === null ? null : stepOf(session, data);
  if (session?.state !== "finished" && step !== null && view.checkpointStep !== null && step > view.checkpointStep) {
    facts.push([t(`${plural(step - view.checkpointStep, "step")} to do again`)]);
  }
  if (session?.state === "finished" && data?.lastTest == null) facts.push([t("test not run")]);
  return facts;
}

function stepTime(steps_per_s: number): string {
  const seconds = 1 / steps_per_s;
  return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
}

// ---------------------------------------------------------------- controls

export type ControlState = "idle" | "pending" | "applied" | "refused" | "off";

export interface Control {
  cmd: string;
  label: string;
  state: ControlState;
  /** The line under the button. */
  line: string;
  primary: boolean;
  /** The line in full, where it is cut short. */
  hint?: string;
}

const APPLIED_SHOWN_MS = 6_000;

/** The latest receipt of one command. */
export function latest(receipts: Held[], fits: (receipt: Held) => boolean): Held | undefined {
  return receipts.find(fits);
}

/** Why no command can be given now, or null. */
export function closed(view: View): string | null {
  const { session, link } = view;
  if (link.state !== "up") return "offline";
  if (view.watching) return "watching only";
  if (session === null) return "no run";
  switch (stateOf(view)) {
    case "finished":
      return "finished";
    case "failed":
    case "interrupted":
      return "ended";
    case "journal":
      return "no trainer";
    case "left":
      return "not training";
    case "trainer-lost":
      return "trainer lost";
    default:
      return null;
  }
}

/** All controls of the band in order, from what the trainer and the receipts say. */
export function controls(view: View, receipts: Held[], now_ms: number): Control[] {
  const { session, data } = view;
  if (session === null) return [];
  const state = stateOf(view);
  const shut = closed(view);
  const holds = state === "paused";
  const parked = holds && parkedOf(session) !== null;
  const offered = (cmd: string): string | null => {
    if (shut !== null) return shut;
    if (session.capabilities.length > 0 && !session.capabilities.includes(cmd)) return "not in this run";
    if (state === "stalled") return "no step end";
    return parked && !["resume", "stop", "park"].includes(cmd) ? "parked" : null;
  };
  const make = (
    cmd: string, label: string, doing: string, fact: string, not: string | null, primary = false,
  ): Control => {
    const receipt = latest(receipts, (one) => one.cmd === cmd || (cmd === "rollback" && one.cmd === "load_ckpt"));
    const asked = session.pending.find((one) => one.cmd === cmd);
    const open = receipt !== undefined && !isSettled(receipt.state);
    if (shut === "offline") return { cmd, label, state: "off", line: "offline", primary: false };
    if (shut === null && (open || asked !== undefined)) {
      const quiet = open && receipt.state === "sent" && now_ms - receipt.first_ms > 5_000;
      const wait = open ? receipt.waits_for : (asked?.waits_for ?? null);
      const told = progressOf(data);
      if (told !== null && told.cmd === cmd) return { cmd, label: doing, state: "pending", line: share(told), primary };
      return { cmd, label: doing, state: "pending", line: quiet ? "no answer yet" : `waits for ${waits(wait)}`, primary };
    }
    if (not !== null) return { cmd, label, state: "off", line: not, primary: false };
    if (receipt?.state === "refused") return { cmd, label, state: "refused", line: "refused: see why", primary };
    if (receipt?.state === "applied" && now_ms - (receipt.settled_ms ?? 0) < APPLIED_SHOWN_MS) {
      const reply = receipt.reply?.data;
      const at = cmd === "rollback" ? "step" : "applied_step";
      const step = isDict(reply) ? (reply[at] ?? reply["step"]) : undefined;
      return {
        cmd, label, state: "applied", primary,
        line: typeof step !== "number" ? "applied" : cmd === "rollback" ? `back at ${count(step)}` : `applied @ ${count(step)}`,
      };
    }
    return { cmd, label, state: "idle", line: fact, primary };
  };

  const saved = view.checkpointStep;
  const step = stepOf(session, data);
  const busy = state === "pausing" ? "pausing" : null;
  const evaluating = state === "validating" || state === "testing";
  const pauseOff = offered("pause");
  const first = holds
    ? make("resume", "Resume", "Resuming", parked ? "brings back first" : step === null ? "goes on" : `from ${count(step + 1)}`, offered("resume"), true)
    : state === "pausing" && pauseOff === null
      ? { cmd: "pause", label: "Pausing", state: "pending" as const, line: "waits for step end", primary: true }
      : make("pause", "Pause", "Pausing", "at step end", pauseOff ?? (state === "starting" ? "not begun" : null), true);
  return [
    first,
    make("save_ckpt", "Save checkpoint", "Saving",
         saved === null ? "none yet" : saved === step && holds ? `saved at ${count(saved)}` : `last: step ${count(saved)}`,
         offered("save_ckpt")),
    make("validate_now", "Validate", "Validating", lastVal(data),
         offered("validate_now") ?? busy ?? (state === "testing" ? "after this" : state === "validating" ? "running" : null)),
    make("test_now", "Test", "Testing", data?.lastTest == null ? "not run yet" : `last: ${sig(data.lastTest)}`,
         offered("test_now") ?? busy ?? (state === "validating" ? "after this" : state === "testing" ? "running" : null)),
    make("fork", "Fork…", "Forking", view.checkpoints.length === 0 ? "from here" : `here, ${count(view.checkpoints.length)} kept`,
         offered("fork") ?? busy ?? (state === "starting" ? "not begun" : evaluating ? "after this" : null)),
    make("merge", "Merge…", "Merging", view.partners > 0 ? plural(view.partners, "partner") : "own checkpoints",
         offered("merge") ?? busy ?? (state === "starting" ? "not begun" : evaluating ? "after this"
           : view.partners === 0 && view.checkpoints.length < 2 ? "needs another run" : null)),
    make("rollback", "Roll back…", "Rolling back", `${count(view.checkpoints.length)} kept`,
         offered("rollback") ?? busy ?? (evaluating ? "after this" : view.checkpoints.length === 0 ? "none kept yet" : null)),
    {
      ...make("undo", "Undo", "Undoing", view.undo?.short ?? "", offered("undo") ?? (view.undo === null ? "nothing yet" : null)),
      ...(view.undo === null ? {} : { hint: `takes back: ${view.undo.text}` }),
    },
    make("extend", "Extend…", "Extending", limitOf(session), offered("extend")),
    make("stop", "Stop…", "Stopping", "asks first", offered("stop")),
    ...(holds && session.capabilities.includes("park")
      ? [parked ? make("park", "Bring back", "Bringing back", "to the GPU, stays paused", offered("park"))
        : make("park", "Park", "Parking", "frees the GPU", offered("park"))] : []),
  ];
}

const HELD: Record<string, string> = {
  hold: "the process stays when training is done", auto: "off", return: "off: fit returns", test: "off: tests, then returns",
};

/** The four states of the switch of a parameter, as of any control. */
export function switchState(view: View, param: Param, receipts: Held[], now_ms: number): { state: ControlState; line: string } {
  const shut = closed(view) ?? (stateOf(view) === "stalled" ? "no step end" : null);
  const receipt = latest(receipts, (one) => one.cmd === "set_param" && one.payload?.["path"] === param.path);
  if (shut !== null) return { state: "off", line: shut };
  if (receipt !== undefined && !isSettled(receipt.state)) {
    const quiet = receipt.state === "sent" && now_ms - receipt.first_ms > 5_000;
    return { state: "pending", line: quiet ? "no answer yet" : `waits for ${waits(receipt.waits_for)}` };
  }
  if (param.pending) return { state: "pending", line: "waits for the trainer" };
  if (receipt?.state === "refused") return { state: "refused", line: "refused: see why" };
  if (receipt?.state === "applied" && now_ms - (receipt.settled_ms ?? 0) < APPLIED_SHOWN_MS) {
    const step = isDict(receipt.reply?.data) ? receipt.reply.data["applied_step"] : undefined;
    return { state: "applied", line: typeof step === "number" ? `applied @ ${count(step)}` : "applied" };
  }
  return { state: "idle", line: HELD[String(param.value)] ?? `now ${String(param.value)}` };
}

/** "20 epochs": how long the run is to train. */
function limitOf(session: Session): string {
  if (session.max_epochs !== null && session.max_epochs > 0) return plural(session.max_epochs, "epoch");
  return session.max_steps !== null && session.max_steps > 0 ? plural(session.max_steps, "step") : "no limit";
}

function lastVal(data: Told | null): string {
  if (data === null) return "not run yet";
  if (data.lastValidation !== null) return `last: ${sig(data.lastValidation)}`;
  const row = data.columns.rowOf("val_loss");
  return row < 0 ? "not run yet" : `last: ${sig(data.columns.at("val_loss", row))}`;
}
