/** The uPlot charts. Preact makes the boxes and heads; this file draws into the boxes.
 *
 * A chart is drawn in the page's one animation frame, when it is visible and something that it
 * shows has changed. uPlot fails when it is drawn without data, so it is made with the first batch.
 */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { buckets, lowerBound, thin, type Columns } from "./columns";
import { tick } from "./format";
import type { Metric } from "./metrics";
import { shared } from "./view";

export interface Scene {
  columns: Columns;
  /** Which run: another one begins with charts of its own. */
  run: string;
  letter: string;
  colour: string;
  from: number;
  to: number;
  /** Steps at which it stood or was turned back, with their label. */
  rules: { step: number; label: string }[];
  /** Why there is nothing after the last step, or null. */
  ended: string | null;
  /** Rises with pauses and the like. */
  version: number;
}

interface Palette {
  line: string;
  band: string;
  undone: string;
  grid: string;
  axis: string;
  surface: string;
  bad: string;
  onTag: string;
  font: string;
}

let palette: { version: number; colour: string; colours: Palette } | null = null;

function coloursOf(colour: string): Palette {
  if (palette !== null && palette.version === shared.version && palette.colour === colour) return palette.colours;
  const style = getComputedStyle(document.documentElement);
  const get = (name: string): string => style.getPropertyValue(name).trim();
  const line = get(`--run-${colour}`);
  const colours = {
    line,
    band: mixed(line, get("--surface"), Number(get("--band-share"))),
    undone: mixed(line, get("--surface"), Number(get("--undone-share"))),
    grid: get("--grid"),
    axis: get("--axis"),
    surface: get("--surface"),
    bad: get("--bad"),
    onTag: get(`--on-run-${colour}`),
    font: `11px ${get("--font")}`,
  };
  palette = { version: shared.version, colour, colours };
  return colours;
}

/** Two #rrggbb colours mixed; not every canvas knows color-mix. */
function mixed(one: string, other: string, share: number): string {
  const parts = [1, 3, 5].map((at) => {
    const [a, b] = [hex(one, at), hex(other, at)];
    return Math.round(a * share + b * (1 - share));
  });
  return `rgb(${parts.join(", ")})`;
}

function hex(colour: string, at: number): number {
  const full = colour.length === 4 ? colour.replace(/[^#]/g, "$&$&") : colour;
  return Number.parseInt(full.slice(at, at + 2), 16);
}

const charts = new Set<Chart>();

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    for (const chart of charts) {
      if (chart.box === entry.target) chart.visible = entry.isIntersecting;
    }
  }
  wake();
});

const sized = new ResizeObserver(() => wake());

let wake: () => void = () => undefined;

/** Called by main with the store's `changed`. */
export function onWake(changed: () => void): void {
  wake = changed;
}

/** Draw all that has to be. Called once in a frame, after the DOM is up to date. */
export function drawCharts(scene: Scene | null): void {
  for (const chart of charts) chart.draw(scene);
}

export class Chart {
  visible = true;
  private plot: uPlot | null = null;
  private key = "";
  private drawn = "";
  private width = 0;
  private height = 0;
  private scene: Scene | null = null;
  private cursorStep: number | null = null;
  private changed: number[] = [];

  constructor(
    readonly box: HTMLElement,
    readonly metric: Metric,
    readonly large: boolean,
  ) {
    charts.add(this);
    seen.observe(box);
    sized.observe(box);
  }

  destroy(): void {
    charts.delete(this);
    seen.unobserve(this.box);
    sized.unobserve(this.box);
    this.plot?.destroy();
    this.plot = null;
    if (this.large) shared.plot = null;
  }

  draw(scene: Scene | null): void {
    this.scene = scene;
    if (scene === null || !this.visible || !scene.columns.has(this.metric.key)) return;
    const width = this.box.clientWidth;
    const height = this.box.clientHeight;
    if (width < 40 || height < 30) return;
    const log = shared.log && this.metric.log;
    const key = `${scene.run} ${scene.colour} ${shared.version} ${log}`;
    if (this.plot !== null && key !== this.key) {
      this.plot.destroy();
      this.plot = null;
    }
    const laid = this.plot === null || width !== this.width || height !== this.height;
    const drawn = `${scene.columns.version} ${scene.from} ${scene.to} ${width} ${height} ${scene.version} ${scene.ended ?? ""}`;
    if (this.plot === null || drawn !== this.drawn) {
      const data = this.thinned(scene, width, log);
      if (data === null) return;
      if (this.plot === null) {
        this.plot = new uPlot(this.options(width, height, log), data as uPlot.AlignedData, this.box);
        this.key = key;
      } else {
        const plot = this.plot;
        if (width !== this.width || height !== this.height) plot.setSize({ width, height });
        plot.batch(() => {
          plot.setData(data as uPlot.AlignedData, false);
          plot.setScale("x", { min: scene.from, max: scene.to });
        });
      }
      this.width = width;
      this.height = height;
      this.drawn = drawn;
      this.cursorStep = null;
    }
    if (this.large) {
      // uPlot lays itself out after this frame: a new or resized plot is measured in the next one.
      const box = this.plot.over.getBoundingClientRect();
      if (laid) wake();
      else if (box.width > 0) shared.plot = { left: box.left, width: box.width };
    }
    this.point();
  }

