/** What the page knows, and the one frame that shows it.
 *
 * Messages only write here and call `changed()`; everything is drawn in the next animation
 * frame, so a burst of messages costs one drawing and a hidden tab none.
 */

import { Columns, isDict } from "./columns";
import type { FromServer, OtfEvent, Receipt, Run, Session } from "./types";

const EVENTS_KEPT = 20_000;
const RECEIPTS_KEPT = 100;

/** How the page stands with the server. */
export type Link =
  | { state: "connecting" }
  | { state: "up"; delay_ms: number | null; rate_hz: number }
  | { state: "lost"; since_ms: number; retry_at_ms: number | null }
  | { state: "refused" };

export interface Stall {
  step: number | null;
  since_ts: number;
  where: string | null;
}

export interface Pause {
  step: number;
  from_ts: number;
  to_ts: number | null;
}

/** A receipt as the page holds it; `settled_ms` is when its outcome came in here. */
export interface Held extends Receipt {
  first_ms: number;
  settled_ms: number | null;
  mine: boolean;
}

const READS = new Set(["status", "ping", "list_params", "list_checkpoints"]);

/** The events of one session. */
export class SessionData {
  readonly columns = new Columns();
  /** All events but trainStep, in order of event_seq. */
  readonly events: OtfEvent[] = [];
  lastSeq = 0;
  stall: Stall | null = null;
  readonly pauses: Pause[] = [];
  lastValidation: number | null = null;
  lastTest: number | null = null;
  /** Rises with every event that is not a trainStep. */
  eventsVersion = 0;

  take(event: OtfEvent): void {
    const seq = typeof event.event_seq === "number" ? event.event_seq : null;
    if (event.type === "trainStep") {
      this.columns.add(event);
      this.stall = null;
    } else if (seq === null) {
      this.insert(event);
    } else {
      const at = this.events.findLastIndex((known) => (known.event_seq ?? 0) <= seq);
      if (at >= 0 && this.events[at]?.event_seq === seq) return;
      this.insert(event, at + 1);
      if (seq > this.lastSeq) this.follow(event);
    }
    if (seq !== null && seq > this.lastSeq) this.lastSeq = seq;
  }

  private insert(event: OtfEvent, at = this.events.length): void {
    this.events.splice(at, 0, event);
    if (this.events.length > EVENTS_KEPT) this.events.shift();
    this.eventsVersion += 1;
  }

  /** The few facts that the state band needs from the stream. */
  private follow(event: OtfEvent): void {
    const ts = typeof event.ts === "number" ? event.ts : Date.now() / 1000;
    const step = typeof event.step === "number" ? event.step : null;
    switch (event.type) {
      case "stall":
        this.stall = event["over"] === true ? null : {
          step,
          since_ts: ts - (typeof event["seconds"] === "number" ? event["seconds"] : 0),
          where: typeof event["where"] === "string" ? event["where"] : null,
        };
        break;
      case "paused":
        this.pauses.push({ step: step ?? 0, from_ts: ts, to_ts: null });
        this.stall = null;
        break;
      case "resumed":
      case "trainingFinished": {
        const open = this.pauses.at(-1);
        if (open !== undefined && open.to_ts === null) open.to_ts = ts;
        this.stall = null;
        break;
      }
      case "test_complete":
      case "auto_test_complete":
        if (typeof event["avg_loss"] === "number") this.lastTest = event["avg_loss"];
        break;
      default:
    }
  }
}

class Store {
  link: Link = { state: "connecting" };
  welcomed = false;
  version: string | null = null;
  /** Server time minus ours, in seconds. */
  skew_s = 0;
  readonly opened_ms = Date.now();
  readonly sessions = new Map<string, Session>();
  readonly runs = new Map<string, Run>();
  private readonly data = new Map<string, SessionData>();
  readonly receipts = new Map<string, Map<string, Held>>();
  /** Ids of the commands that were given on this page. */
  readonly mine = new Set<string>();
  readonly dismissed = new Set<string>();
  private chosen: string | null = null;
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

  dataOf(session_id: string): SessionData {
    let found = this.data.get(session_id);
    if (found === undefined) this.data.set(session_id, (found = new SessionData()));
    return found;
  }

  /** Newest first: those with a trainer, then the others. */
  sorted(): Session[] {
    return [...this.sessions.values()].sort(
      (a, b) =>
        Number(b.connected) - Number(a.connected) || (b.started_ts ?? 0) - (a.started_ts ?? 0),
    );
  }

  current(): Session | null {
    const kept = this.chosen === null ? undefined : this.sessions.get(this.chosen);
    return kept ?? this.sorted()[0] ?? null;
  }

  choose(session_id: string): void {
    this.chosen = session_id;
    this.changed();
  }

  letterOf(session: Session): string {
    return this.letters.get(runKey(session)) ?? "A";
  }

  runOf(session: Session): Run | undefined {
    return session.run_id === null ? undefined : this.runs.get(session.run_id);
  }

  /** Newest first. A command that only reads changes nothing that anybody has to be told of. */
  receiptsOf(session_id: string): Held[] {
    return [...(this.receipts.get(session_id)?.values() ?? [])]
      .filter((one) => !READS.has(one.cmd))
      .sort((a, b) => b.first_ms - a.first_ms);
  }

  take(message: FromServer): void {
    switch (message.kind) {
      case "welcome":
        this.welcomed = true;
        this.version = message.version;
        this.skew_s = message.server_ts - Date.now() / 1000;
        this.sessions.clear();
        this.runs.clear();
        for (const run of message.runs) this.runs.set(run.run_id, run);
        for (const session of message.sessions) this.sessions.set(session.session_id, session);
        // Once shown, a run stays on the page until another is chosen.
        this.chosen ??= this.current()?.session_id ?? null;
        this.name();
        break;
      case "session":
        this.sessions.set(message.session.session_id, message.session);
        this.chosen ??= message.session.session_id;
        this.name();
        break;
      case "run":
        this.runs.set(message.run.run_id, message.run);
        this.name();
        break;
      case "events": {
        const data = this.dataOf(message.session_id);
        for (const event of message.events) data.take(event);
        break;
      }
      case "receipt":
        this.takeReceipt(message.session_id, message.receipt);
        break;
      default:
    }
    this.changed();
  }

  takeReceipt(session_id: string, receipt: Receipt): void {
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
    for (const run of this.runs.values()) keys.set(run.run_id, run.created_ts ?? Infinity);
    for (const session of this.sessions.values()) {
      const key = runKey(session);
      if (!keys.has(key)) keys.set(key, session.started_ts ?? Infinity);
    }
    for (const [key] of [...keys].sort((a, b) => a[1] - b[1])) {
      if (!this.letters.has(key)) this.letters.set(key, letter(this.letters.size));
    }
  }
}

export function isSettled(state: Receipt["state"]): boolean {
  return state === "applied" || state === "refused" || state === "unknown";
}

function runKey(session: Session): string {
  return session.run_id ?? session.session_id;
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
