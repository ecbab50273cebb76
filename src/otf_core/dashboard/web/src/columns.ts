/** The step series of one run in typed arrays, and the way they are thinned for drawing.
 *
 * NaN stands for "no value". Rows are in the order of event_seq, and so in the order of steps: what
 * a rollback, a later generation (`run_gen`) or a later session has done again is in `undone`.
 */

import type { OtfEvent } from "./types";

/** Fields of trainStep that are not metrics. */
const NOT_METRICS = new Set([
  "type", "step", "epoch", "event_seq", "ts", "run_id", "run_gen", "session_id", "replay",
  "metrics", "lrs", "global_step",
]);

interface Smoothed {
  alpha: number;
  values: Float64Array;
  done: number;
  last: number;
}

/** Rows that count no more, for a faint line. */
export interface Undone {
  steps: Float64Array;
  values: Map<string, Float64Array>;
}

/** Earlier events from this step on are superseded. */
interface Cut {
  seq: number;
  step: number;
}

/** Runs that are rolled back again and again keep so many faint lines. */
const UNDONE_KEPT = 24;

let versions = 0;

export class Columns {
  length = 0;
  /** Rises with every change, and no two columns have the same; what was drawn from another is stale. */
  version = 0;
  /** Rises when rows change that were there before. */
  shape = 0;
  readonly undone: Undone[] = [];
  /** The first step that was told anew: an earlier session ends before it. */
  lowest: number | null = null;
  private readonly begins = new Map<number, Cut>();
  private readonly turns: Cut[] = [];
  private capacity = 1024;
  readonly seq = new Grown();
  readonly step = new Grown();
  readonly epoch = new Grown();
  readonly ts = new Grown();
  private readonly metrics = new Map<string, Grown>();
  /** Row of the last value of each metric that ever had one. */
  private readonly lastRow = new Map<string, number>();
  private readonly smooth = new Map<string, Smoothed>();
  /** epoch -> its first step */
  readonly epochStarts = new Map<number, number>();

  /** Take a trainStep in; false if it is here already, or superseded. */
  add(event: OtfEvent): boolean {
    const seq = numeric(event.event_seq);
    const step = numeric(event.step);
    if (Number.isNaN(step)) return false;
    const gen = numeric(event["run_gen"]);
    this.generation(seq, step, Number.isNaN(gen) ? 0 : gen);
    if (this.turns.some((cut) => seq < cut.seq && step >= cut.step)) return false;
    let row = this.length;
    if (row > 0 && seq <= (this.seq.values[row - 1] ?? 0)) {
      row = lowerBound(this.seq.values, this.length, seq);
      if (this.seq.values[row] === seq) return false;
    }
    this.open(row);
    this.seq.values[row] = seq;
    this.step.values[row] = step;
    this.epoch.values[row] = numeric(event.epoch);
    this.ts.values[row] = numeric(event.ts);
    for (const [name, value] of Object.entries(event)) {
      if (!NOT_METRICS.has(name) && (typeof value === "number" || value === null)) {
        this.set(name, row, value);
      }
    }
    const { metrics, lrs } = event;
    if (isDict(metrics)) {
      for (const [name, value] of Object.entries(metrics)) this.set(`metrics.${name}`, row, value);
    }
    if (lrs !== null && typeof lrs === "object") {
      // The first group is what `lr` says already.
      for (const [name, value] of Object.entries(lrs).slice(1)) this.set(`lrs.${name}`, row, value);
    }
    const epoch = this.epoch.values[row] ?? NaN;
    if (!Number.isNaN(epoch)) {
      const first = this.epochStarts.get(epoch);
      if (first === undefined || step < first) this.epochStarts.set(epoch, step);
    }
    this.version = versions += 1;
    return true;
  }

  /** The run is at an earlier step again: what was told of later ones before this event is undone. */
  turnBack(seq: number, step: number): void {
    this.cut({ seq, step: step + 1 });
    this.lowest = Math.min(this.lowest ?? Infinity, step + 1);
  }

