/** The ranks of a run in facts and words: who is slow, silent, failed, and where they hang. Pure functions. */

import { isDict } from "./columns";
import { count, plural, span } from "./format";
import type { OtfEvent } from "./types";

export interface Rank {
  rank: number;
  host: string | null;
  step: number | null;
  standing: boolean;
  state: string;
  /** Seconds since it was heard, when this was told. */
  seen_s: number | null;
  step_ms: number | null;
  step_ms_p95: number | null;
  data_wait_ms: number | null;
  /** Waiting for other ranks, in backward or a barrier. */
  wait_ms: number | null;
  rss_mb: number | null;
  device_mem_mb: number | null;
  loss: number | null;
}

/** The newest event `ranks`. */
export interface Ranks {
  ts: number;
  step: number | null;
  size: number;
  slowest: number | null;
  rows: Rank[];
}

/** What an event `rank_state` has said of a rank that is not well. */
export interface Gone {
  rank: number;
  state: "silent" | "failed";
  since_ts: number;
  step: number | null;
  exit_code: number | null;
  why: string;
  checkpoint: string | null;
  /** The command that lets the run go on. */
  resume: string | null;
}

/** Ranks of a stalled run that are at the same place. */
export interface Place {
  ranks: number[];
  where: string | null;
  /** The collective call that they are in. */
  call: string | null;
  stack: string[];
}

export const number = (value: unknown): number | null => (typeof value === "number" ? value : null);
export const string = (value: unknown): string | null => (typeof value === "string" && value !== "" ? value : null);
const list = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.filter(isDict) : []);
const numbers = (value: unknown): number[] => (Array.isArray(value) ? value.filter((one): one is number => typeof one === "number") : []);

const NUMBERS = ["step", "seen_s", "step_ms", "step_ms_p95", "data_wait_ms", "wait_ms", "rss_mb", "device_mem_mb", "loss"] as const;

export function readRanks(event: OtfEvent, now_s: number): Ranks {
  const rows = list(event["rows"]).map((row) => ({
    rank: number(row["rank"]) ?? 0, host: string(row["host"]), standing: row["standing"] === true, state: String(row["state"] ?? "ok"),
    ...(Object.fromEntries(NUMBERS.map((key) => [key, number(row[key])])) as Record<(typeof NUMBERS)[number], number | null>),
  }));
  return {
    ts: event.ts ?? now_s, step: number(event["step"]), size: number(event["world_size"]) ?? rows.length,
    slowest: number(event["slowest"]), rows: rows.sort((a, b) => a.rank - b.rank),
  };
}

/** Take in an event `rank_state`: who is back is no more among those that are gone. */
export function noteGone(gone: ReadonlyMap<number, Gone>, event: OtfEvent, ts: number): Map<number, Gone> {
  const after = new Map(gone);
  const rank = number(event["rank"]);
  const state = event["state"];
  if (rank === null) return after;
  after.delete(rank);
  if (state === "silent" || state === "failed") {
    after.set(rank, {
      rank, state, since_ts: ts - (number(event["seconds"]) ?? 0), step: number(event["step"]), exit_code: number(event["exit_code"]),
      why: string(event["why"]) ?? "", checkpoint: string(event["checkpoint"]), resume: string(event["resume"]),
    });
  }
  return after;
}

export function readPlaces(value: unknown): Place[] {
  return list(value)
    .map((one) => ({
      ranks: numbers(one["ranks"]).sort((a, b) => a - b), where: string(one["where"]), call: string(one["call"]),
      stack: Array.isArray(one["stack"]) ? one["stack"].map(String) : (string(one["stack"])?.trimEnd().split("\n") ?? []),
    }))
    .filter((one) => one.ranks.length > 0)
    .sort((a, b) => Number(a.call !== null) - Number(b.call !== null) || a.ranks.length - b.ranks.length || (a.ranks[0] ?? 0) - (b.ranks[0] ?? 0));
}

export const readRankList = numbers;

/** "rank 1", "ranks 0, 2, 3", "ranks 0–511, 513–1,023 and 12 more". */
export function rankNames(ranks: readonly number[], most = 6): string {
  const pieces: [first: number, last: number][] = [];
  for (const rank of [...ranks].sort((a, b) => a - b)) {
    const last = pieces.at(-1);
    if (last !== undefined && rank === last[1] + 1) last[1] = rank;
    else pieces.push([rank, rank]);
  }
  const shown: string[] = [];
  let said = 0;
  for (const [first, last] of pieces) {
    const parts = last - first < 2 ? [first, last].slice(0, last - first + 1).map(count) : [`${count(first)}–${count(last)}`];
    if (shown.length > 0 && shown.length + parts.length > most) break;
    shown.push(...parts);
    said += last - first + 1;
  }
  const rest = ranks.length - said;
  return `${ranks.length === 1 ? "rank" : "ranks"} ${shown.join(", ")}${rest > 0 ? ` and ${count(rest)} more` : ""}`;
}

