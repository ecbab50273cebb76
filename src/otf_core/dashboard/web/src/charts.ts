/** The uPlot charts. Preact makes the boxes and heads; this file draws into the boxes.
 *
 * A chart is drawn in the page's one animation frame, when it is visible and something that it
 * shows has changed. uPlot fails when it is drawn without data, so it is made with the first batch.
 */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { lowerBound, type Thinned } from "./columns";
import { count, tick } from "./format";
import { bucketOf, type Found } from "./lines";
import type { Metric } from "./metrics";
import type { Drawn, Scene } from "./scene";
import { shared } from "./view";

interface Palette {
  line: string;
  band: string;
  undone: string;
  grid: string;
  axis: string;
  surface: string;
  text: string;
  onTag: string;
  font: string;
}

const palettes = new Map<string, Palette>();
let painted = -1;

/** The colours of a run, read once for each theme. */
function coloursOf(colour: string): Palette {
  if (painted !== shared.version) palettes.clear();
  painted = shared.version;
  const known = palettes.get(colour);
  if (known !== undefined) return known;
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
    text: get("--text"),
    onTag: get(`--on-run-${colour}`),
    font: `11px ${get("--font")}`,
  };
  palettes.set(colour, colours);
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

/** Another run on a chart, as it was drawn last. */
interface Other {
  run: Drawn;
  x: number[];
  y: (number | null)[];
  ring: HTMLElement;
}

/** A press on a plot that was no drag: which run is nearest to it, and at which step. */
export type OnPress = (run: string, step: number, at: { x: number; y: number }) => void;

export class Chart {
  visible = true;
  private plot: uPlot | null = null;
  private key = "";
  private drawn = "";
  private width = 0;
  private height = 0;
  private scene: Scene | null = null;
  private pointed = "";
  private changed: Found[] = [];
  private others: Other[] = [];
  private readonly rings = new Map<string, HTMLElement>();
  private label: HTMLElement | null = null;
  private wasDrag = false;
  /** It was made or resized in this frame. */
  private laid = false;

  constructor(
    readonly box: HTMLElement,
    readonly metric: Metric,
    readonly large: boolean,
    private readonly onPress: OnPress,
  ) {
    charts.add(this);
    seen.observe(box);
    sized.observe(box);
    box.addEventListener("pointerdown", this.onDown);
    box.addEventListener("click", this.onClick);
    box.addEventListener("pointermove", this.onMove);
    box.addEventListener("pointerleave", this.onLeave);
  }

  destroy(): void {
    charts.delete(this);
    seen.unobserve(this.box);
    sized.unobserve(this.box);
    this.box.removeEventListener("pointerdown", this.onDown);
    this.box.removeEventListener("click", this.onClick);
    this.box.removeEventListener("pointermove", this.onMove);
    this.box.removeEventListener("pointerleave", this.onLeave);
    this.drop();
    if (this.large) shared.plot = null;
  }

  private drop(): void {
    this.plot?.destroy();
    this.plot = null;
    this.rings.clear();
    this.label = null;
  }

  private readonly onDown = (): void => {
    this.wasDrag = false;
  };

  /** Not uPlot's own hook, which also tells of the cursors that the page has set. */
  private readonly onMove = (event: PointerEvent): void => {
    if (this.plot === null) return;
    const over = this.plot.over.getBoundingClientRect();
    const left = event.clientX - over.left;
    const step = left < 0 || left > over.width ? NaN : Math.round(this.plot.posToVal(left, "x"));
    shared.setCursor(Number.isFinite(step) ? step : null);
  };

  private readonly onLeave = (): void => {
    if (document.activeElement !== this.box) shared.setCursor(null);
  };

