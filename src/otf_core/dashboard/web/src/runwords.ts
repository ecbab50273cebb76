/** The command line and the outcome of commands on runs and samples, in words. Pure functions. */

import { isDict } from "./columns";
import { strategyName } from "./family";
import { count, plural, sig } from "./format";
import type { Held } from "./store";
import type { Dict, Json } from "./types";

type Quote = (text: string) => string;

/** The same command on the command line; null where it is none of these. */
export function runsCli(cmd: string, payload: Dict, which: string, quote: Quote): string | null {
  const options = (names: readonly [string, string][], from: Dict): string =>
    names.map(([key, option]) => (from[key] === undefined || from[key] === null ? "" : `${option} ${quote(String(from[key]))} `)).join("");
  const rates = isDict(payload["hparams"]) ? (payload["hparams"] as Dict) : {};
  switch (cmd) {
    case "fork":
      return `otf fork ${options([["checkpoint", "--from"], ["parent_run_id", "--of"]], payload)}${chosen(payload["selection"], quote)}${Array.isArray(payload["weights"]) ? "--weights FILE " : ""}${options([["lr", "--lr"], ["lr_mul", "--lr-mul"]], rates)}${options([["batch_size", "--batch-size"], ["steps", "--steps"], ["epochs", "--epochs"], ["run_name", "--name"]], payload)}${which}`;
    case "merge":
    case "merge_preview": {
      const parents = Array.isArray(payload["parents"]) ? payload["parents"].map(String) : [];
      const named = Array.isArray(payload["checkpoints"]) ? payload["checkpoints"] : [];
      const runs = parents.map((run, i) => quote(typeof named[i] === "string" ? `${run}/${named[i]}` : run)).join(" ");
      const flags = `${payload["recalibrate"] === true ? "--recalibrate " : ""}${cmd === "merge_preview" ? "--preview " : ""}`;
      return `otf merge ${runs} ${options([["strategy", "--strategy"], ["optimizer", "--optimizer"], ["new_name", "--name"]], payload)}${flags}${which}`;
    }
    case "switch_run":
      return `otf switch ${quote(String(payload["run_id"]))} ${which}`;
    case "scan":
      return `otf scan ${options([["on", "--on"]], payload)}${payload["background"] === true ? "--background " : ""}${options([["share", "--share"]], payload)}${which}`;
    case "compare": {
      const runs = Array.isArray(payload["runs"]) ? payload["runs"].map((run) => quote(String(run))).join(" ") : "";
      return `otf compare ${runs} ${options([["on", "--on"]], payload)}${chosen(payload["selection"], quote)}${which}`;
    }
    case "export_subset":
      return `otf export samples ${options([["on", "--on"], ["format", "--format"]], payload)}${chosen(payload["selection"], quote)}${which}`;
    default:
      return null;
  }
}

function chosen(selection: Json | undefined, quote: Quote): string {
  if (!isDict(selection)) return "";
  const { kind, from, to } = selection;
  if (kind === "quantile" && to === 1 && typeof from === "number") return `--worst ${Number((1 - from).toFixed(6))} `;
  return `--selection ${quote(JSON.stringify(selection))} `;
}

/** What such a command asks for; null where it is none of these. */
export function runsWhat(receipt: Held): string | null {
  const payload = receipt.payload ?? {};
  const data = isDict(receipt.reply?.data) ? receipt.reply.data : null;
  const parents = Array.isArray(payload["parents"]) ? payload["parents"].map(String).join(" and ") : "runs";
  switch (receipt.cmd) {
    case "merge":
      return `Merge ${parents} with ${strategyName(String(payload["strategy"] ?? "linear"))}`;
    case "merge_preview":
      return `Preview the merge of ${parents}`;
    case "scan":
      return `Scan the ${SETS[String(payload["on"] ?? "train")] ?? "samples"}${payload["background"] === true ? " in the background" : ""}`;
    case "compare":
      return `Compare ${Array.isArray(payload["runs"]) ? payload["runs"].map(String).join(", ") : "runs"}`;
    case "export_subset":
      return "Export samples";
    case "fork":
      return `Fork ${String(data?.["new_run"] ?? payload["run_name"] ?? "")}`.trim();
    default:
      return null;
  }
}

const SETS: Record<string, string> = { train: "training set", val: "validation set", test: "test set" };

/** What came of such a command; null where it is none of these. */
export function runsOutcome(cmd: string, data: Record<string, unknown>, at: string): string | null {
  switch (cmd) {
    case "fork": {
      const n = data["subset_count"];
      return `trains from step ${count(Number(data["at_step"]))}${typeof n === "number" ? ` on ${plural(n, "sample")}` : ""}`;
    }
    case "merge":
      return `new run ${String(data["new_run"])}${at}`;
    case "merge_preview": {
      const best = isDict(data["best"]) ? data["best"] : null;
      return best === null ? `evaluated${at}` : `best: ${best["strategy"] === undefined ? String(best["run_id"]) : strategyName(String(best["strategy"]))}`;
    }
    case "scan": {
      const figures = isDict(data["figures"]) ? data["figures"] : {};
      return `${count(Number(data["count"]))} losses, mean ${sig(figures["mean"] as number | null)}${at}`;
    }
    case "compare":
      return `on ${plural(Number(data["count"]), "sample")}${at}`;
    case "export_subset":
      return `${plural(Number(data["rows"]), "row")} written${at}`;
    default:
      return null;
  }
}
