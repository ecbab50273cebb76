/** Names of commands and settings, and what came of a command, in words. Pure functions. */

import { isDict } from "./columns";
import { count, setting, brief, sig, span } from "./format";
import type { Json, Param } from "./types";
import type { Held } from "./store";

const VERBS: Record<string, string> = {
  pause: "Pause",
  resume: "Resume",
  save_ckpt: "Save checkpoint",
  validate_now: "Validate",
  test_now: "Test",
  stop: "Stop",
  note: "Note",
  rollback: "Roll back",
  fork: "Fork",
  merge: "Merge",
  undo: "Undo",
  extend: "Extend",
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
};

/** `optim.0.groups.1.lr` -> "Learning rate, group 1". */
export function paramName(path: string): string {
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
    if ("mul" in payload) return `${name} × ${setting(payload["mul"])}`;
    const now = params.find((param) => param.path === payload["path"])?.value;
    return now === undefined
      ? `${name} → ${setting(payload["value"])}`
      : `${name} ${brief(now)} → ${brief(payload["value"])}`;
  }
  if (receipt.cmd === "stop") return payload["save"] === false ? "Stop without saving" : "Stop and save";
  return verb(receipt.cmd);
}

/** "step end", "step 500". */
export function waits(waits_for: string | null): string {
  if (waits_for === null) return "the trainer";
  if (waits_for === "safe_point") return "step end";
  return waits_for;
}

/** What came of a command, for its receipt. `connected`: the page has a connection now. */
export function outcome(receipt: Held, connected: boolean, now_ms: number): string {
  if (receipt.state === "refused") return "refused: see why";
  if (receipt.state === "unknown") return "no answer, and the dashboard has no record of it";
  if (receipt.state !== "applied") {
    if (!connected) return "sent, no answer — unknown until reconnected";
    if (receipt.state === "sent" && now_ms - receipt.first_ms > 5_000) return "sent, no answer yet";
    return `sent, waiting for ${waits(receipt.waits_for)}`;
  }
  const data = isDict(receipt.reply?.data) ? receipt.reply.data : {};
  const step = typeof data["applied_step"] === "number" ? data["applied_step"] : data["step"];
  const at = typeof step === "number" ? ` at step ${count(step)}` : "";
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
    case "set_param":
      return `applied${at}, read back ${setting(data["new"])}`;
    case "pause":
      return `applied${at}${data["ckpt"] ? ", checkpoint saved" : ""}`;
    default:
      return `applied${at}`;
  }
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

const CLI: Record<string, string> = {
  pause: "pause", resume: "resume", save_ckpt: "save", validate_now: "validate", test_now: "test",
  stop: "stop", note: "note",
};

/** The same command on the command line. */
export function cli(cmd: string, payload: Record<string, Json>, run: string): string {
  const which = `--run ${shell(run)}`;
  if (cmd === "set_param") {
    return `otf set ${shell(String(payload["path"]))} ${shell(setting(payload["value"]))} ${which}`;
  }
  if (cmd === "stop") return `otf stop ${payload["save"] === false ? "--no-save " : ""}${which}`;
  const known = CLI[cmd];
  return known === undefined ? "" : `otf ${known} ${which}`;
}

function shell(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function secondsAgo(seconds: number): string {
  return `${span(seconds)} ago`;
}