  private readonly onClick = (event: MouseEvent): void => {
    const { plot, scene } = this;
    if (plot === null || scene === null || this.wasDrag || event.button !== 0) return;
    const over = plot.over.getBoundingClientRect();
    const left = event.clientX - over.left;
    if (left < 0 || left > over.width) return;
    const step = Math.round(plot.posToVal(left, "x"));
    const run = this.nearest(step, event.clientY - over.top);
    const last = run.lines.lastStep();
    if (last === null) return;
    const kept = Math.min(last, Math.max(run.lines.firstStep() ?? 0, step));
    this.onPress(run.key, kept, { x: event.clientX, y: event.clientY });
  };

  /** The run whose line passes nearest, the one in focus where none is near. */
  private nearest(step: number, top: number): Drawn {
    const { plot, scene } = this;
    let best = (scene as Scene).focus;
    if (plot === null) return best;
    const at = plot.valToIdx(step);
    const own = plot.data[3]?.[at];
    let near = own === undefined || own === null ? 24 : Math.abs(plot.valToPos(own, "y") - top);
    for (const one of this.others) {
      const i = indexBefore(one.x, step);
      const value = one.y[i];
      if (value === undefined || value === null || step > (one.x.at(-1) as number)) continue;
      const far = Math.abs(plot.valToPos(value, "y") - top);
      if (far < near - 4) [best, near] = [one.run, far];
    }
    return best;
  }

  /** Where the cursor stands in the window, for a menu that the keyboard opens. */
  spot(step: number): { x: number; y: number } {
    const box = (this.plot?.over ?? this.box).getBoundingClientRect();
    return { x: box.left + (this.plot?.valToPos(step, "x") ?? 0), y: box.top + 30 };
  }

  draw(scene: Scene | null): void {
    this.scene = scene;
    if (scene === null || !this.visible || ![scene.focus, ...scene.others].some((one) => one.lines.has(this.metric.key))) return;
    const width = this.box.clientWidth;
    const height = this.box.clientHeight;
    if (width < 40 || height < 30) return;
    const log = shared.log && this.metric.log;
    const key = `${scene.focus.key} ${scene.focus.colour} ${shared.version} ${log}`;
    if (this.plot !== null && key !== this.key) this.drop();
    const laid = this.laid = this.plot === null || width !== this.width || height !== this.height;
    const drawn = `${scene.version} ${scene.from} ${scene.to} ${width} ${height} ${scene.ended ?? ""}`;
    if (this.plot === null || drawn !== this.drawn) {
      this.others = scene.others.map((run) => this.other(run, scene, width, log)).filter((one) => one !== null);
      const data = this.thinned(scene, width, log) ?? (this.others.length > 0 ? [[scene.from], [null], [null], [null]] : null);
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
      this.pointed = "";
    }
    if (this.large) {
      // uPlot lays itself out after this frame: a new or resized plot is measured in the next one.
      const box = this.plot.over.getBoundingClientRect();
      if (laid) wake();
      else if (box.width > 0) shared.plot = { left: box.left, width: box.width };
    }
    this.point(drawn);
  }

  /** Show the shared cursor in this chart. */
  private point(drawn: string): void {
    const plot = this.plot;
    const { cursor } = shared;
    const now = `${cursor ?? ""} ${drawn}`;
    if (plot === null || now === this.pointed) return;
    this.pointed = now;
    const left = cursor === null ? -10 : plot.valToPos(cursor, "x");
    if (!Number.isFinite(left)) {
      this.pointed = ""; // it is laid out after this frame
      if (this.laid) wake();
      return;
    }
    plot.setCursor({ left, top: left < 0 ? -10 : 10 }, false);
    for (const [key, ring] of this.rings) ring.hidden = cursor === null || !this.others.some((one) => one.run.key === key);
    for (const one of this.others) {
      if (one.ring.parentElement === null) plot.over.append(one.ring);
      const i = cursor === null ? -1 : indexBefore(one.x, cursor);
      const value = one.y[i];
      const gone = cursor === null || i < 0 || value === undefined || value === null || cursor > (one.run.lines.lastStep() ?? -1);
      one.ring.hidden = gone;
      if (gone) continue;
      const at = this.metric.sparse ? (one.x[i] as number) : cursor;
      one.ring.style.transform = `translate(${plot.valToPos(at, "x").toFixed(1)}px, ${plot.valToPos(value, "y").toFixed(1)}px)`;
    }
    if (this.large) this.chip(plot, cursor, left);
  }

