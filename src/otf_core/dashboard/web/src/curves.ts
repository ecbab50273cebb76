/** Curves of a run as the server has thinned them: of each bucket the least and the greatest value.
 *
 * A run whose steps are all here needs none of it. One that is long, or that the page does not
 * follow step by step, has a part over its whole length and, while it is zoomed into, a finer one.
 */

import { isDict, lowerBound, upperBound } from "./columns";

/** Points of one metric, in the order of their steps; each is a value of the journal. */
export interface Curve {
  step: Float64Array;
  value: Float64Array;
  seq: Float64Array;
}

/** What one answer of the server covers. */
export interface Part {
  from: number;
  to: number;
  /** Steps of a bucket. */
  size: number;
  /** Steps of the run within. */
  total: number;
  series: Map<string, Curve>;
}

/** Buckets asked for: about one a pixel of a wide screen. */
export const BUCKETS = 1_000;

/** Steps of a bucket: the power of two that makes at most `most` buckets of a range. */
export function sizeOf(from: number, to: number, most: number): number {
  let size = 1;
  while (Math.floor(to / size) - Math.floor(from / size) >= Math.max(1, most)) size *= 2;
  return size;
}

/** The page's name of a metric that the server knows by the name that the module logs it under. */
export function keyOfName(name: string, known: ReadonlySet<string>): string {
  return known.has(name) ? name : `metrics.${name}`;
}

/** Read an answer of the server, null if it is none. */
export function readPart(answer: unknown, known: ReadonlySet<string>): Part | null {
  if (!isDict(answer) || !isDict(answer["series"])) return null;
  const { from, to, bucket_steps: size, total } = answer;
  if (typeof from !== "number" || typeof to !== "number" || typeof size !== "number") return null;
  const series = new Map<string, Curve>();
  for (const [name, told] of Object.entries(answer["series"])) {
    if (!isDict(told) || !Array.isArray(told["step"]) || told["step"].length === 0) continue;
    series.set(keyOfName(name, known), {
      step: Float64Array.from(told["step"] as number[]),
      value: Float64Array.from(told["value"] as number[]),
      seq: Float64Array.from(told["seq"] as number[]),
    });
  }
  return { from, to, size, total: typeof total === "number" ? total : 0, series };
}

/** The points of one metric below a step, from the finest parts that cover them. */
export function below(parts: readonly (Part | null)[], key: string, from: number, to: number, end: number): Curve | null {
  for (const part of parts) {
    const curve = part?.series.get(key);
    if (part === null || curve === undefined) continue;
    if (part.from > from && part !== parts.at(-1)) continue;
    if (part.to < Math.min(to, end - 1) && part !== parts.at(-1)) continue;
    // A point more on either side, so that lines go on to the edges.
    const first = Math.max(0, lowerBound(curve.step, curve.step.length, from) - 2);
    const last = Math.min(lowerBound(curve.step, curve.step.length, end), upperBound(curve.step, curve.step.length, to) + 2);
    if (first >= last) return null;
    return { step: curve.step.subarray(first, last), value: curve.value.subarray(first, last), seq: curve.seq.subarray(first, last) };
  }
  return null;
}

/** Index of the last point at or before a step, -1 if there is none. */
export function indexAt(curve: Curve, step: number): number {
  return upperBound(curve.step, curve.step.length, step) - 1;
}

/** Steps at which epochs begin, as well as the buckets tell. */
export function epochsOf(part: Part): Map<number, number> {
  const found = new Map<number, number>();
  const curve = part.series.get("epoch") ?? part.series.get("metrics.epoch");
  if (curve === undefined) return found;
  for (let i = 0; i < curve.step.length; i += 1) {
    const epoch = curve.value[i] as number;
    if (!found.has(epoch)) found.set(epoch, curve.step[i] as number);
  }
  return found;
}
