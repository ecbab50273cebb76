/** What the charts and the timeline share: range, cursor, scale, smoothing, chosen charts. */

import type { Lines } from "./lines";
import { kept, store } from "./store";

export type RangeName = "all" | "5k" | "1k" | "plan";
export type Layout = "grid" | "stack";

/** A menu at one step of one run: what can be done there. */
export interface Spot {
  run: string;
  step: number;
  /** In px of the window. */
  x: number;
  y: number;
  /** What a mark of the timeline says, line by line. */
  told: string[];
  opener: Element | null;
}

function oneOf<T extends string>(value: string | null, allowed: readonly T[], otherwise: T): T {
  return allowed.find((one) => one === value) ?? otherwise;
}

function number(value: string | null, otherwise: number): number {
  const parsed = value === null ? NaN : Number(value);
  return Number.isFinite(parsed) && parsed >= 0 && parsed < 1 ? parsed : otherwise;
}

class Shared {
  range: RangeName = oneOf(kept.get("range"), ["all", "5k", "1k", "plan"], "all");
  zoom: { from: number; to: number } | null = null;
  log = kept.get("scale") !== "linear";
  layout: Layout = oneOf(kept.get("layout"), ["grid", "stack"], "grid");
  /** The metric of the large chart. */
  large = kept.get("large") ?? "loss";
  /** Runs that are not drawn though they are kin, and those that are though they are not. */
  readonly hidden = new Set<string>();
  readonly added = new Set<string>();
  spot: Spot | null = null;
  smoothing = number(kept.get("smoothing"), 0.9);
  /** The step that is pointed at, in all charts and the timeline. */
  cursor: number | null = null;
  /** Rises when colours, scale or smoothing change: charts are made anew or drawn again. */
  version = 0;
  /** Left edge and width of the large chart's plot, in px of the window: the timeline keeps to it. */
  plot: { left: number; width: number } | null = null;
  shown = new Map<string, boolean>(readShown());

  setRange(range: RangeName): void {
    this.range = range;
    this.zoom = null;
    kept.set("range", range);
    store.changed();
  }

  setZoom(zoom: { from: number; to: number } | null): void {
    this.zoom = zoom;
    store.changed();
  }

  setLayout(layout: Layout): void {
    this.layout = layout;
    this.version += 1;
    kept.set("layout", layout);
    store.changed();
  }

  setLarge(key: string): void {
    this.large = key;
    kept.set("large", key);
    store.changed();
  }

  /** Draw a run or leave it out. */
  setDrawn(run: string, kin: boolean, on: boolean): void {
    if (kin) on ? this.hidden.delete(run) : this.hidden.add(run);
    else on ? this.added.add(run) : this.added.delete(run);
    store.changed();
  }

  openSpot(spot: Spot | null): void {
    this.spot = spot;
    if (spot !== null) this.cursor = spot.step;
    store.changed();
  }

  setLog(log: boolean): void {
    this.log = log;
    this.version += 1;
    kept.set("scale", log ? "log" : "linear");
    store.changed();
  }

  setSmoothing(alpha: number): void {
    this.smoothing = alpha;
    this.version += 1;
    kept.set("smoothing", String(alpha));
    store.changed();
  }

  setCursor(step: number | null): void {
    if (step === this.cursor || this.spot !== null) return; // the menu keeps its step
    this.cursor = step;
    store.changed();
  }

  show(key: string, on: boolean): void {
    this.shown.set(key, on);
    kept.set("charts", JSON.stringify([...this.shown]));
    store.changed();
  }

  recolour(): void {
    this.version += 1;
    store.changed();
  }

  /** The steps on the x axis, of the run in focus and those that are drawn with it. The right edge moves in blocks, so curves do not crawl. */
  extent(lines: Lines, others: readonly Lines[], total: number | null): { from: number; to: number } {
    if (this.zoom !== null) return this.zoom;
    const last = Math.max(lines.reach(), ...others.map((one) => one.reach()));
    const first = Math.min(lines.firstStep() ?? 0, ...others.map((one) => one.firstStep() ?? Infinity), last);
    const width = this.range === "5k" ? 5_000 : this.range === "1k" ? 1_000 : Infinity;
    if (this.range === "plan" && total !== null && total >= last) return { from: 0, to: Math.max(1, total) };
    const block = blockOf(Math.min(last, width));
    let to = Math.max(block, Math.ceil((last + 1e-9) / block) * block);
    if (total !== null && total >= last && total < to && total > 0) to = total;
    const from = width === Infinity ? (first > to / 2 ? Math.floor(first / block) * block : 0) : Math.max(0, to - width);
    return { from, to: Math.max(to, from + 1) };
  }
}

function blockOf(steps: number): number {
  if (steps <= 100) return 20;
  if (steps <= 500) return 50;
  if (steps <= 1000) return 100;
  return 500;
}

function readShown(): [string, boolean][] {
  try {
    const found: unknown = JSON.parse(kept.get("charts") ?? "[]");
    return Array.isArray(found) ? found.filter(isPair) : [];
  } catch {
    return [];
  }
}

function isPair(value: unknown): value is [string, boolean] {
  return Array.isArray(value) && typeof value[0] === "string" && typeof value[1] === "boolean";
}

export const shared = new Shared();