  /** "step 7,420" below the cursor of the large chart. */
  private chip(plot: uPlot, cursor: number | null, left: number): void {
    if (this.label === null) {
      this.label = document.createElement("div");
      this.label.className = "chip";
      plot.over.append(this.label);
    }
    this.label.hidden = cursor === null || left < 0 || left > plot.over.clientWidth;
    if (this.label.hidden) return;
    this.label.textContent = `step ${count(cursor)}`;
    const half = this.label.offsetWidth / 2;
    this.label.style.left = `${Math.min(plot.over.clientWidth - half, Math.max(half, left)).toFixed(0)}px`;
  }

  private other(run: Drawn, scene: Scene, width: number, log: boolean): Other | null {
    const { key, factor, sparse } = this.metric;
    if (!run.lines.has(key)) return null;
    let x: number[];
    let y: (number | null)[];
    if (sparse) {
      const found = run.lines.changes(key).filter((one) => !log || one.value > 0);
      [x, y] = [found.map((one) => one.step), found.map((one) => one.value * factor)];
    } else {
      const data = run.lines.thinned(key, scene.from, scene.to, bucketOf(scene.from, scene.to, width), this.alpha(), log);
      [x, y] = [data[0], factor === 1 ? data[3] : data[3].map((one) => (one === null ? null : one * factor))];
    }
    if (x.length === 0) return null;
    let ring = this.rings.get(run.key);
    if (ring === undefined) {
      ring = document.createElement("div");
      ring.className = "ring other";
      this.rings.set(run.key, ring);
    }
    const colours = coloursOf(run.colour);
    ring.style.borderColor = colours.line;
    ring.style.background = colours.surface;
    return { run, x, y, ring };
  }

  private alpha(): number {
    return this.metric.noisy ? shared.smoothing : 0;
  }

  private thinned(scene: Scene, width: number, log: boolean): (number | null)[][] | null {
    const { lines } = scene.focus;
    const { key, factor, sparse } = this.metric;
    if (!lines.has(key)) return null;
    this.changed = sparse ? lines.changes(key) : this.large && key === "loss" ? lines.changes("val_loss") : [];
    if (sparse) {
      let found = this.changed.filter((one) => !log || one.value > 0);
      const inside = found.filter((one) => within(one.step, scene));
      if (inside.length > width) found = inside.filter((_, i) => i % Math.ceil(inside.length / width) === 0);
      const values = found.map((one) => one.value * factor);
      return found.length === 0 ? null : [found.map((one) => one.step), values, values, values];
    }
    const data: Thinned = lines.thinned(key, scene.from, scene.to, bucketOf(scene.from, scene.to, width), this.alpha(), log);
    if (data[0].length === 0) return null;
    if (factor === 1) return data;
    return [data[0], ...data.slice(1).map((side) => side.map((value) => (value === null ? null : value * factor)))];
  }

  /** The range of the y axis holds what the other runs have in view. */
  private reach(min: number | null, max: number | null): [number | null, number | null] {
    const { scene } = this;
    let [low, high] = [min ?? Infinity, max ?? -Infinity];
    for (const one of this.others) {
      for (let i = 0; i < one.x.length; i += 1) {
        const value = one.y[i];
        if (value === null || value === undefined || scene === null || !within(one.x[i] as number, scene)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return low > high ? [null, null] : [low, high];
  }

  private options(width: number, height: number, log: boolean): uPlot.Options {
    const scene = this.scene as Scene;
    const colours = coloursOf(scene.focus.colour);
    const { large, metric } = this;
    const stacked = shared.layout === "stack" && !large;
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
          ? { distr: 3, log: 10, range: (_u, min, max) => logRange(...this.reach(min, max)) }
          : { range: (_u, min, max) => linearRange(...this.reach(min, max), metric.zero) },
      },
      axes: [
        {
          ...axis, size: stacked ? 8 : 22, gap: 4, grid: { show: false }, border: { show: true, stroke: colours.grid, width: 1 }, space: 60,
          values: (_, splits) => splits.map((step) => (stacked ? "" : tick(step))), incrs: WHOLE,
        },
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
            shared.openSpot(null);
            shared.setZoom(null);
            return null;
          },
        },
      },
      hooks: {
        setSelect: [(u) => {
          if (u.select.width < 6) return;
          this.wasDrag = true;
          const from = Math.round(u.posToVal(u.select.left, "x"));
          const to = Math.round(u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (to - from >= 2) shared.setZoom({ from, to });
        }],
        drawAxes: [(u) => {
          this.undone(u, colours);
          this.beside(u);
        }],
        draw: [(u) => this.overlay(u, colours)],
      },
    };
  }