  /** A generation supersedes the ones before from its first step on, which may come late. */
  private generation(seq: number, step: number, gen: number): void {
    this.lowest = Math.min(this.lowest ?? Infinity, step);
    const known = this.begins.get(gen);
    if (known !== undefined && seq >= known.seq) {
      // A trainer that tells no generations, turned back.
      const last = this.length - 1;
      if (last >= 0 && seq > (this.seq.values[last] as number) && step < (this.step.values[last] as number)) this.cut({ seq, step });
      return;
    }
    this.begins.set(gen, { seq, step });
    if (this.begins.size === 1) return;
    const first = Math.min(...this.begins.keys());
    for (const [one, cut] of this.begins) if (one !== first) this.cut(cut);
  }

  private cut(cut: Cut): void {
    if (this.turns.some((one) => one.seq === cut.seq && one.step === cut.step)) return;
    this.turns.push(cut);
    const end = lowerBound(this.seq.values, this.length, cut.seq);
    this.remove(lowerBound(this.step.values, end, cut.step), end);
  }

  /** Forget the rows before a step: the server has them. */
  forget(step: number): void {
    const end = lowerBound(this.step.values, this.length, step);
    if (end === 0) return;
    for (const column of this.all()) column.remove(0, end, this.length);
    this.length -= end;
    for (const [name, last] of this.lastRow) {
      if (last < end) this.lastRow.delete(name);
      else this.lastRow.set(name, last - end);
    }
    this.undone.splice(0, Math.max(0, this.undone.length - UNDONE_KEPT));
    this.changedShape();
  }

  private remove(start: number, end: number): void {
    if (start >= end) return;
    const values = new Map<string, Float64Array>();
    for (const [name, column] of this.metrics) values.set(name, column.values.slice(start, end));
    const steps = this.step.values.slice(start, end);
    this.undone.push({ steps, values });
    for (const column of this.all()) column.remove(start, end, this.length);
    this.length -= end - start;
    this.lastRow.clear();
    for (const [name, { values: left }] of this.metrics) {
      const last = left.subarray(0, this.length).findLastIndex((value) => !Number.isNaN(value));
      if (last >= 0) this.lastRow.set(name, last);
    }
    for (const [epoch, at] of this.epochStarts) if (at >= (steps[0] as number)) this.epochStarts.delete(epoch);
    this.changedShape();
  }

  private changedShape(): void {
    this.smooth.clear();
    this.shape += 1;
    this.version = versions += 1;
  }

  /** Take in the rows of a later session from one of them on. */
  append(later: Columns, from = 0): void {
    if (from === 0) {
      if (later.lowest !== null) this.remove(lowerBound(this.step.values, this.length, later.lowest), this.length);
      this.undone.push(...later.undone);
    }
    for (let row = from; row < later.length; row += 1) {
      const at = this.length;
      this.open(at);
      this.seq.values[at] = later.seq.values[row] as number;
      this.step.values[at] = later.step.values[row] as number;
      this.epoch.values[at] = later.epoch.values[row] as number;
      this.ts.values[at] = later.ts.values[row] as number;
      for (const [name, column] of later.metrics) this.set(name, at, column.values[row]);
    }
    for (const [epoch, at] of later.epochStarts) {
      this.epochStarts.set(epoch, Math.min(at, this.epochStarts.get(epoch) ?? Infinity));
    }
    this.version = versions += 1;
  }

  /** The highest step on the axis, undone ones included. */
  reach(): number {
    return Math.max(this.lastStep() ?? 0, ...this.undone.map((one) => one.steps.at(-1) ?? 0));
  }

  private all(): Grown[] {
    return [this.seq, this.step, this.epoch, this.ts, ...this.metrics.values()];
  }

  /** Names of all metrics that ever came, with or without a value. */
  names(): string[] {
    return [...this.metrics.keys()];
  }

  has(name: string): boolean {
    return this.lastRow.has(name);
  }

  values(name: string): Float64Array | undefined {
    return this.metrics.get(name)?.values;
  }

  /** Row of the latest value, or of the latest one at or before a step; -1 where there is none. */
  rowOf(name: string, atStep?: number | null): number {
    const last = this.lastRow.get(name);
    const values = this.values(name);
    if (last === undefined || values === undefined) return -1;
    if (atStep === null || atStep === undefined) return last;
    let row = Math.min(last, upperBound(this.step.values, this.length, atStep) - 1);
    while (row >= 0 && Number.isNaN(values[row])) row -= 1;
    return row;
  }

