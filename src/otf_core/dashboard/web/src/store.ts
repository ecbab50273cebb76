/** What the page knows, and the one frame that shows it.
 *
 * Messages only write here and call `changed()`; everything is drawn in the next animation
 * frame, so a burst of messages costs one drawing and a hidden tab none.
 */

import { isDict } from "./columns";
import { Lines } from "./lines";
import { Joined, SessionData, type Told } from "./told";
import type { FromServer, Receipt, Reply, Run, Session } from "./types";

const RECEIPTS_KEPT = 100;

/** How the page stands with the server. */
export type Link =
  | { state: "connecting" }
  | { state: "up"; delay_ms: number | null; rate_hz: number }
  | { state: "lost"; since_ms: number; retry_at_ms: number | null }
  | { state: "refused" };

/** A receipt as the page holds it; `settled_ms` is when its outcome came in here. */
export interface Held extends Receipt {
  first_ms: number;
  settled_ms: number | null;
  mine: boolean;
}

const READS = new Set(["status", "ping", "list_params", "preview_params", "list_changes", "list_guards", "list_checkpoints", "select", "samples", "show_samples", "results", "cancel"]);

/** A command that only reads changes nothing that anybody has to be told of: it has no receipt here. */
export function isRead(cmd: string): boolean {
  return READS.has(cmd);
}

class Store {
  link: Link = { state: "connecting" };
  welcomed = false;
  version: string | null = null;
  /** What the page that is served now was built from. */
  served: string | null = null;
  /** The link only watches. */
  watching = false;
  /** What has to be said of the dashboard's store; null where it is whole and its own. */
  kept: string | null = null;
  /** Server time minus ours, in seconds. */
  skew_s = 0;
  readonly opened_ms = Date.now();
  readonly sessions = new Map<string, Session>();
  readonly runs = new Map<string, Run>();
  /** Of each session, by run: one that forks has several. */
  private readonly data = new Map<string, Map<string, SessionData>>();
  private readonly joined = new Map<string, Joined>();
  private readonly lines = new Map<string, Lines>();
  /** Made anew when a session or a run has changed. */
  private byRun: Map<string, Session[]> | null = null;
  private shown: Map<string, Session> | null = null;
  readonly receipts = new Map<string, Map<string, Held>>();
  /** Ids of the commands that were given on this page. */
  readonly mine = new Set<string>();
  readonly dismissed = new Set<string>();
  /** Who waits for the answer to a question, by its id. */
  readonly asked = new Map<string, (reply: Reply | null) => void>();
  /** The run in focus; once shown, it stays on the page until another is chosen. */
  private chosen: string | null = null;
  /** Sessions whose steps are here only from some event on; the server has the others. */
  readonly partly = new Set<string>();
  private frame: (() => void) | null = null;
  private queued = false;
  readonly letters = new Map<string, string>();

  /** The one function that draws; called in an animation frame after something changed. */
  onFrame(draw: () => void): void {
    this.frame = draw;
  }

