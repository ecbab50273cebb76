/** Names of commands and settings, and what came of a command, in words. Pure functions. */

import { isDict } from "./columns";
import { bytes, count, setting, brief, plural, sig, span } from "./format";
import type { Json, Param } from "./types";
import { runsCli, runsOutcome, runsWhat } from "./runwords";
import { changesOf } from "./steering";
import type { Held } from "./store";

const VERBS: Record<string, string> = {
  set_param: "Set",
  set_params: "Set",
  set_guard: "Set guard",
  park: "Park",
  pause: "Pause",
  resume: "Resume",
  save_ckpt: "Save checkpoint",
  validate_now: "Validate",
  test_now: "Test",
  stop: "Stop",
  note: "Note",
  rollback: "Roll back",
  load_ckpt: "Roll back",
  reset_session: "Reset",
  fork: "Fork",
  switch_run: "Switch run",
  merge: "Merge",
  undo: "Undo",
  extend: "Extend",
  cancel: "Cancel",
  dist_health: "Check ranks",
  throughput_health: "Check throughput",
  activations_health: "Check activations",
  numerics_health: "Check numerics",
  determinism_health: "Check determinism",
};

export function verb(cmd: string): string {
  return VERBS[cmd] ?? cmd;
}

const SETTINGS: Record<string, string> = {
  lr: "Learning rate",
  weight_decay: "Weight decay",
  momentum: "Momentum",
  betas: "Betas",
  "betas.0": "Beta 1",
  "betas.1": "Beta 2",
  beta1: "Beta 1",
  beta2: "Beta 2",
  eps: "Epsilon",
  gradient_clip_val: "Gradient clip",
  gradient_clip: "Gradient clip",
  batch_size: "Batch size",
  dropout: "Dropout",
  after_fit: "At the end of fit",
  accumulate_grad_batches: "Accumulated batches",
  frozen: "Frozen",
  ema: "Weight averaging",
  takes_effect: "When the loader changes",
  "sampler.weights": "Sampler weight",
};

/** `optim.0.groups.1.lr` -> "Learning rate, group 1", `model.dropout.head` -> "Dropout, head". */
export function paramName(path: string): string {
  const part = /^(?:model|data|attr|hparams|trainer)\.(.+)$/.exec(path)?.[1];
  if (part !== undefined) {
    const known = Object.keys(SETTINGS).find((key) => part === key || part.startsWith(`${key}.`));
    return known === undefined ? part : [SETTINGS[known], part.slice(known.length + 1)].filter(Boolean).join(", ");
  }
  const group = /^optim\.(\d+)\.(?:groups\.(\d+)\.)?(.+)$/.exec(path);
  if (group === null) return SETTINGS[path] ?? path;
  const [, optimizer, index, rest] = group;
  const name = SETTINGS[rest ?? ""] ?? rest ?? path;
  const of = optimizer === "0" ? "" : `optimizer ${optimizer}`;
  const at = index === undefined ? "" : `group ${index}`;
  return [name, of, at].filter(Boolean).join(", ");
}

