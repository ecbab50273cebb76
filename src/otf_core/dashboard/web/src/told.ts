/** What trainers have told: of one session, and of a run that was resumed, over all of them. */

import { Columns } from "./columns";
import { noteGone, readPlaces, readRankList, readRanks, type Gone, type Place, type Ranks } from "./ranks";
import type { OtfEvent } from "./types";

const EVENTS_KEPT = 50_000;

export interface Stall {
  step: number | null;
  since_ts: number;
  where: string | null;
  /** Lines of the training thread, the innermost last. */
  stack: string[];
  /** Of a run of several ranks: where each of them is, those of one place together. */
  places: Place[];
  /** Ranks that did not answer where they are. */
  unheard: number[];
  /** Files of torch's flight recorder. */
  flight: string[];
}

export interface Pause {
  step: number;
  from_ts: number;
  to_ts: number | null;
}

/** A point at which the run went on from a checkpoint: put back, or in a new process. */
export interface Turn {
  kind: "rollback" | "resume";
  /** The step it went on from. */
  step: number;
  /** Where it was before. */
  from: number | null;
  checkpoint: string | null;
}

/** What a run has told, over all its sessions. */
export interface Told {
  readonly columns: Columns;
  readonly events: OtfEvent[];
  readonly eventsVersion: number;
  readonly stall: Stall | null;
  readonly pauses: Pause[];
  readonly turns: Turn[];
  readonly lastValidation: number | null;
  readonly lastTest: number | null;
  /** Seconds of training in earlier sessions. */
  readonly earlier_s: number;
  /** How the ranks fare, as was told last; null where nothing was. */
  readonly ranks: Ranks | null;
  /** Ranks that are silent or have failed. */
  readonly gone: ReadonlyMap<number, Gone>;
}

/** The events of one session. */
export class SessionData implements Told {
  readonly columns = new Columns();
  /** All events but trainStep, in order of event_seq. */
  readonly events: OtfEvent[] = [];
  lastSeq = 0;
  stall: Stall | null = null;
  readonly pauses: Pause[] = [];
  readonly turns: Turn[] = [];
  readonly earlier_s = 0;
  ranks: Ranks | null = null;
  gone: ReadonlyMap<number, Gone> = new Map();
  lastValidation: number | null = null;
  lastTest: number | null = null;
  /** Rises with every event that is not a trainStep. */
  eventsVersion = 0;

  take(event: OtfEvent): void {
    const seq = typeof event.event_seq === "number" ? event.event_seq : null;
    if (event.type === "trainStep") {
      this.columns.add(event);
      this.stall = null;
    } else if (event.type === "ranks") {
      // Once a second, and worth nothing when the next is here: it is no line of the log.
      const ranks = readRanks(event, Date.now() / 1000);
      if (ranks.ts >= (this.ranks?.ts ?? 0)) this.ranks = ranks;
    } else if (seq === null) {
      this.insert(event);
    } else {
      const at = this.events.findLastIndex((known) => (known.event_seq ?? 0) <= seq);
      if (at >= 0 && this.events[at]?.event_seq === seq) return;
      this.insert(event, at + 1);
      if (event.type === "checkpoint_loaded") this.turnBack(event, seq);
      if (event.type === "rank_state") this.countRanks();
      if (seq > this.lastSeq) this.follow(event);
    }
    if (seq !== null && seq > this.lastSeq) this.lastSeq = seq;
  }

  private insert(event: OtfEvent, at = this.events.length): void {
    this.events.splice(at, 0, event);
    if (this.events.length > EVENTS_KEPT) this.events.shift();
    this.eventsVersion += 1;
  }

  /** Events may come in any order; what they say is as in theirs. */
  private countRanks(): void {
    this.gone = this.events.filter((event) => event.type === "rank_state")
      .reduce((gone, event) => noteGone(gone, event, event.ts ?? Date.now() / 1000), new Map<number, Gone>());
  }

