/** The runs of a project as a family: what came from what, and how each stands. Pure functions. */

import { count, plural, sig, standing } from "./format";
import { isDict } from "./columns";
import type { Dict, Json, Run, Session } from "./types";

export interface Parent {
  run_id: string;
  step: number | null;
  checkpoint: string | null;
}

export interface Member {
  run_id: string;
  name: string;
  letter: string;
  run: Run;
  /** The session that trains it or trained it last; null if it was left for another run. */
  session: Session | null;
  state: string;
  step: number | null;
  best: number | null;
  parents: Parent[];
}

const SAID: Record<string, string> = { running: "training", journal: "on disk", lost: "trainer lost" };

/** All runs of a project, the oldest first. */
export function family(
  runs: Iterable<Run>, sessions: Iterable<Session>, project: string | null, letterOf: (run: Run) => string,
): Member[] {
  const all = [...sessions].filter((one) => (one.project ?? "") === (project ?? ""));
  return [...runs]
    .filter((run) => (run.project ?? "") === (project ?? ""))
    .sort((a, b) => (a.created_ts ?? Infinity) - (b.created_ts ?? Infinity))
    .map((run) => {
      const own = all.filter((one) => one.run_id === run.run_id);
      // Whoever trained it last may train another one by now.
      const last = all.find((one) => one.session_id === run.session_ids.at(-1));
      const session = own.find((one) => one.connected) ?? (last?.run_id === run.run_id ? last : null);
      const state = session === null ? "left" : session.connected || session.finished !== null ? standing(session) : "on disk";
      return {
        run_id: run.run_id, name: run.run_name || run.run_id, letter: letterOf(run), run, session,
        state: SAID[state] ?? state,
        step: session?.connected === true ? (session.step ?? run.summary?.step ?? null) : (run.summary?.step ?? null),
        best: run.summary?.best_val_loss ?? null,
        parents: parentsOf(run, runs),
      };
    });
}

/** Of a fork its parent, of a merge all of them, each with the step at which it was left. */
function parentsOf(run: Run, runs: Iterable<Run>): Parent[] {
  const made = run.made ?? {};
  const at = typeof made["at_step"] === "number" ? made["at_step"] : null;
  const sources = Array.isArray(made["sources"]) ? made["sources"].map(String) : [];
  if (sources.length > 0) {
    return sources.map((source) => {
      const cut = source.lastIndexOf("/");
      const run_id = cut < 0 ? source : source.slice(0, cut);
      const checkpoint = cut < 0 ? null : source.slice(cut + 1);
      return { run_id, checkpoint, step: checkpoint === null ? at : stepOfCheckpoint(run_id, checkpoint, runs) };
    });
  }
  return run.parents.map((run_id) => ({
    run_id, step: at, checkpoint: typeof made["init_from"] === "string" ? made["init_from"] : null,
  }));
}

/** "400-pause" was made at step 400, also when it is gone by now. */
function stepOfCheckpoint(run_id: string, id: string, runs: Iterable<Run>): number | null {
  const known = [...runs].find((one) => one.run_id === run_id)?.checkpoints.find((one) => one.id === id);
  const told = /^(\d+)-/.exec(id)?.[1];
  return known?.step ?? (told === undefined ? null : Number(told));
}

/** "A at step 400 and B at step 500", "started new". */
export function cameFrom(member: Member, letterOf: (run_id: string) => string): string {
  if (member.parents.length === 0) return "started new";
  return member.parents
    .map((one) => `${letterOf(one.run_id)} ${one.run_id}${one.step === null ? "" : ` at step ${count(one.step)}`}`)
    .join(" and ");
}

/** What is other than in its parent, as far as its making says. */
export function difference(member: Member): string {
  const made = member.run.made ?? {};
  const kind = made["kind"];
  if (kind === "merge") {
    const fresh = made["optimizer"] === "fresh" ? ", optimizer begun anew" : "";
    return `${strategyName(String(made["strategy"]))} merge of ${plural(member.parents.length, "checkpoint")}${fresh}`;
  }
  if (kind !== "fork") return member.parents.length === 0 ? "first run" : "fork";
  const chosen = typeof made["subset_count"] === "number" ? plural(made["subset_count"], "sample") : null;
  const rule = isDict(made["selection"]) ? selectionWords(made["selection"] as Dict) : null;
  if (chosen === null) return "all samples; what else is other its parameters say";
  return rule === null ? chosen : `${chosen}: ${rule}`;
}

const STRATEGIES: Record<string, [string, string]> = {
  linear: ["Linear", "the weighted mean of all weights"],
  fisher: ["Fisher", "weights count more where they matter to the loss"],
  ties: ["TIES", "keeps the largest changes, by the majority of signs"],
  soup: ["Soup", "the mean of those that make the validation better"],
  adapter: ["Adapter", "the adapters alone"],
};

export const STRATEGY_NAMES: readonly string[] = Object.keys(STRATEGIES);

export function strategyName(strategy: string): string {
  return STRATEGIES[strategy]?.[0] ?? strategy;
}

export function strategyWords(strategy: string): string {
  return STRATEGIES[strategy]?.[1] ?? "";
}

/** A selection in words: "loss 2.10 – 6.20", "all but doubtful labels". */
export function selectionWords(selection: Dict): string {
  const of = selection["of"];
  switch (selection["kind"]) {
    case "region":
      return `loss ${sig(asNumber(selection["minLoss"]))} – ${sig(asNumber(selection["maxLoss"]))}`;
    case "quantile": {
      const [from, to] = [asNumber(selection["from"]), asNumber(selection["to"])];
      if (to === 1) return `the worst ${share(1 - from)} by loss`;
      return from === 0 ? `the best ${share(to)} by loss` : `from ${share(from)} to ${share(to)} by loss`;
    }
    case "label_noise":
      return "doubtful labels";
    case "kmeans": {
      const which = Array.isArray(selection["target_clusters"]) ? selection["target_clusters"].map((n) => asNumber(n) + 1).join(", ") : "";
      return `cluster ${which} of ${String(selection["k"])} by ${selection["feature"] === undefined || selection["feature"] === "loss" ? "loss" : String(selection["feature"])}`;
    }
    case "indices":
      return "chosen one by one";
    case "complement":
      return isDict(of) ? `all but ${selectionWords(of as Dict)}` : "all but some";
    case "union":
    case "intersection": {
      const parts = Array.isArray(of) ? of.filter(isDict).map((one) => selectionWords(one as Dict)) : [];
      return parts.join(selection["kind"] === "union" ? ", or " : ", and ");
    }
    default:
      return "chosen samples";
  }
}

function asNumber(value: Json | undefined): number {
  return typeof value === "number" ? value : NaN;
}

function share(part: number): string {
  return `${Number((100 * part).toFixed(2))} %`;
}