/** What a command asks for: "Learning rate 0.1 → 0.06", "Pause". */
export function what(receipt: Held, params: Param[]): string {
  const payload = receipt.payload ?? {};
  if (receipt.cmd === "set_param" && typeof payload["path"] === "string") {
    const name = paramName(payload["path"]);
    const data = receipt.reply?.data;
    if (isDict(data) && "new" in data) {
      return `${name} ${brief(data["old"])} → ${brief(data["new"])}`;
    }
    if (payload["release"] === true) return `${name} back to the script`;
    if ("mul" in payload) return `${name} × ${setting(payload["mul"])}`;
    const now = params.find((param) => param.path === payload["path"])?.value;
    return now === undefined
      ? `${name} → ${setting(payload["value"])}`
      : `${name} ${brief(now)} → ${brief(payload["to"] ?? payload["value"])}`;
  }
  if (receipt.cmd === "set_params") {
    const names = changesOf(receipt).map((one) => paramName(String(one["path"])));
    return `Set ${names.length > 2 ? `${names[0] ?? ""} and ${names.length - 1} more` : names.join(" and ")}`;
  }
  if (receipt.cmd === "switch_run" && typeof payload["run_id"] === "string") return `Switch to ${payload["run_id"]}`;
  if (receipt.cmd === "rollback" || receipt.cmd === "load_ckpt") return `Roll back to ${target(payload)}`;
  if (receipt.cmd === "extend") return `Extend to ${totals(payload) ?? "more"}`;
  if (receipt.cmd === "undo") {
    const data = isDict(receipt.reply?.data) ? receipt.reply.data["undone"] : null;
    return isDict(data) ? `Undo ${verb(String(data["cmd"])).toLowerCase()}` : "Undo";
  }
  if (receipt.cmd === "stop") return payload["save"] === false ? "Stop without saving" : "Stop and save";
  return runsWhat(receipt) ?? verb(receipt.cmd);
}

/** "step 400", "400-ring", "best.ckpt". */
export function target(payload: Record<string, Json>): string {
  if (typeof payload["step"] === "number") return `step ${count(payload["step"])}`;
  if (typeof payload["checkpoint"] === "string") return payload["checkpoint"];
  return String(payload["path"] ?? "a checkpoint").split(/[/\\]/).at(-1) ?? "a checkpoint";
}

/** "30 epochs", "900 steps", of a request or a reply. */
export function totals(said: Record<string, unknown>): string | null {
  if (typeof said["max_epochs"] === "number") return plural(said["max_epochs"], "epoch");
  return typeof said["max_steps"] === "number" ? plural(said["max_steps"], "step") : null;
}

/** "step end", "step 500". */
export function waits(waits_for: string | null): string {
  if (waits_for === null) return "the trainer";
  if (waits_for === "safe_point") return "step end";
  return waits_for;
}

/** What came of a command, for its receipt. `connected`: the page has a connection now. */
export function outcome(receipt: Held, connected: boolean, now_ms: number): string {
  if (receipt.state === "refused") return / was cancelled/.test(receipt.reply?.detail ?? "") ? "cancelled, the run is as it was" : "refused: see why";
  if (receipt.state === "unknown") return "no answer, and the dashboard has no record of it";
  if (receipt.state !== "applied") {
    if (!connected) return "sent, no answer — unknown until reconnected";
    if (receipt.state === "sent" && now_ms - receipt.first_ms > 5_000) return "sent, no answer yet";
    return `sent, waiting for ${waits(receipt.waits_for)}`;
  }
  const data = isDict(receipt.reply?.data) ? receipt.reply.data : {};
  const step = typeof data["applied_step"] === "number" ? data["applied_step"] : data["step"];
  const at = `${typeof step === "number" ? ` at step ${count(step)}` : ""}${onRanks(data)}`;
  switch (receipt.cmd) {
    case "save_ckpt":
      return data["path"] === null ? `applied${at}, the file is still being written` : `written${at}`;
    case "validate_now": {
      const loss = isDict(data["metrics"]) ? headline(data["metrics"]) : null;
      return loss === null ? `applied${at}` : `${loss}${at}`;
    }
    case "test_now":
      if (data["status"] === "busy") return "one is running already";
      return typeof data["avg_loss"] === "number" ? `loss ${sig(data["avg_loss"])}${at}` : `applied${at}`;
    case "stop":
      return `stopping${at}`;
    case "park":
      return data["parked"] === true ? `${bytes(data["freed_bytes"] as number | null)} given back${at}` : `all is back${at}`;
    case "rollback":
    case "load_ckpt":
      return typeof data["from_step"] === "number" && typeof data["step"] === "number"
        ? `applied, from step ${count(data["from_step"])} to ${count(data["step"])}` : `applied${at}`;
    case "extend": {
      const now = totals(data);
      return now === null ? `applied${at}` : `applied${at}, ${now} now`;
    }
    case "undo": {
      const now = isDict(data["now"]) ? Object.entries(data["now"]).map(([path, value]) => `${path} ${brief(value)} now`) : [];
      return [`applied${at}`, ...now].join(", ");
    }
    case "set_param":
      return `applied${at}, read back ${setting(data["new"])}`;
    case "set_params":
      return `applied${at}, all read back`;
    case "dist_health":
    case "throughput_health":
    case "activations_health":
    case "numerics_health":
    case "determinism_health":
      return `${data["ok"] === true ? "nothing found" : "something found, see Health"}${at}`;
    case "switch_run":
      return `${String(data["run_id"])} stands${at}`;
    case "pause":
      return `applied${at}${data["ckpt"] ? ", checkpoint saved" : ""}`;
    default:
      return runsOutcome(receipt.cmd, data, at) ?? `applied${at}`;
  }
}

