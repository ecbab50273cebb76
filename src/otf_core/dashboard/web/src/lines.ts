/** One run as the charts see it: steps that came live behind what the server has thinned. */

import { lowerBound, upperBound, type Columns, type Thinned } from "./columns";
import { below, epochsOf, indexAt, sizeOf, type Curve, type Part } from "./curves";

/** One value, with the event that told it. */
export interface Found {
  step: number;
  seq: number;
  value: number;
}

export class Lines {
  /** Over its whole length, and finer within a zoom; null where every step is here. */
  whole: Part | null = null;
  fine: Part | null = null;
  /** The whole has a hole before what comes live. */
  stale = false;
  /** Rises when a part has come. */
  parts = 0;

  constructor(public columns: Columns) {}

  /** Changes whenever something is to be drawn anew. */
  get version(): string {
    return `${this.columns.version}.${this.parts}`;
  }

  /** The first step that is here in full; what was before is in the parts. */
  private get seam(): number {
    return this.columns.length > 0 ? (this.columns.step.values[0] as number) : Infinity;
  }

  private get sources(): (Part | null)[] {
    return [this.fine, this.whole].filter((part) => part !== null);
  }

  names(): string[] {
    const names = new Set(this.columns.names());
    for (const part of this.sources) for (const key of part?.series.keys() ?? []) names.add(key);
    return [...names].filter((name) => !AXES.has(name));
  }

  has(key: string): boolean {
    return this.columns.has(key) || this.sources.some((part) => part?.series.has(key));
  }

  firstStep(): number | null {
    const own = this.columns.length > 0 ? this.seam : Infinity;
    const first = Math.min(own, this.whole?.from ?? Infinity);
    return Number.isFinite(first) ? first : null;
  }

  lastStep(): number | null {
    const last = Math.max(this.columns.lastStep() ?? -1, this.columns.length > 0 ? -1 : (this.whole?.to ?? -1));
    return last < 0 ? null : last;
  }

  /** The highest step on the axis, undone ones included. */
  reach(): number {
    return Math.max(this.lastStep() ?? 0, this.columns.reach());
  }

  epochs(): Map<number, number> {
    if (this.whole === null) return this.columns.epochStarts;
    const found = epochsOf(this.whole);
    for (const [epoch, step] of this.columns.epochStarts) if (!found.has(epoch)) found.set(epoch, step);
    return found;
  }

  /** The latest value, or the latest at or before a step. */
  at(key: string, step?: number | null): Found | null {
    const { columns } = this;
    const row = columns.rowOf(key, step);
    if (row >= 0) {
      return { step: columns.step.values[row] as number, seq: columns.seq.values[row] as number, value: columns.at(key, row) };
    }
    const wanted = step ?? Infinity;
    for (const part of this.sources) {
      const curve = part?.series.get(key);
      if (part === null || curve === undefined || wanted < part.from) continue;
      if (part === this.fine && wanted > part.to) continue;
      const i = indexAt(curve, wanted);
      if (i >= 0) return { step: curve.step[i] as number, seq: curve.seq[i] as number, value: curve.value[i] as number };
    }
    return null;
  }

  /** The same, but nothing where the run does not reach: before it began, after its last step. */
  within(key: string, step: number | null): Found | null {
    if (step !== null) {
      const first = this.firstStep();
      const last = this.lastStep();
      if (first === null || last === null || step < first - 1 || step > last) return null;
    }
    return this.at(key, step);
  }

  /** Points at which a sparse metric took a new value, by step. */
  changes(key: string): Found[] {
    const { columns } = this;
    const found: Found[] = [];
    let last = NaN;
    const curve = below(this.sources, key, -Infinity, Infinity, this.seam);
    for (let i = 0; i < (curve?.step.length ?? 0); i += 1) {
      const value = (curve as Curve).value[i] as number;
      if (value === last) continue;
      found.push({ step: (curve as Curve).step[i] as number, seq: (curve as Curve).seq[i] as number, value });
      last = value;
    }
    for (const row of columns.changes(key)) {
      const value = columns.at(key, row);
      if (value === last) continue;
      found.push({ step: columns.step.values[row] as number, seq: columns.seq.values[row] as number, value });
      last = value;
    }
    return found;
  }

  /** x, highest, lowest and line of one metric in the buckets of a range; empty buckets are left out. */
  thinned(key: string, from: number, to: number, size: number, alpha: number, positive: boolean): Thinned {
    const out: Thinned = [[], [], [], []];
    const curve = below(this.sources, key, from, to, this.seam);
    let smooth = NaN;
    let open = false;
    let bucket = NaN;
    let [low, high, mid, x] = [Infinity, -Infinity, NaN, 0];
    const close = (): void => {
      if (!open) return;
      out[0].push(x);
      out[1].push(high);
      out[2].push(low);
      out[3].push(positive && mid <= 0 ? null : mid);
      open = false;
    };
    const take = (step: number, value: number, line: number): void => {
      const at = Math.floor(step / size);
      if (at !== bucket) {
        close();
        bucket = at;
        [low, high] = [Infinity, -Infinity];
      }
      open = true;
      if (value < low) low = value;
      if (value > high) high = value;
      x = step;
      mid = line;
    };
    if (curve !== null) {
      // Least and greatest come in pairs: the line goes through their middle.
      let i = 0;
      while (i < curve.step.length) {
        const value = curve.value[i] as number;
        const next = curve.value[i + 1];
        const paired = next !== undefined && Math.floor((curve.step[i] as number) / size) === Math.floor((curve.step[i + 1] as number) / size);
        const middle = paired ? (value + next) / 2 : value;
        smooth = Number.isNaN(smooth) || alpha <= 0 ? middle : alpha * smooth + (1 - alpha) * middle;
        for (const j of paired ? [i, i + 1] : [i]) {
          const one = curve.value[j] as number;
          if (!positive || one > 0) take(curve.step[j] as number, one, alpha <= 0 ? one : smooth);
        }
        i += paired ? 2 : 1;
      }
    }
    const { columns } = this;
    const raw = columns.values(key);
    if (raw !== undefined && columns.length > 0) {
      const line = columns.smoothed(key, alpha, smooth) ?? raw;
      const steps = columns.step.values;
      const first = Math.max(0, lowerBound(steps, columns.length, from) - 1);
      const end = Math.min(columns.length, upperBound(steps, columns.length, to) + 1);
      for (let row = first; row < end; row += 1) {
        const value = raw[row] as number;
        if (Number.isNaN(value) || (positive && value <= 0)) continue;
        take(steps[row] as number, value, line[row] as number);
      }
    }
    close();
    return out;
  }
}

const AXES = new Set(["epoch", "metrics.epoch", "global_step", "metrics.global_step"]);

/** The bucket of a plot: one for all charts of one width and range, of all runs. */
export function bucketOf(from: number, to: number, width_px: number): number {
  return sizeOf(from, to, Math.max(40, Math.floor(width_px / 8) * 8));
}
