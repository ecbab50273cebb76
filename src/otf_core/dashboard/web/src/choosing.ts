/** What is known of the samples of the run that trains, and which of them are chosen: as the trainer has answered. */

import { ask } from "./asking";
import { isDict } from "./columns";
import { extentOf, worstTenth, type Histogram, type Range } from "./histogram";
import { numberOf } from "./pending";
import { store } from "./store";
import type { Dict, Session } from "./types";

export type SetName = "train" | "val" | "test";

export interface Figures {
  count: number;
  not_finite: number;
  mean: number | null;
  accuracy: number | null;
  histogram: Histogram;
  quantiles: { share: number; loss: number }[];
}

/** What a scan has found last, or that there was none. */
export interface Looked {
  of: number | null;
  figures: Figures | null;
  run_id: string | null;
  first_step: number | null;
  last_step: number | null;
  /** Why the trainer shows none. */
  refused: string | null;
}

export interface Worst {
  id: number;
  loss: number | null;
  label: number | null;
  prediction: number | null;
  sure: number | null;
}

/** What a selection means, as the trainer has counted it. */
export interface Counted {
  signature: string;
  count: number | null;
  worst: Worst[];
  refused: string | null;
}

export type Choice =
  | { kind: "range"; range: Range | null }
  | { kind: "label_noise" }
  | { kind: "kmeans"; k: number; cluster: number };

const looked = new Map<string, Looked>();
const counted = new Map<string, Counted>();
const choices = new Map<string, Choice>();
let shownSet: SetName = "train";

export function setShown(): SetName {
  return shownSet;
}

export function showSet(on: SetName): void {
  shownSet = on;
  store.changed();
}

function keyOf(session: Session, on: SetName): string {
  return `${session.session_id}\n${on}`;
}

export function lookedAt(session: Session, on: SetName): Looked | undefined {
  return looked.get(keyOf(session, on));
}

export function countedOf(session: Session, on: SetName): Counted | undefined {
  return counted.get(keyOf(session, on));
}

export function choiceOf(session: Session, on: SetName): Choice {
  return choices.get(keyOf(session, on)) ?? { kind: "range", range: null };
}

export function choose(session: Session, on: SetName, choice: Choice): void {
  choices.set(keyOf(session, on), choice);
  store.changed();
}

/** The choice as the wire has it; null while there is none. */
export function selectionOf(choice: Choice): Dict | null {
  switch (choice.kind) {
    case "range":
      return choice.range === null ? null : { kind: "region", minLoss: choice.range.from, maxLoss: choice.range.to };
    case "label_noise":
      return { kind: "label_noise" };
    case "kmeans":
      return { kind: "kmeans", k: choice.k, target_clusters: [choice.cluster] };
  }
}

/** Ask what the last scan of a set has found. */
export async function look(session: Session, on: SetName): Promise<void> {
  const reply = await ask(session.session_id, "select", { on });
  if (reply === null) return;
  const data: Dict = reply.ok && isDict(reply.data) ? (reply.data as Dict) : {};
  const figures = isDict(data["figures"]) ? (data["figures"] as unknown as Figures) : null;
  const key = keyOf(session, on);
  const before = looked.get(key);
  looked.set(key, {
    of: numberOf(data["of"]), figures,
    run_id: typeof data["run_id"] === "string" ? data["run_id"] : null,
    first_step: numberOf(data["first_step"]), last_step: numberOf(data["last_step"]),
    refused: reply.ok ? null : (reply.detail ?? reply.error ?? "not possible"),
  });
  const isAnother = before?.figures?.histogram.edges.join() !== figures?.histogram.edges.join();
  if (figures !== null && isAnother) {
    counted.delete(key); // the same range means others now
    const extent = extentOf(figures.histogram);
    if (extent !== null && choiceOf(session, on).kind === "range") {
      choices.set(key, { kind: "range", range: worstTenth(figures.quantiles, extent) });
    }
  }
  store.changed();
}

export const TIMES = 9;
const MOST_WEIGHED = 200_000;

/** How often each sample is drawn where those of a range come more often; null where the losses cannot be had. */
export async function weightsFor(session: Session, range: Range): Promise<number[] | null> {
  const weights: number[] = [];
  for (let total = 1; weights.length < total; ) {
    const reply = await ask(session.session_id, "samples", { on: "train", start: weights.length });
    const losses = reply?.ok === true && isDict(reply.data) ? reply.data["losses"] : null;
    if (!Array.isArray(losses) || losses.length === 0) return null;
    for (const loss of losses) {
      weights.push(typeof loss === "number" && loss >= range.from && loss <= range.to ? TIMES : 1);
    }
    total = Number((reply?.data as Dict)["total"]);
    if (total > MOST_WEIGHED) return null;
  }
  return weights;
}

/** Have a selection counted. What comes late, when another one is chosen, is not taken. */
export async function count(session: Session, on: SetName, selection: Dict): Promise<void> {
  const signature = JSON.stringify(selection);
  const reply = await ask(session.session_id, "select", { on, selection });
  if (reply === null || JSON.stringify(selectionOf(choiceOf(session, on))) !== signature) return;
  const data: Dict = reply.ok && isDict(reply.data) ? (reply.data as Dict) : {};
  counted.set(keyOf(session, on), {
    signature, count: numberOf(data["count"]),
    worst: Array.isArray(data["worst"]) ? (data["worst"] as unknown as Worst[]) : [],
    refused: reply.ok ? null : (reply.detail ?? reply.error ?? "not possible"),
  });
  store.changed();
}