  private turnBack(event: OtfEvent, seq: number): void {
    if (typeof event.step !== "number") return;
    const said = event["from_step"];
    const from = typeof said === "number" ? said : this.columns.lastStep();
    const path = typeof event["path"] === "string" ? event["path"] : null;
    const name = path?.split(/[/\\]/).at(-1)?.replace(/\.\w+$/, "") ?? null;
    const first = this.columns.length === 0 && (from === null || from <= event.step);
    this.turns.push({
      kind: first ? "resume" : "rollback", step: event.step, from,
      checkpoint: typeof event["id"] === "string" ? event["id"] : name,
    });
    this.columns.turnBack(seq, event.step);
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
          stack: Array.isArray(event["stack"]) ? event["stack"].map(String) : [],
          places: readPlaces(event["ranks"]),
          unheard: readRankList(event["unheard"]),
          flight: Array.isArray(event["flight"]) ? event["flight"].map(String) : [],
        };
        break;
      case "paused":
        this.pauses.push({ step: step ?? 0, from_ts: ts, to_ts: null });
        this.stall = null;
        break;
      case "resumed":
      case "finalizeRun": // another run of the session trains from here on
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

interface Taken {
  data: SessionData;
  shape: number;
  length: number;
  lowest: number | null;
  events: number;
}

/** The sessions of one run, the first first, as if one process had told all of it. */
export class Joined implements Told {
  columns = new Columns();
  events: OtfEvent[] = [];
  eventsVersion = 0;
  pauses: Pause[] = [];
  turns: Turn[] = [];
  earlier_s = 0;
  private taken: Taken[] = [];

  get last(): SessionData {
    return (this.taken.at(-1) as Taken).data;
  }

  get stall(): Stall | null {
    return this.last.stall;
  }

  get ranks(): Ranks | null {
    return this.last.ranks;
  }

  get gone(): ReadonlyMap<number, Gone> {
    return this.last.gone;
  }

  get lastValidation(): number | null {
    return this.newest((data) => data.lastValidation);
  }

  get lastTest(): number | null {
    return this.newest((data) => data.lastTest);
  }

  private newest(of: (data: SessionData) => number | null): number | null {
    return this.taken.map((one) => of(one.data)).findLast((value) => value !== null) ?? null;
  }

  /** Take in what has come since; all anew only if something before the end has changed. */
  refresh(parts: SessionData[]): this {
    const goesOn = parts.length === this.taken.length && parts.every((data, i) => {
      const known = this.taken[i] as Taken;
      const { columns } = data;
      return known.data === data && known.shape === columns.shape && known.lowest === columns.lowest
        && (known.length === columns.length || (i === parts.length - 1 && known.length > 0));
    });
    if (!goesOn) {
      this.columns = new Columns();
      for (const data of parts) this.columns.append(data.columns);
    } else if (this.last.columns.length > (this.taken.at(-1) as Taken).length) {
      this.columns.append(this.last.columns, (this.taken.at(-1) as Taken).length);
    }
    const told = parts.some((data, i) => data.eventsVersion !== this.taken[i]?.events);
    this.taken = parts.map((data) => ({
      data, shape: data.columns.shape, length: data.columns.length, lowest: data.columns.lowest,
      events: data.eventsVersion,
    }));
    if (told || !goesOn) this.join(parts);
    return this;
  }

  private join(parts: SessionData[]): void {
    this.events = parts.flatMap((data) => data.events);
    this.eventsVersion += 1;
    const last = parts.length - 1;
    this.pauses = parts.flatMap((data, i) => (i === last ? data.pauses : data.pauses.map((one) => over(one, data))));
    this.turns = parts.flatMap((data, i) => (i === 0 ? data.turns : resumed(data)));
    this.earlier_s = parts.slice(0, last).reduce((sum, data) => sum + trained(data), 0);
  }
}

/** A process that was killed while it stood has told of no end of its pause. */
function over(pause: Pause, data: SessionData): Pause {
  return pause.to_ts !== null ? pause : { ...pause, to_ts: data.events.at(-1)?.ts ?? pause.from_ts };
}

/** A session that says nothing of its checkpoint has resumed all the same. */
function resumed(data: SessionData): Turn[] {
  if (data.turns[0]?.kind === "resume" || data.columns.lowest === null) return data.turns;
  return [{ kind: "resume", step: data.columns.lowest - 1, from: null, checkpoint: null }, ...data.turns];
}

function trained(data: SessionData): number {
  const first = data.events[0]?.ts ?? data.columns.ts.values[0];
  const end = data.columns.lastTs();
  if (first === undefined || Number.isNaN(first) || end === null) return 0;
  const stood = data.pauses.reduce((sum, one) => sum + ((one.to_ts ?? end) - one.from_ts), 0);
  return Math.max(0, end - first - stood);
}