  /** Something changed: draw it in the next frame. */
  readonly changed = (): void => {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.frame?.();
    });
  };

  /** Seconds since 1970 on the server's clock. */
  now(): number {
    return Date.now() / 1000 + this.skew_s;
  }

  /** What a session has told of a run; of the one that it trains, if none is named. */
  dataOf(session_id: string, run_id?: string | null): SessionData {
    const run = run_id ?? this.sessions.get(session_id)?.run_id ?? "";
    let runs = this.data.get(session_id);
    if (runs === undefined) this.data.set(session_id, (runs = new Map()));
    let found = runs.get(run);
    if (found === undefined) runs.set(run, (found = new SessionData()));
    return found;
  }

  /** The newest event of a session that is here, whichever run it is of. */
  lastSeqOf(session_id: string): number {
    return Math.max(0, ...[...(this.data.get(session_id)?.values() ?? [])].map((one) => one.lastSeq));
  }

  /** What the run of a session has told, over all its sessions. */
  toldOf(session: Session): Told {
    const parts = this.sessionsOf(session).map((one) => this.dataOf(one.session_id, session.run_id));
    if (parts.length === 1) return parts[0] as SessionData;
    const key = runKey(session);
    let found = this.joined.get(key);
    if (found === undefined) this.joined.set(key, (found = new Joined()));
    return found.refresh(parts);
  }

  /** The curves of the run of a session. */
  linesOf(session: Session): Lines {
    const { columns } = this.toldOf(session);
    const key = runKey(session);
    let found = this.lines.get(key);
    if (found === undefined) this.lines.set(key, (found = new Lines(columns)));
    found.columns = columns;
    return found;
  }

  /** Let go of steps that the server has thinned, so that a page that is open for days stays small. */
  forget(session: Session, step: number): void {
    for (const one of this.sessionsOf(session)) this.dataOf(one.session_id, session.run_id).columns.forget(step);
  }

  /** Steps will come again that did not while another run was in focus: what lies between is asked for. */
  rejoin(session: Session): void {
    this.dataOf(session.session_id).columns.forget(Infinity);
    this.linesOf(session).stale = true;
  }

  /** The sessions that have told of a session's run, the first first. */
  sessionsOf(session: Session): Session[] {
    this.byRun ??= this.grouped();
    return this.byRun.get(runKey(session)) ?? [session];
  }

  private grouped(): Map<string, Session[]> {
    const groups = new Map<string, Session[]>();
    const add = (key: string, session: Session): void => {
      const known = groups.get(key);
      if (known === undefined) groups.set(key, [session]);
      else if (!known.includes(session)) known.push(session);
    };
    for (const [key, run] of this.runs) {
      for (const id of run.session_ids) {
        const session = this.sessions.get(id);
        if (session !== undefined) add(key, session);
      }
    }
    for (const session of this.sessions.values()) add(runKey(session), session);
    for (const [key, group] of groups) {
      const order = this.runs.get(key)?.session_ids ?? [];
      const place = (one: Session): number => {
        const at = order.indexOf(one.session_id);
        return at < 0 ? order.length : at;
      };
      group.sort((a, b) => place(a) - place(b) || (a.started_ts ?? 0) - (b.started_ts ?? 0));
    }
    return groups;
  }

  /** Each run, as the session that speaks for it: the one with a trainer, else the last. */
  private all(): Map<string, Session> {
    if (this.shown !== null) return this.shown;
    this.byRun ??= this.grouped();
    const found = new Map<string, Session>();
    for (const [key, group] of this.byRun) {
      const own = group.filter((one) => runKey(one) === key);
      const run = this.runs.get(key);
      const speaker = own.findLast((one) => one.connected) ?? own.at(-1);
      if (speaker !== undefined) found.set(key, speaker);
      else if (run !== undefined) found.set(key, left(group.at(-1) as Session, run));
    }
    this.shown = found;
    return found;
  }

  /** A run by its key, as `runKey` says it. */
  byKey(key: string): Session | null {
    return this.all().get(key) ?? null;
  }

  /** One session for each run, newest first: those with a trainer, then the others. */
  sorted(): Session[] {
    const age = (one: Session): number => Math.max(this.runOf(one)?.created_ts ?? 0, one.started_ts ?? 0);
    return [...this.all().values()].sort(
      (a, b) => Number(b.connected) - Number(a.connected) || age(b) - age(a),
    );
  }

  /** The runs that are kin to one over parents and forks, itself first, then by age. */
  family(session: Session): Session[] {
    const own = runKey(session);
    const kin = kinOf(own, this.runs);
    return [own, ...[...kin].filter((key) => key !== own).sort((a, b) => this.age(a) - this.age(b))]
      .map((key) => (key === own ? session : this.byKey(key))).filter((one) => one !== null);
  }

  private age(key: string): number {
    return this.runs.get(key)?.created_ts ?? Infinity;
  }

  current(): Session | null {
    const kept = this.chosen === null ? null : this.byKey(this.chosen);
    return kept ?? this.sorted()[0] ?? null;
  }

  /** Show a run. */
  focus(key: string): void {
    this.chosen = key;
    this.changed();
  }

  letterOf(session: Session): string {
    return this.letters.get(runKey(session)) ?? "A";
  }

  runOf(session: Session): Run | undefined {
    return this.runs.get(runKey(session));
  }

  /** Newest first. */
  receiptsOf(session_id: string): Held[] {
    return [...(this.receipts.get(session_id)?.values() ?? [])]
      .sort((a, b) => b.first_ms - a.first_ms);
  }

  take(message: FromServer): void {
    if (message.kind === "welcome" || message.kind === "session" || message.kind === "run") this.byRun = this.shown = null;
    switch (message.kind) {
      case "welcome":
        this.welcomed = true;
        this.version = message.version;
        this.served = message.build ?? null;
        this.watching = message.read_only === true;
        this.kept = keptBy(message.store ?? null);
        this.skew_s = message.server_ts - Date.now() / 1000;
        for (const session of message.sessions) this.goOn(session);
        this.sessions.clear();
        this.runs.clear();
        for (const run of message.runs) this.runs.set(keyOf(run.project, run.run_id), run);
        for (const session of message.sessions) this.sessions.set(session.session_id, session);
        this.name();
        this.chosen ??= keyFor(this.current());
        break;
      case "session":
        this.goOn(message.session);
        this.sessions.set(message.session.session_id, message.session);
        this.name();
        this.chosen ??= runKey(message.session);
        break;
      case "run":
        this.runs.set(keyOf(message.run.project, message.run.run_id), message.run);
        this.name();
        break;
      case "events": {
        if ((message.left_out ?? 0) > 0) this.partly.add(message.session_id);
        for (const event of message.events) {
          const run = typeof event["run_id"] === "string" ? event["run_id"] : null;
          this.dataOf(message.session_id, run).take(event);
        }
        break;
      }
      case "receipt":
        this.takeReceipt(message.session_id, message.receipt);
        break;
      default:
    }
    this.changed();
  }

  /** A session in focus that begins with another run takes the page along. */
  private goOn(session: Session): void {
    const before = this.sessions.get(session.session_id);
    if (before !== undefined && this.chosen === runKey(before)) this.chosen = runKey(session);
  }

  takeReceipt(session_id: string, receipt: Receipt): void {
    if (READS.has(receipt.cmd)) {
      if (isSettled(receipt.state)) this.asked.get(receipt.id)?.(receipt.reply);
      return;
    }
    let known = this.receipts.get(session_id);
    if (known === undefined) this.receipts.set(session_id, (known = new Map()));
    const before = known.get(receipt.id);
    if (before !== undefined && isSettled(before.state) && !isSettled(receipt.state)) return;
    const now = Date.now();
    const first = before?.first_ms ?? (receipt.sent_ts === null ? now : (receipt.sent_ts - this.skew_s) * 1000);
    const settled = receipt.answered_ts === null ? now : (receipt.answered_ts - this.skew_s) * 1000;
    const held: Held = {
      ...receipt,
      payload: receipt.payload ?? before?.payload ?? null,
      first_ms: Math.min(first, now),
      settled_ms: isSettled(receipt.state) ? (before?.settled_ms ?? Math.min(settled, now)) : null,
      mine: this.mine.has(receipt.id),
    };
    known.set(receipt.id, held);
    if (known.size > RECEIPTS_KEPT) {
      const oldest = [...known.values()].filter((one) => isSettled(one.state))[0];
      if (oldest !== undefined) known.delete(oldest.id);
    }
    if (receipt.state === "applied") this.remember(session_id, held);
    this.changed();
  }

  private remember(session_id: string, receipt: Held): void {
    const data = receipt.reply?.data;
    if (!isDict(data)) return;
    if (receipt.cmd === "validate_now" && isDict(data["metrics"])) {
      const loss = data["metrics"]["val_loss"] ?? Object.values(data["metrics"])[0];
      if (typeof loss === "number") this.dataOf(session_id).lastValidation = loss;
    }
    if (receipt.cmd === "test_now" && typeof data["avg_loss"] === "number") {
      this.dataOf(session_id).lastTest = data["avg_loss"];
    }
  }

  /** Letters go by the age of the runs and are never given twice. */
  private name(): void {
    const keys = new Map<string, number>();
    for (const [key, run] of this.runs) keys.set(key, run.created_ts ?? Infinity);
    for (const session of this.sessions.values()) {
      const key = runKey(session);
      if (!keys.has(key)) keys.set(key, session.started_ts ?? Infinity);
    }
    for (const [key] of [...keys].sort((a, b) => a[1] - b[1])) {
      if (!this.letters.has(key)) this.letters.set(key, letter(this.letters.size));
    }
  }
}