  /** Show the shared cursor in this chart. */
  private point(): void {
    const plot = this.plot;
    if (plot === null || shared.cursor === this.cursorStep) return;
    this.cursorStep = shared.cursor;
    const left = shared.cursor === null ? -10 : plot.valToPos(shared.cursor, "x");
    plot.setCursor({ left, top: left < 0 ? -10 : 10 }, false);
  }

  private thinned(scene: Scene, width: number, log: boolean): (number | null)[][] | null {
    const { columns } = scene;
    const raw = columns.values(this.metric.key);
    if (raw === undefined) return null;
    this.changed = this.metric.sparse ? columns.changes(this.metric.key) : this.large ? columns.changes("val_loss") : [];
    if (this.metric.sparse) {
      const steps = columns.step.values;
      let rows = this.changed.filter((row) => !log || (raw[row] as number) > 0);
      const inside = rows.filter((row) => within(steps[row] as number, scene));
      if (inside.length > width) rows = inside.filter((_, i) => i % Math.ceil(inside.length / width) === 0);
      const values = rows.map((row) => (raw[row] as number) * this.metric.factor);
      return rows.length === 0 ? null : [rows.map((row) => steps[row] as number), values, values, values];
    }
    const line = this.metric.noisy ? columns.smoothed(this.metric.key, shared.smoothing) : raw;
    const grid = buckets(columns, scene.from, scene.to, Math.max(40, Math.floor(width / 8) * 8));
    const data = thin(columns, raw, line ?? raw, grid, log);
    if (data[0].length === 0) return null;
    const { factor } = this.metric;
    if (factor === 1) return data;
    return [data[0], ...data.slice(1).map((side) => side.map((value) => (value === null ? null : value * factor)))];
  }

