/** Losses as bars on a logarithmic scale of counts, and a range of them. Pure functions. */

export interface Histogram {
  /** One more than counts; both are empty where no loss is finite. */
  edges: number[];
  counts: number[];
}

export interface Range {
  from: number;
  to: number;
}

/** The height of a count, 0 to 1: one sample is still seen. */
export function heightOf(n: number, most: number): number {
  if (n <= 0) return 0;
  const floor = Math.log10(0.7);
  return (Math.log10(n) - floor) / (Math.log10(Math.max(most, 1) * 1.25) - floor);
}

/** Powers of ten for the axis, four at most. */
export function ticksOf(most: number): number[] {
  const top = Math.floor(Math.log10(Math.max(1, most)));
  const every = Math.max(1, Math.ceil((top + 1) / 4));
  return Array.from({ length: Math.floor(top / every) + 1 }, (_, i) => 10 ** (i * every));
}

/** Round losses for the axis, about five. */
export function lossTicks(low: number, high: number): number[] {
  const width = high - low;
  if (!(width > 0)) return [low];
  const rough = width / 5;
  const size = 10 ** Math.floor(Math.log10(rough));
  const every = ([1, 2, 5, 10].find((n) => n * size >= rough) ?? 10) * size;
  const ticks: number[] = [];
  for (let at = Math.ceil(low / every - 1e-9) * every; at <= high + every * 1e-9; at += every) {
    ticks.push(Number(at.toPrecision(12)));
  }
  return ticks;
}

/** About how many samples a range has, until the trainer has counted them. */
export function about({ edges, counts }: Histogram, { from, to }: Range): number {
  let sum = 0;
  counts.forEach((n, i) => {
    const [low, high] = [edges[i] as number, edges[i + 1] as number];
    if (high <= low) sum += from <= low && low <= to ? n : 0;
    else sum += n * Math.max(0, Math.min(high, to) - Math.max(low, from)) / (high - low);
  });
  return Math.round(sum);
}

export function extentOf({ edges }: Histogram): Range | null {
  const [from, to] = [edges[0], edges.at(-1)];
  return from === undefined || to === undefined ? null : { from, to };
}

/** One handle moved: it stays within the losses, and does not pass the other one. */
export function moved(range: Range, which: "from" | "to", to: number, extent: Range): Range {
  const value = Math.min(extent.to, Math.max(extent.from, to));
  return which === "from"
    ? { from: Math.min(value, range.to), to: range.to }
    : { from: range.from, to: Math.max(value, range.from) };
}

/** Where a key takes a handle, null if it is none of a slider's. */
export function byKey(value: number, key: string, extent: Range): number | null {
  const width = extent.to - extent.from;
  const steps: Record<string, number> = {
    ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
  };
  if (key === "Home") return extent.from;
  if (key === "End") return extent.to;
  const step = steps[key];
  return step === undefined ? null : value + (step * width) / 100;
}

/** The worst tenth, by the quantiles of a scan. */
export function worstTenth(quantiles: { share: number; loss: number }[], extent: Range): Range {
  const at = quantiles.find((one) => Math.abs(one.share - 0.9) < 1e-9)?.loss;
  return { from: at ?? extent.from + (extent.to - extent.from) * 0.9, to: extent.to };
}