  /** Below the curves, faint and dashed: what a rollback, or a later session, has done again. */
  private undone(u: uPlot, colours: Palette): void {
    const { scene, metric } = this;
    if (scene === null) return;
    const { columns } = scene.focus.lines;
    if (columns.undone.length === 0) return;
    const { ctx } = u;
    const px = uPlot.pxRatio;
    clip(u);
    ctx.strokeStyle = colours.undone;
    ctx.lineWidth = 1.25 * px;
    ctx.setLineDash([4 * px, 3 * px]);
    const log = shared.log && metric.log;
    const alpha = metric.noisy ? shared.smoothing : 0;
    const line = metric.noisy ? columns.smoothed(metric.key, alpha) : columns.values(metric.key);
    for (const part of columns.undone) {
      const values = part.values.get(metric.key);
      const first = part.steps[0];
      if (values === undefined || first === undefined || first > scene.to || (part.steps.at(-1) as number) < scene.from) continue;
      const row = lowerBound(columns.step.values, columns.length, first) - 1;
      let last = row < 0 ? NaN : (line?.[row] ?? NaN);
      let at = -Infinity;
      ctx.beginPath();
      if (!Number.isNaN(last) && !(log && last <= 0)) {
        ctx.moveTo(u.valToPos(columns.step.values[row] as number, "x", true), u.valToPos(last * metric.factor, "y", true));
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

  /** Below the curve of the run in focus: those of the others. */
  private beside(u: uPlot): void {
    if (this.others.length === 0) return;
    const { ctx } = u;
    const px = uPlot.pxRatio;
    clip(u);
    ctx.lineWidth = 1.25 * px;
    ctx.lineJoin = "round";
    for (const one of this.others) {
      ctx.strokeStyle = coloursOf(one.run.colour).line;
      ctx.setLineDash(one.run.dashed ? [5 * px, 3 * px] : []);
      ctx.beginPath();
      let open = false;
      for (let i = 0; i < one.x.length; i += 1) {
        const value = one.y[i];
        if (value === null || value === undefined) continue;
        const [x, y] = [u.valToPos(one.x[i] as number, "x", true), u.valToPos(value, "y", true)];
        if (open) ctx.lineTo(x, y);
        else ctx.moveTo(x, y);
        open = true;
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
    const last = scene.focus.lines.lastStep();
    if (scene.ended !== null && last !== null && last < scene.to && this.large) {
      hatch(ctx, x(last), top, left + width - x(last), height, colours, px);
      ctx.fillStyle = colours.axis;
      ctx.textAlign = "left";
      ctx.textBaseline = "alphabetic";
      ctx.font = colours.font.replace("11px", `${11 * px}px`);
      if (left + width - x(last) > 70 * px) ctx.fillText(scene.ended, x(last) + 10 * px, top + height - 8 * px);
    }
    this.limit(u, scene, x, colours, px);
    if (this.large || shared.layout === "stack") this.rules(ctx, scene, x, top, height, colours, px);
    if (this.large) {
      if (this.metric.key === "loss") this.marks(u, scene, x, colours, px);
      this.letters(u, scene, x, px);
    } else {
      this.end(u, scene, x, colours, px);
    }
    ctx.restore();
  }

  /** A limit that holds for the metric: dashed. */
  private limit(u: uPlot, scene: Scene, x: (step: number) => number, colours: Palette, px: number): void {
    const found = scene.limits.get(this.metric.key);
    const { min, max } = u.scales["y"] ?? {};
    if (found === undefined || typeof min !== "number" || typeof max !== "number" || found.value < min || found.value > max) return;
    const { ctx } = u;
    const y = Math.round(u.valToPos(found.value * this.metric.factor, "y", true)) + 0.5;
    ctx.strokeStyle = colours.axis;
    ctx.lineWidth = px;
    ctx.setLineDash([4 * px, 3 * px]);
    ctx.beginPath();
    ctx.moveTo(Math.max(u.bbox.left, x(Math.max(found.from, scene.from))), y);
    ctx.lineTo(u.bbox.left + u.bbox.width, y);
    ctx.stroke();
    ctx.setLineDash([]);
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
    if (!this.large) {
      ctx.setLineDash([]);
      return;
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

  private marks(
    u: uPlot, scene: Scene, x: (step: number) => number, colours: Palette, px: number,
  ): void {
    const { ctx } = u;
    ctx.strokeStyle = colours.line;
    ctx.fillStyle = colours.surface;
    ctx.lineWidth = 1.5 * px;
    let free = -Infinity;
    const [low, high] = [u.scales["y"]?.min ?? 0, u.scales["y"]?.max ?? 0];
    for (const { step, value } of this.changed) {
      const at = x(step);
      if (!within(step, scene) || value < low || value > high || at < free) continue;
      ctx.beginPath();
      ctx.arc(at, u.valToPos(value, "y", true), 3.5 * px, 0, 2 * Math.PI);
      ctx.fill();
      ctx.stroke();
      free = at + 3 * px;
    }
  }

  /** The letter of each run at the end of its line: which it is, never by colour alone. */
  private letters(u: uPlot, scene: Scene, x: (step: number) => number, px: number): void {
    const { ctx } = u;
    const size = 14 * px;
    const own = { run: scene.focus, x: u.data[0] as ArrayLike<number>, y: u.data[3] as ArrayLike<number | null> };
    const ends: { run: Drawn; left: number; top: number }[] = [];
    for (const one of [own, ...this.others]) {
      const at = one.x.length - 1;
      const [step, value] = [one.x[at], one.y[at]];
      if (step === undefined || value === undefined || value === null || !within(step, scene)) continue;
      ends.push({ run: one.run, left: Math.min(x(step) + 5 * px, u.bbox.left + u.bbox.width), top: u.valToPos(value, "y", true) - size / 2 });
    }
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    const placed: { left: number; top: number }[] = [];
    for (const one of ends.sort((a, b) => a.top - b.top)) {
      let top = Math.min(u.bbox.top + u.bbox.height - size, Math.max(u.bbox.top, one.top));
      for (const other of placed) if (Math.abs(other.left - one.left) < size + 2 * px && Math.abs(other.top - top) < size + px) top = other.top + size + px;
      placed.push({ left: one.left, top });
      const colours = coloursOf(one.run.colour);
      ctx.fillStyle = colours.line;
      ctx.beginPath();
      ctx.roundRect(one.left, top, size, size, 3 * px);
      ctx.fill();
      ctx.fillStyle = colours.onTag;
      ctx.font = colours.font.replace("11px", `700 ${10 * px}px`);
      ctx.fillText(one.run.letter, one.left + size / 2, top + size / 2 + 0.5 * px);
    }
  }
}

/** Index of the last x at or before a step, -1 if there is none. */
function indexBefore(x: number[], step: number): number {
  let [low, high] = [0, x.length];
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((x[mid] as number) <= step) low = mid + 1;
    else high = mid;
  }
  return low - 1;
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

/** Draw within the plot alone, until the context is restored. */
function clip({ ctx, bbox }: uPlot): void {
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
}