function keptBy(told: { mode: string; text?: string | null } | null): string | null {
  if (told === null || (told.mode === "writer" && !told.text)) return null;
  if (told.text) return told.text;
  return told.mode === "reader"
    ? "Another dashboard keeps the store of this folder; this one shows a read-only copy of it."
    : "The store of this folder cannot be kept: what is shown is in this dashboard's memory only.";
}

export function isSettled(state: Receipt["state"]): boolean {
  return state === "applied" || state === "refused" || state === "unknown";
}

/** Sessions of the same run have the same key. */
export function runKey(session: Session): string {
  return session.run_id === null ? session.session_id : keyOf(session.project, session.run_id);
}

function keyFor(session: Session | null): string | null {
  return session === null ? null : runKey(session);
}

/** State of a run that its session has left for another. */
export const LEFT = "left";

/** The run that a session has left, as a session of its own that nobody trains. */
function left(session: Session, run: Run): Session {
  return {
    ...session, run_id: run.run_id, project: run.project, run_name: run.run_name, state: LEFT,
    reason: session.run_name || session.run_id, step: run.summary?.step ?? null, epoch: null, connected: false,
    pending: [], last_checkpoint: null, status: null, finished: null, started_ts: run.created_ts,
  };
}

/** Keys of all runs that are kin to one, over parents and children. */
export function kinOf(own: string, runs: ReadonlyMap<string, Run>): Set<string> {
  const near = new Map<string, string[]>();
  const link = (one: string, other: string): void => {
    near.set(one, [...(near.get(one) ?? []), other]);
  };
  for (const [key, run] of runs) {
    for (const parent of run.parents) {
      const other = keyOf(run.project, parent);
      if (!runs.has(other)) continue;
      link(key, other);
      link(other, key);
    }
  }
  const found = new Set([own]);
  for (const key of found) for (const next of near.get(key) ?? []) found.add(next);
  return found;
}

export function keyOf(project: string | null, run_id: string): string {
  return `${project ?? ""}/${run_id}`;
}

/** A … Z, AA … */
function letter(index: number): string {
  const one = String.fromCharCode(65 + (index % 26));
  return index < 26 ? one : letter(Math.floor(index / 26) - 1) + one;
}

export const store = new Store();

/** What one browser remembers; storage may be switched off. */
export const kept = {
  get(key: string): string | null {
    try {
      return localStorage.getItem(`otf.${key}`);
    } catch {
      return null;
    }
  },
  set(key: string, value: string): void {
    try {
      localStorage.setItem(`otf.${key}`, value);
    } catch {
      // Not remembered, then.
    }
  },
};
