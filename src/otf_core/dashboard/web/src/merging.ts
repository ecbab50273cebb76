/** What a merge is made of, and what a preview says of it. Pure functions. */

import { isDict } from "./columns";
import type { Member } from "./family";
import type { Dict } from "./types";

export interface Source {
  run_id: string;
  /** None: where it was left, or stands. */
  checkpoint: string | null;
}

export interface Candidate {
  strategy: string;
  score: number | null;
  accuracy: number | null;
  seconds: number | null;
  told: string[];
  refused: string | null;
}

export interface ParentWorth {
  run_id: string;
  checkpoint: string | null;
  score: number | null;
  accuracy: number | null;
}

export interface Preview {
  parents: ParentWorth[];
  candidates: Candidate[];
}

/** Of a reply's lists, or of what has been told one by one while it is evaluated. */
export function previewOf(rows: Dict[]): Preview {
  const preview: Preview = { parents: [], candidates: [] };
  for (const row of rows) {
    const common = { score: numeric(row["score"]), accuracy: accuracyOf(row["metrics"]) };
    if (typeof row["strategy"] === "string") {
      preview.candidates.push({
        strategy: row["strategy"], ...common, seconds: numeric(row["seconds"]),
        told: Array.isArray(row["told"]) ? row["told"].map(String) : [],
        refused: typeof row["refused"] === "string" ? row["refused"] : null,
      });
    } else if (typeof row["run_id"] === "string") {
      preview.parents.push({
        run_id: row["run_id"], checkpoint: typeof row["checkpoint"] === "string" ? row["checkpoint"] : null, ...common,
      });
    }
  }
  return preview;
}

export function rowsOf(data: Dict): Dict[] {
  return [data["parents"], data["candidates"]].flatMap((list) => (Array.isArray(list) ? (list.filter(isDict) as Dict[]) : []));
}

function numeric(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** The metric that a person calls accuracy, where one is logged. */
export function accuracyOf(metrics: unknown): number | null {
  if (!isDict(metrics)) return null;
  const name = Object.keys(metrics).find((key) => /(^|[^a-z])acc(uracy)?([^a-z]|$)/i.test(key));
  return name === undefined ? null : numeric(metrics[name]);
}

/** The ends of the axis that all candidates share. */
export function axisOf({ parents, candidates }: Preview): { low: number; high: number } | null {
  const scores = [...parents, ...candidates].map((one) => one.score).filter((score) => score !== null);
  if (scores.length === 0) return null;
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return { low: low - room, high: high + room };
}

/** Percent of the axis. */
export function placeOn(axis: { low: number; high: number }, score: number): number {
  return (100 * (score - axis.low)) / (axis.high - axis.low);
}

export function bestParent({ parents }: Preview): ParentWorth | null {
  return parents.reduce<ParentWorth | null>(
    (best, one) => (one.score !== null && (best?.score == null || one.score < best.score) ? one : best), null,
  );
}

export function bestCandidate({ candidates }: Preview): Candidate | null {
  return candidates.reduce<Candidate | null>(
    (best, one) => (one.score !== null && (best?.score == null || one.score < best.score) ? one : best), null,
  );
}

export interface Options {
  recalibrate: boolean;
  limit_batches: number | null;
}

/** The request of a preview; that of the merge has a strategy and a name beside. */
export function asked(sources: Source[], options: Options): Dict {
  return {
    parents: sources.map((one) => one.run_id),
    ...(sources.some((one) => one.checkpoint !== null) ? { checkpoints: sources.map((one) => one.checkpoint) } : {}),
    ...(options.recalibrate ? { recalibrate: true } : {}),
    ...(options.limit_batches === null ? {} : { limit_batches: options.limit_batches }),
  };
}

/** Why these cannot be merged, as far as that is seen from here. */
export function notMergeable(sources: Source[]): string | null {
  if (sources.length < 2) return "two parents are needed";
  const keys = sources.map((one) => `${one.run_id}\n${one.checkpoint ?? ""}`);
  return new Set(keys).size < keys.length ? "one parent is named twice" : null;
}

/** The nearest run that all of two come from, and the step up to which they are one. */
export function partedAt(members: Member[], one: string, other: string): { run_id: string; step: number | null } | null {
  const known = new Map(members.map((member) => [member.run_id, member]));
  const line = (id: string): Map<string, number> => {
    const found = new Map<string, number>([[id, Infinity]]);
    const open = [id];
    while (open.length > 0) {
      for (const parent of known.get(open.shift() as string)?.parents ?? []) {
        if (found.has(parent.run_id)) continue;
        found.set(parent.run_id, parent.step ?? Infinity);
        open.push(parent.run_id);
      }
    }
    return found;
  };
  const [a, b] = [line(one), line(other)];
  for (const [run_id, step] of a) {
    const also = b.get(run_id);
    if (also === undefined) continue;
    const parted = Math.min(step, also);
    return { run_id, step: Number.isFinite(parted) ? parted : null };
  }
  return null;
}