/** " on 4 of 4 ranks", as the trainer has counted those that answered; nothing of one process. */
export function onRanks(data: Record<string, unknown>): string {
  const on = data["applied_on"];
  return isDict(on) && typeof on["of"] === "number" ? ` on ${String(on["ranks"])} of ${on["of"]} ranks` : "";
}

/** "Learning rate 0.1 → 0.06, until step 900". */
export function changeText(change: Record<string, unknown>): string {
  const { path, cmd, until } = change;
  const lasts = typeof until === "number" ? `, until step ${count(until)}` : "";
  const told = (value: unknown): string => (isDict(value) ? Object.values(value).map((one, i) => (i === 0 ? brief(one) : `(${brief(one)})`)).join(" ") : brief(value));
  if (typeof path !== "string") {
    const [old, now] = [change["old"], change["new"]];
    const between = old === null || old === undefined ? "" : `${told(old)} → `;
    return now === null || now === undefined ? verb(String(cmd)) : `${verb(String(cmd))}: ${between}${told(now)}`;
  }
  return `${paramName(path)} ${brief(change["old"])} → ${brief(change["new"])}${lasts}`;
}

/** "ada@lab, by the guard spike": who changed a value, and what made it happen. */
export function byWhom({ who, by, cause }: Record<string, unknown>): string {
  const why = cause ? ` ${String(cause)}` : "";
  const said = by === undefined || by === "user" ? "" : by === "until" ? "its time was over" : by === "guard" ? `by the guard${why}` : `by ${String(by)}${why}`;
  return [typeof who === "string" ? who : "", said].filter(Boolean).join(", ") || "by user";
}

/** "spike: loss 4.2 above 2.1; the run is held", as the trainer has it of a guard. */
export function guardText(event: Record<string, unknown>): string {
  const number = (value: unknown): string => (typeof value === "number" ? ` ${sig(value)}` : "");
  const told = typeof event["text"] === "string" ? event["text"]
    : `${String(event["metric"])}${number(event["value"])}, bound${number(event["bound"])}; ${String(event["did"])}`;
  return `${String(event["rule"])}: ${told}`;
}

/** The number of a validation that is worth showing first. */
export function headline(metrics: Record<string, unknown>): string | null {
  const name = "val_loss" in metrics ? "val_loss" : Object.keys(metrics)[0];
  const value = name === undefined ? undefined : metrics[name];
  if (name === undefined || typeof value !== "number") return null;
  return `${name.replace(/_/g, " ")} ${sig(value)}`;
}