  at(name: string, row: number): number {
    return this.values(name)?.[row] ?? NaN;
  }

  lastStep(): number | null {
    return this.length > 0 ? (this.step.values[this.length - 1] ?? null) : null;
  }

  lastTs(): number | null {
    const ts = this.length > 0 ? this.ts.values[this.length - 1] : undefined;
    return ts === undefined || Number.isNaN(ts) ? null : ts;
  }

  /** Rows at which a metric took a new value: the evaluations of a val_loss that is repeated in every step. */
  changes(name: string): number[] {
    const values = this.values(name);
    const rows: number[] = [];
    if (values === undefined) return rows;
    let last = NaN;
    for (let row = 0; row < this.length; row += 1) {
      const value = values[row] as number;
      if (!Number.isNaN(value) && value !== last) {
        rows.push(row);
        last = value;
      }
    }
    return rows;
  }

  /** Exponentially smoothed copy, kept up to date by going on where it was left; `before` is where it begins. */
  smoothed(name: string, alpha: number, before = NaN): Float64Array | undefined {
    const raw = this.values(name);
    if (raw === undefined || alpha <= 0) return raw;
    let kept = this.smooth.get(name);
    if (kept === undefined || kept.alpha !== alpha) {
      kept = { alpha, values: new Float64Array(0), done: 0, last: before };
      this.smooth.set(name, kept);
    }
    if (kept.values.length < raw.length) {
      const wider = new Float64Array(raw.length);
      wider.set(kept.values.subarray(0, kept.done));
      kept.values = wider;
    }
    for (let row = kept.done; row < this.length; row += 1) {
      const value = raw[row] as number;
      if (!Number.isNaN(value)) {
        kept.last = Number.isNaN(kept.last) ? value : alpha * kept.last + (1 - alpha) * value;
      }
      kept.values[row] = Number.isNaN(value) ? NaN : kept.last;
    }
    kept.done = this.length;
    return kept.values;
  }

  private set(name: string, row: number, value: unknown): void {
    let column = this.metrics.get(name);
    if (column === undefined) {
      column = new Grown(this.capacity);
      this.metrics.set(name, column);
    }
    if (typeof value === "number" && Number.isFinite(value)) {
      column.values[row] = value;
      if (row > (this.lastRow.get(name) ?? -1)) this.lastRow.set(name, row);
    }
  }

  /** Make room for one row. */
  private open(row: number): void {
    const all = this.all();
    if (this.length === this.capacity) {
      this.capacity *= 2;
      for (const column of all) column.grow(this.capacity);
    }
    if (row < this.length) {
      // A gap is being filled from the journal: rare, so moving the tail is good enough.
      for (const column of all) column.values.copyWithin(row + 1, row, this.length);
      for (const column of all) column.values[row] = NaN;
      for (const [name, last] of this.lastRow) if (last >= row) this.lastRow.set(name, last + 1);
      this.changedShape();
    }
    this.length += 1;
  }
}

class Grown {
  values: Float64Array;
  constructor(capacity = 1024) {
    this.values = new Float64Array(capacity).fill(NaN);
  }
  grow(capacity: number): void {
    const wider = new Float64Array(capacity).fill(NaN);
    wider.set(this.values);
    this.values = wider;
  }
  /** Take out rows; `length` are in use. */
  remove(start: number, end: number, length: number): void {
    this.values.copyWithin(start, end, length);
    this.values.fill(NaN, length - (end - start), length);
  }
}

/** x, highest, lowest and line of one metric in buckets of steps; empty buckets are left out. */
export type Thinned = [x: number[], high: number[], low: number[], line: (number | null)[]];

export function lowerBound(values: Float64Array, length: number, wanted: number): number {
  let low = 0;
  let high = length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((values[mid] as number) < wanted) low = mid + 1;
    else high = mid;
  }
  return low;
}

export function upperBound(values: Float64Array, length: number, wanted: number): number {
  let low = 0;
  let high = length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((values[mid] as number) <= wanted) low = mid + 1;
    else high = mid;
  }
  return low;
}

function numeric(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : NaN;
}

export function isDict(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}
