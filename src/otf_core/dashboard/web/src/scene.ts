/** What the charts and the timeline show in one frame: runs, range, rules. */

import { count, span } from "./format";
import { keep } from "./history";
import { colourOf } from "./icons";
import type { Lines } from "./lines";
import { metricOf } from "./metrics";
import { nameOf, stateOf, totalSteps, type View } from "./state";
import { runKey, store } from "./store";
import type { Told, Turn } from "./told";
import type { Session } from "./types";
import { shared } from "./view";

/** One run that may be drawn. */
export interface Drawn {
  key: string;
  session: Session;
  name: string;
  letter: string;
  colour: string;
  /** From the sixth run on colours come again, and lines are dashed. */
  dashed: boolean;
  lines: Lines;
  told: Told;
  /** Of the family of the run in focus. */
  kin: boolean;
  hidden: boolean;
}

export interface Scene {
  focus: Drawn;
  /** All that the legend and the lanes list, the run in focus first. */
  runs: Drawn[];
  /** Those that are drawn beside it. */
  others: Drawn[];
  total: number | null;
  from: number;
  to: number;
  /** Steps at which it stood or was turned back, with their label. */
  rules: { step: number; label: string }[];
  /** Why there is nothing after the last step, or null. */
  ended: string | null;
  /** Limits of metrics: the value, and from which step on. */
  limits: Map<string, { value: number; from: number }>;
  /** Changes with all that is drawn. */
  version: string;
}

/** So many kin are drawn at first; the others wait in the menu of runs. */
const MOST = 12;

export function sceneOf(view: View): Scene | null {
  const { session, data } = view;
  if (session === null || data === null) return null;
  const kin = store.family(session);
  const added = [...shared.added].map((key) => store.byKey(key)).filter((one) => one !== null);
  const listed = [...kin.slice(0, MOST), ...added.filter((one) => !kin.includes(one))];
  const runs = listed.map((one) => drawn(one, kin.includes(one)));
  const focus = runs[0] as Drawn;
  focus.hidden = false;
  const others = runs.filter((one) => one !== focus && !one.hidden);
  const total = totalSteps(session, data)?.steps ?? null;
  const range = shared.extent(focus.lines, others.map((one) => one.lines), total);
  for (const one of [focus, ...others]) keep(one.session, one.lines, shared.zoom);
  return {
    focus, runs, others, total, ...range,
    rules: rulesOf(data),
    ended: ENDED[stateOf(view)] ?? null,
    limits: limitsOf(session, data),
    version: [focus, ...others].map((one) => `${one.key} ${one.lines.version}`).join(" ") + ` ${data.eventsVersion}`,
  };
}

function drawn(session: Session, kin: boolean): Drawn {
  const letter = store.letterOf(session);
  const key = runKey(session);
  return {
    key, session, name: nameOf(session), letter, colour: colourOf(letter), dashed: indexOf(letter) >= 5,
    lines: store.linesOf(session), told: store.toldOf(session), kin, hidden: shared.hidden.has(key),
  };
}

/** A is 0, Z 25, AA 26. */
function indexOf(letter: string): number {
  let index = 0;
  for (const one of letter) index = index * 26 + (one.charCodeAt(0) - 64);
  return index - 1;
}

function rulesOf(data: Told): Scene["rules"] {
  return [
    ...data.pauses.map((pause) => ({
      step: pause.step,
      label: pause.to_ts === null || pause.to_ts - pause.from_ts < 1 ? "paused" : `paused ${span(pause.to_ts - pause.from_ts)}`,
    })),
    ...data.turns.map((turn) => ({ step: turn.step, label: ruleOf(turn) })),
  ].sort((a, b) => a.step - b.step);
}

function ruleOf(turn: Turn): string {
  if (turn.kind === "resume") return "resumed";
  return turn.from === null ? "rolled back" : `rolled back from ${count(turn.from)}`;
}

const ENDED: Record<string, string> = {
  stalled: "stalled",
  failed: "failed here",
  "connection-lost": "no data",
  "trainer-lost": "no data",
};

/** The gradient is clipped at a norm: a line on its chart, from where it was set. */
function limitsOf(session: Session, data: Told): Scene["limits"] {
  const limits: Scene["limits"] = new Map();
  const clip = session.params.find((one) => one.path === "gradient_clip_val")?.value;
  if (typeof clip === "number" && clip > 0) {
    const set = data.events.findLast((event) => event.type === "param_changed" && event["path"] === "gradient_clip_val");
    limits.set("grad_norm", { value: clip, from: typeof set?.["applied_step"] === "number" ? set["applied_step"] : 0 });
  }
  return limits;
}

/** What is said of a chart that has nothing to show yet. */
export function nothingYet(key: string, data: Told, state: string): string {
  if (state === "starting") return "The first step has not begun.";
  if (!metricOf(key).sparse) return key === "loss" ? "No step with a loss yet." : "No value yet.";
  const first = data.columns.epochStarts.get(1);
  return first === undefined ? "No evaluation yet." : `No evaluation yet, first at step ${count(first - 1)}.`;
}