/** One sentence on why a command was refused. */
export function why(receipt: Held): string {
  const reply = receipt.reply;
  if (reply === null) return "";
  const text = reply.detail ?? reply.error ?? reply.code ?? "no reason given";
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** "Nothing changed: learning rate is still 0.1." */
export function unchanged(receipt: Held, params: Param[]): string {
  const path = receipt.payload?.["path"];
  if (receipt.cmd === "set_param" && typeof path === "string") {
    const now = params.find((param) => param.path === path);
    if (now !== undefined) {
      const name = paramName(path);
      const lower = name.charAt(0).toLowerCase() + name.slice(1);
      return `Nothing changed: ${lower} is still ${setting(now.value)}.`;
    }
  }
  return "Nothing changed.";
}

/** The nearest allowed value to what was asked for, if the refusal names bounds. */
export function nearest(receipt: Held): number | null {
  const asked = receipt.payload?.["value"];
  const allowed = receipt.reply?.allowed;
  if (receipt.cmd !== "set_param" || typeof asked !== "number" || !isDict(allowed)) return null;
  const { min, max } = allowed;
  if (typeof max === "number" && asked > max) return max;
  if (typeof min === "number" && asked < min) return min;
  return null;
}

export interface Nearest {
  label: string;
  payload: Record<string, Json>;
}

/** Where a refused rollback could go instead, as the trainer has named it. */
export function nearestCheckpoints(receipt: Held): Nearest[] {
  const allowed = receipt.reply?.allowed;
  if (receipt.cmd !== "rollback" || !Array.isArray(allowed)) return [];
  return allowed.slice(0, 3).flatMap((one): Nearest[] => {
    const named = isDict(one) ? (one["step"] ?? one["id"]) : one;
    if (typeof named === "number") return [{ label: `step ${count(named)}`, payload: { step: named } }];
    return typeof named === "string" ? [{ label: named, payload: { checkpoint: named } }] : [];
  });
}

const CLI: Record<string, string> = {
  pause: "pause", resume: "resume", save_ckpt: "save", validate_now: "validate", test_now: "test",
  stop: "stop", note: "note", park: "park", reset_session: "reset", cancel: "cancel",
  dist_health: "health dist", throughput_health: "health throughput", activations_health: "health activations",
  numerics_health: "health numerics", determinism_health: "health determinism",
};

/** The same command on the command line. */
export function cli(cmd: string, payload: Record<string, Json>, run: string): string {
  const which = `--run ${shell(run)}`;
  if (cmd === "set_param") {
    const path = shell(String(payload["path"]));
    if (payload["release"] === true) return `otf resume ${path} ${which}`;
    const [value, mul] = "mul" in payload ? [payload["mul"], "--mul "] : [payload["value"], ""];
    const more = (["at_step", "until", "to", "over", "shape", "mode"] as const)
      .map((key) => (payload[key] === undefined ? "" : `--${key.replace("_", "-")} ${shell(setting(payload[key]))} `)).join("");
    return `otf set ${path} ${value === undefined ? "" : `${shell(setting(value))} `}${mul}${more}${which}`;
  }
  if (cmd === "rollback" || cmd === "load_ckpt") {
    return `otf rollback ${shell(String(payload["step"] ?? payload["checkpoint"] ?? payload["path"]))} ${which}`;
  }
  if (cmd === "extend") {
    const [option, total] = "max_epochs" in payload ? ["--epochs", payload["max_epochs"]] : ["--steps", payload["max_steps"]];
    return `otf extend ${option} ${shell(String(total))} ${which}`;
  }
  if (cmd === "undo") {
    const id = payload["request_id"];
    if (typeof payload["change"] === "number") return `otf undo ${payload["change"]} ${which}`;
    return `otf undo ${typeof id === "string" ? `${shell(id)} ` : ""}${payload["restore"] === true ? "--restore " : ""}${which}`;
  }
  if (cmd === "stop") return `otf stop ${payload["save"] === false ? "--no-save " : ""}${which}`;
  const told = runsCli(cmd, payload, which, shell);
  if (told !== null) return told;
  const known = CLI[cmd];
  return known === undefined ? "" : `otf ${known} ${which}`;
}

export function shell(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function secondsAgo(seconds: number): string {
  return `${span(seconds)} ago`;
}