/** "rank 1 in all_reduce, ranks 0, 2, 3 in broadcast": the odd ones first. */
export function placesText(places: readonly Place[], unheard: readonly number[], most = 3): string {
  const said = places.slice(0, most).map(({ ranks, where, call }) => {
    const at = call ?? where;
    return at === null ? `${rankNames(ranks)} at a place that nobody knows` : `${rankNames(ranks)} in ${at}`;
  });
  const rest = places.slice(most).flatMap((one) => one.ranks);
  if (rest.length > 0) said.push(`${rankNames(rest)} elsewhere`);
  if (unheard.length > 0) said.push(`${rankNames(unheard)} not heard`);
  return said.join(", ");
}

/** What the places say about who waits for whom; null where they do not tell. */
export function placesMeaning(places: readonly Place[]): string | null {
  const calls = places.map((one) => one.call);
  if (places.length < 2) return calls[0] != null ? `All that answered wait in ${calls[0]}.` : null;
  const outside = places.filter((one) => one.call === null).flatMap((one) => one.ranks);
  if (outside.length === 0) return "The calls differ: they may be waiting for each other.";
  const waiting = places.filter((one) => one.call !== null).flatMap((one) => one.ranks);
  if (waiting.length === 0) return null;
  const who = rankNames(outside);
  return `${who.charAt(0).toUpperCase()}${who.slice(1)} ${outside.length === 1 ? "is" : "are"} in no call to other ranks: most likely the others wait for ${outside.length === 1 ? "it" : "them"}.`;
}

/** Those of a state, the lowest rank first. */
export function goneOf(gone: ReadonlyMap<number, Gone>, state: Gone["state"]): Gone[] {
  return [...gone.values()].filter((one) => one.state === state).sort((a, b) => a.rank - b.rank);
}

/** ", rank 3 silent for 7 s"; of several how long the first has been. */
export function silentText(silent: readonly Gone[], now_s: number): string {
  const since = Math.min(...silent.map((one) => one.since_ts));
  return `${rankNames(silent.map((one) => one.rank))} silent for ${span(now_s - since)}`;
}

/** "rank 1 on gpu-box ended with exit code -9 (SIGKILL)"; of several the first to fail, which is why the others did. */
export function failedText(failed: readonly Gone[]): string {
  const first = failed.reduce((one, other) => (other.since_ts < one.since_ts ? other : one));
  const said = whyText(first);
  return failed.length === 1 ? said : `${said}, and ${plural(failed.length - 1, "other")} after it`;
}

/** The step of a checkpoint by its id or path: "12000-ring" is step 12,000. */
export function stepOfCheckpoint(checkpoint: string | null): number | null {
  const found = /(?:^|[/\\])(\d+)-[^/\\]*$/.exec(checkpoint ?? "");
  return found === null ? null : Number(found[1]);
}

/** What has become of a rank, as it was told, without its full stop. */
export function whyText({ rank, state, exit_code, why }: Gone): string {
  const said = why.replace(/[.\s]+$/, "");
  if (said !== "") return /\brank/.test(said) ? said : `rank ${count(rank)}: ${said}`;
  return `rank ${count(rank)} ${exit_code === null ? state : `ended with exit code ${exit_code}`}`;
}

export interface Cost {
  /** Of which the milliseconds are. */
  what: "of its own" | "for its data" | "";
  of: (row: Rank) => number | null;
}

/** That by which a rank holds the others up. Steps take equally long where all wait in them: then it is what they do besides. */
export function costOf(rows: readonly Rank[]): Cost {
  const known = rows.filter((row) => row.state === "ok" && row.step_ms !== null);
  if (known.length > 0 && known.every((row) => row.wait_ms !== null)) {
    return { what: "of its own", of: (row) => (row.step_ms === null ? null : Math.max(0, row.step_ms - (row.wait_ms ?? 0))) };
  }
  const [low, high] = ends(known.map((row) => row.step_ms as number));
  return high - low < high / 10 ? { what: "for its data", of: (row) => row.data_wait_ms } : { what: "", of: (row) => row.step_ms };
}

function ends(values: readonly number[]): [low: number, high: number] {
  return values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, 0]);
}

const ORDER = ["failed", "silent"];

/** The rows to look at first: failed, silent, then the slowest, and by rank if there are few. */
export function worstFirst({ rows, slowest }: Ranks, most: number): Rank[] {
  const place = (row: Rank): number => (ORDER.indexOf(row.state) + ORDER.length + 1) % (ORDER.length + 1);
  const few = rows.length <= most;
  const cost = costOf(rows);
  const slow = (row: Rank): number => (few ? 0 : row.rank === slowest ? -Infinity : -(cost.of(row) ?? -1));
  return [...rows].sort((a, b) => place(a) - place(b) || slow(a) - slow(b) || a.rank - b.rank).slice(0, most);
}

/** From 0 (as fast as the fastest) to 1 for each rank that is well; null for those that tell nothing. */
export function heat(rows: readonly Rank[]): (number | null)[] {
  const cost = costOf(rows);
  const found = rows.map((row) => (row.state === "ok" ? cost.of(row) : null));
  const [low, high] = ends(found.filter((one) => one !== null));
  // Less than a tenth of a step apart is noise, and no rank is shown as slow for it.
  const [, step] = ends(rows.map((row) => row.step_ms ?? 0));
  const width = Math.max(high - low, step / 10, 1e-9);
  return found.map((one) => (one === null ? null : (one - low) / width));
}