  private options(width: number, height: number, log: boolean): uPlot.Options {
    const scene = this.scene as Scene;
    const colours = coloursOf(scene.colour);
    const { large, metric } = this;
    const axis = { stroke: colours.axis, font: colours.font, ticks: { show: false } };
    const y: uPlot.Axis = {
      ...axis,
      size: 42,
      gap: 4,
      grid: { stroke: colours.grid, width: 1 },
      values: (_, splits) => splits.map((value) => (value === null ? "" : tick(value))),
      space: large ? 34 : 26,
    };
    if (log) {
      y.splits = (_u, _i, min, max) => logSplits(min, max);
      y.filter = (_u, splits) => splits; // uPlot would label whole decades only
    }
    const points = metric.sparse
      ? { show: true, size: 5, fill: colours.line, stroke: colours.line, width: 0 }
      : { show: false };
    return {
      width,
      height,
      padding: [8, 14, 0, 2],
      legend: { show: false },
      scales: {
        x: { time: false, min: scene.from, max: scene.to, range: () => [this.scene?.from ?? 0, this.scene?.to ?? 1] },
        y: log
          ? { distr: 3, log: 10, range: (_u, min, max) => logRange(min, max) }
          : { range: (_u, min, max) => linearRange(min, max, metric.zero) },
      },
      axes: [
        { ...axis, size: 22, gap: 4, grid: { show: false }, border: { show: true, stroke: colours.grid, width: 1 }, space: 60, values: (_, splits) => splits.map(tick), incrs: WHOLE },
        y,
      ],
      series: [
        {},
        { stroke: metric.noisy ? colours.band : "transparent", width: metric.noisy ? 1 : 0, points: { show: false } },
        { stroke: metric.noisy ? colours.band : "transparent", width: metric.noisy ? 1 : 0, points: { show: false } },
        { stroke: colours.line, width: large ? 1.75 : 1.5, points, spanGaps: true },
      ],
      bands: metric.noisy ? [{ series: [1, 2], fill: colours.band }] : [],
      cursor: {
        y: false,
        points: { show: (_u, i) => ring(i, colours) },
        drag: { x: true, y: false, setScale: false, dist: 6 },
        bind: {
          mousedown: (_u, _t, handler) => (event) => {
            if (event.button === 0) handler(event);
            return null;
          },
          dblclick: () => () => {
            shared.setZoom(null);
            return null;
          },
        },
      },
      hooks: {
        setCursor: [(u) => {
          const { left } = u.cursor;
          shared.setCursor(left === undefined || left === null || left < 0 ? null : Math.round(u.posToVal(left, "x")));
          this.cursorStep = shared.cursor;
        }],
        setSelect: [(u) => {
          if (u.select.width < 6) return;
          const from = Math.round(u.posToVal(u.select.left, "x"));
          const to = Math.round(u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (to - from >= 2) shared.setZoom({ from, to });
        }],
        drawAxes: [(u) => this.undone(u, colours)],
        draw: [(u) => this.overlay(u, colours)],
      },
    };
  }

  /** Below the curves, faint and dashed: what a rollback, or a later session, has done again. */
  private undone(u: uPlot, colours: Palette): void {
    const { scene, metric } = this;
    if (scene === null || scene.columns.undone.length === 0) return;
    const { ctx } = u;
    const px = uPlot.pxRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    ctx.strokeStyle = colours.undone;
    ctx.lineWidth = 1.25 * px;
    ctx.setLineDash([4 * px, 3 * px]);
    const log = shared.log && metric.log;
    const alpha = metric.noisy ? shared.smoothing : 0;
    const line = metric.noisy ? scene.columns.smoothed(metric.key, alpha) : scene.columns.values(metric.key);
    for (const part of scene.columns.undone) {
      const values = part.values.get(metric.key);
      const first = part.steps[0];
      if (values === undefined || first === undefined || first > scene.to || (part.steps.at(-1) as number) < scene.from) continue;
      const row = lowerBound(scene.columns.step.values, scene.columns.length, first) - 1;
      let last = row < 0 ? NaN : (line?.[row] ?? NaN);
      let at = -Infinity;
      ctx.beginPath();
      if (!Number.isNaN(last) && !(log && last <= 0)) {
        ctx.moveTo(u.valToPos(scene.columns.step.values[row] as number, "x", true), u.valToPos(last * metric.factor, "y", true));
      }
      for (let i = 0; i < values.length; i += 1) {
        const value = values[i] as number;
        if (Number.isNaN(value) || (log && value <= 0)) continue;
        last = Number.isNaN(last) ? value : alpha * last + (1 - alpha) * value;
        const left = u.valToPos(part.steps[i] as number, "x", true);
        if (left - at < px && i < values.length - 1) continue;
        at = left;
        ctx.lineTo(left, u.valToPos(last * metric.factor, "y", true));
      }
      ctx.stroke();
    }
    ctx.restore();
  }

  /** What is drawn over the curves: rules, validation rings, the end of the data, the letter. */
  private overlay(u: uPlot, colours: Palette): void {
    const { scene } = this;
    if (scene === null) return;
    const { ctx } = u;
    const px = uPlot.pxRatio;
    const { left, top, width, height } = u.bbox;
    const x = (step: number): number => u.valToPos(step, "x", true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top - 4 * px, width + 14 * px, height + 4 * px);
    ctx.clip();
    const last = scene.columns.lastStep();
    if (scene.ended !== null && last !== null && last < scene.to && this.large) {
      hatch(ctx, x(last), top, left + width - x(last), height, colours, px);
      ctx.fillStyle = colours.axis;
      ctx.textAlign = "left";
      ctx.textBaseline = "alphabetic";
      ctx.font = colours.font.replace("11px", `${11 * px}px`);
      if (left + width - x(last) > 70 * px) ctx.fillText(scene.ended, x(last) + 10 * px, top + height - 8 * px);
    }
    if (this.large) {
      this.rules(ctx, scene, x, top, height, colours, px);
      this.rings(u, scene, x, colours, px);
      this.letter(u, scene, x, colours, px);
    } else {
      this.end(u, scene, x, colours, px);
    }
    ctx.restore();
  }

  /** A dot at the newest point of a small chart. */
  private end(
    u: uPlot, scene: Scene, x: (step: number) => number, colours: Palette, px: number,
  ): void {
    const at = u.data[0].length - 1;
    const step = u.data[0][at];
    const value = u.data[3]?.[at];
    if (step === undefined || value === undefined || value === null || !within(step, scene)) return;
    u.ctx.fillStyle = colours.line;
    u.ctx.beginPath();
    u.ctx.arc(x(step), u.valToPos(value, "y", true), 2.5 * px, 0, 2 * Math.PI);
    u.ctx.fill();
  }

  private rules(
    ctx: CanvasRenderingContext2D, scene: Scene, x: (step: number) => number,
    top: number, height: number, colours: Palette, px: number,
  ): void {
    ctx.strokeStyle = colours.axis;
    ctx.fillStyle = colours.axis;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.lineWidth = px;
    ctx.setLineDash([2 * px, 3 * px]);
    ctx.font = colours.font.replace("11px", `${11 * px}px`);
    const rules = scene.rules.filter((rule) => within(rule.step, scene));
    for (const rule of rules) {
      const at = Math.round(x(rule.step)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
    }
    const free = [-Infinity, -Infinity]; // a label that would touch the one before goes below it
    for (const rule of rules) {
      const at = Math.round(x(rule.step)) + 0.5;
      const row = free.findIndex((end) => at > end);
      if (row < 0) continue;
      const wide = ctx.measureText(rule.label).width;
      const base = top + (10 + 14 * row) * px;
      ctx.fillStyle = colours.surface;
      ctx.fillRect(at + 2 * px, base - 10 * px, wide + 4 * px, 13 * px);
      ctx.fillStyle = colours.axis;
      ctx.fillText(rule.label, at + 4 * px, base);
      free[row] = at + wide + 8 * px;
    }
    ctx.setLineDash([]);
  }

  private rings(
    u: uPlot, scene: Scene, x: (step: number) => number, colours: Palette, px: number,
  ): void {
    const { ctx } = u;
    const values = scene.columns.values("val_loss");
    if (values === undefined) return;
    ctx.strokeStyle = colours.line;
    ctx.fillStyle = colours.surface;
    ctx.lineWidth = 1.5 * px;
    let free = -Infinity;
    const [low, high] = [u.scales["y"]?.min ?? 0, u.scales["y"]?.max ?? 0];
    for (const row of this.changed) {
      const step = scene.columns.step.values[row] as number;
      const value = values[row] as number;
      const at = x(step);
      if (!within(step, scene) || value < low || value > high || at < free) continue;
      ctx.beginPath();
      ctx.arc(at, u.valToPos(value, "y", true), 3.5 * px, 0, 2 * Math.PI);
      ctx.fill();
      ctx.stroke();
      free = at + 3 * px;
    }
  }

  private letter(
    u: uPlot, scene: Scene, x: (step: number) => number, colours: Palette, px: number,
  ): void {
    const { ctx } = u;
    const line = u.data[3];
    const at = line === undefined ? -1 : line.length - 1;
    const value = line?.[at];
    const step = u.data[0][at];
    if (step === undefined || value === undefined || value === null || !within(step, scene)) return;
    const size = 14 * px;
    const left = Math.min(x(step) + 5 * px, u.bbox.left + u.bbox.width);
    const top = u.valToPos(value, "y", true) - size / 2;
    ctx.fillStyle = colours.line;
    ctx.beginPath();
    ctx.roundRect(left, top, size, size, 3 * px);
    ctx.fill();
    ctx.fillStyle = colours.onTag;
    ctx.font = colours.font.replace("11px", `700 ${10 * px}px`);
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(scene.letter, left + size / 2, top + size / 2 + 0.5 * px);
  }
}

const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7];

function within(step: number, scene: Scene): boolean {
  return step >= scene.from && step <= scene.to;
}

/** The cursor's ring on the line; the edges of the band have none. */
function ring(series: number, colours: Palette): HTMLElement {
  const point = document.createElement("div");
  if (series === 3) {
    point.className = "ring";
    point.style.borderColor = colours.line;
    point.style.background = colours.surface;
  } else {
    point.hidden = true;
  }
  return point;
}

function hatch(
  ctx: CanvasRenderingContext2D, left: number, top: number, width: number, height: number,
  colours: Palette, px: number,
): void {
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  ctx.strokeStyle = colours.grid;
  ctx.lineWidth = px;
  for (let x = left - height; x < left + width; x += 7 * px) {
    ctx.beginPath();
    ctx.moveTo(x, top + height);
    ctx.lineTo(x + height, top);
    ctx.stroke();
  }
  ctx.restore();
}

function linearRange(min: number | null, max: number | null, zero: boolean): [number, number] {
  if (min === null || max === null) return [0, 1];
  const size = max - min;
  if (size === 0) {
    const pad = max === 0 ? 1 : Math.abs(max) * 0.2;
    return zero && min >= 0 ? [0, max + pad] : [min - pad, max + pad];
  }
  const pad = size * 0.08;
  return zero && min >= 0 ? [0, max + max * 0.08] : [min - (min >= 0 && min - pad < 0 ? min : pad), max + pad];
}

function logRange(min: number | null, max: number | null): [number, number] {
  if (min === null || max === null || min <= 0) return [0.1, 1];
  const pad = max / min < 1.2 ? 1.2 : 1.08;
  return [min / pad, max * pad];
}

function logSplits(min: number, max: number): number[] {
  const decades = Math.log10(max / min);
  const mantissas = decades < 0.6 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 3 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / 6));
  const out: number[] = [];
  for (let e = Math.floor(Math.log10(min)); e <= Math.ceil(Math.log10(max)); e += 1) {
    if (decades >= 3 && e % every !== 0) continue;
    for (const m of mantissas) {
      const value = m * 10 ** e;
      if (value >= min && value <= max) out.push(value);
    }
  }
  return out;
}
