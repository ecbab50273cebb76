/** What is typed for a parameter, what was asked of it and what came of that. Pure functions. */

import { isDict } from "./columns";
import { count, setting } from "./format";
import type { Held } from "./store";
import type { Dict, Json, Param } from "./types";

/** What is typed in Steer and not sent. */
export interface Draft {
  text: string;
  /** In how many steps it goes there; "" is at once. */
  over?: string;
  shape?: string;
  /** The step from which on it is the script's again; "" is never. */
  until?: string;
  /** Of a value on a schedule: `scale` or `override`. */
  mode?: string;
}

export type Reading<T = Json> = { ok: true; value: T } | { ok: false; reason: string };

const no = (reason: string): { ok: false; reason: string } => ({ ok: false, reason });

/** What somebody typed for a parameter, as a value within its bounds. */
export function readValue(param: Param, text: string): Reading {
  if (param.kind === "bool") return { ok: true, value: text === "true" };
  if (param.kind === "enum" || (param.choices ?? []).length > 0) {
    const value = (param.choices ?? []).find((choice) => String(choice) === text);
    return value === undefined ? no("not one of the choices") : { ok: true, value };
  }
  if (param.kind === "str") return { ok: true, value: text };
  const value = Number(text.trim().replaceAll(",", ""));
  if (text.trim() === "" || !Number.isFinite(value)) return no("not a number");
  if (param.kind === "int" && !Number.isInteger(value)) return no("a whole number is needed");
  if (typeof param.min === "number" && value < param.min) return no(`at least ${param.min}`);
  if (typeof param.max === "number" && value > param.max) return no(`at most ${param.max}`);
  return { ok: true, value };
}

/** A whole number; null where none is typed. */
export function whole(text: string): number | null {
  const value = Number(text.trim().replaceAll(",", ""));
  return text.trim() !== "" && Number.isInteger(value) ? value : null;
}

/** A change as `set_param` takes it. */
export function readDraft(param: Param, draft: Draft, step: number): Reading<Dict> {
  const read = readValue(param, draft.text);
  if (!read.ok) return read;
  const change: Dict = { path: param.path };
  if (draft.over) {
    const over = whole(draft.over);
    if (over === null || over < 1) return no("over a whole number of steps");
    Object.assign(change, { to: read.value, over, shape: draft.shape ?? "linear" });
  } else {
    change["value"] = read.value;
    if (draft.mode) change["mode"] = draft.mode;
  }
  if (draft.until) {
    const until = whole(draft.until);
    if (until === null || until <= step) return no(`until a step after ${count(step)}`);
    change["until"] = until;
  }
  return { ok: true, value: change };
}

/** "0.06 over 200 steps, until step 900", of a change that is asked. */
export function asked(change: Dict): string {
  if (change["release"] === true) return "the script's own";
  const over = typeof change["over"] === "number" ? ` over ${count(change["over"])} steps` : "";
  const until = typeof change["until"] === "number" ? `, until step ${count(change["until"])}` : "";
  return `${setting(change["to"] ?? change["value"])}${over}${until}`;
}

/** The changes of values that a command asks for. */
export function changesOf(receipt: Held): Dict[] {
  const { cmd, payload } = receipt;
  if (cmd === "set_param" && payload !== null) return [payload];
  return cmd === "set_params" && Array.isArray(payload?.["changes"]) ? payload["changes"].filter(isDict) as Dict[] : [];
}

/** The latest receipt for a parameter. */
export function receiptFor(receipts: Held[], path: string): Held | undefined {
  return receipts.find((one) => changesOf(one).some((change) => change["path"] === path));
}

/** What the reply to a command says of one of its values. */
export function answerFor(receipt: Held, path: string): Dict | null {
  const data = receipt.reply?.data;
  if (!isDict(data)) return null;
  const all = Array.isArray(data["applied"]) ? data["applied"] : [data];
  return (all.find((one) => isDict(one) && one["path"] === path) as Dict | undefined) ?? (all.length === 1 ? all[0] as Dict : null);
}

/** Rows that belong together; the learning rate and its like first, single groups last. */
export function sections(params: Param[]): [string, Param[]][] {
  const found = new Map<string, Param[]>([["", []]]);
  for (const param of params) {
    const name = SECTIONS.find(([begin]) => param.path.startsWith(begin))?.[1] ?? "";
    found.set(name, [...(found.get(name) ?? []), param]);
  }
  const rank = ({ path }: Param): number => (path === "lr" ? 0 : 1);
  found.get("")?.sort((a, b) => rank(a) - rank(b));
  const order = ["", ...SECTIONS.map(([, name]) => name)];
  return [...found].filter(([, rows]) => rows.length > 0).sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0]));
}

const SECTIONS: readonly [string, string][] = [
  ["model.", "Model"], ["data.", "Data"], ["attr.", "Declared by the script"], ["hparams.", "Hyperparameters"], ["optim.", "Single groups"],
];

/** Whether a command of that name is on its way. */
export function receiptOpen(receipts: Held[], cmd: string): boolean {
  return receipts.some((one) => one.cmd === cmd && (one.state === "sent" || one.state === "accepted"));
}
