/** The page's own state (drawer, dialog, drafts) and what its buttons do; keys are in keys.ts. */

import { checkpointsOf } from "./checkpoints";
import { command } from "./live";
import { kept, store, type Held } from "./store";
import { closed, controls, stateOf, type Control, type View } from "./state";
import type { Dict, Json, Param, Session } from "./types";
import { undoable } from "./undo";
import { shared } from "./view";

export type Panel = "steer" | "samples" | "checkpoints" | "lineage" | "health" | "log";
export const PANELS: readonly Panel[] = ["steer", "samples", "checkpoints", "lineage", "health", "log"];

export type Dialog =
  | { kind: "keys" }
  | { kind: "palette" }
  | { kind: "stop" }
  | { kind: "rollback"; to?: Dict }
  | { kind: "note"; step: number }
  | { kind: "extend" }
  | { kind: "fork"; from?: { checkpoint?: string; step?: number; run_id?: string }; selection?: Dict; selected?: number; weights?: number[] }
  | { kind: "merge"; parents?: string[] }
  | { kind: "exactness" }
  | { kind: "receipt"; id: string };

export type Theme = "light" | "dark";

/** What is typed in Steer and not sent, by session and path. */
export const drafts = new Map<string, Map<string, string>>();

class Page {
  panel: Panel | null = PANELS.find((one) => one === kept.get("panel")) ?? null;
  dialog: Dialog | null = null;
  menu: "runs" | "verbs" | "charts" | "notices" | "more-runs" | null = null;
  theme: Theme = startTheme();
  singleKeys = kept.get("keys") !== "off";
  /** Said to screen readers as soon as it comes. */
  alert = "";

  open(panel: Panel | null): void {
    this.panel = panel;
    kept.set("panel", panel ?? "");
    store.changed();
  }

  toggle(panel: Panel): void {
    this.open(this.panel === panel ? null : panel);
  }

  ask(dialog: Dialog | null): void {
    this.dialog = dialog;
    this.menu = null;
    store.changed();
  }

  showMenu(menu: Page["menu"]): void {
    this.menu = this.menu === menu ? null : menu;
    store.changed();
  }

  setTheme(theme: Theme): void {
    this.theme = theme;
    document.documentElement.dataset["theme"] = theme;
    shared.recolour();
  }

  setSingleKeys(on: boolean): void {
    this.singleKeys = on;
    kept.set("keys", on ? "on" : "off");
    store.changed();
  }
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function startTheme(): Theme {
  const chosen = kept.get("theme");
  if (chosen === "light" || chosen === "dark") return chosen;
  return systemDark.matches ? "dark" : "light";
}

export const page = new Page();
page.setTheme(page.theme);
systemDark.addEventListener("change", () => {
  if (kept.get("theme") === null) page.setTheme(startTheme());
});

export function toggleTheme(): void {
  const theme = page.theme === "dark" ? "light" : "dark";
  kept.set("theme", theme);
  page.setTheme(theme);
}

/** The facts that the words are made of, as they are now. */
export function viewNow(): View {
  const session = store.current();
  const run = session === null ? undefined : store.runOf(session);
  const data = session === null ? null : store.toldOf(session);
  const last = session?.last_checkpoint?.["step"];
  const checkpoints = checkpointsOf(run, data?.events ?? []);
  const newest = Math.max(typeof last === "number" ? last : -1, ...checkpoints.map((one) => one.step ?? -1));
  return {
    session,
    data,
    link: store.link,
    now_s: store.now(),
    opened_s: store.opened_ms / 1000 + store.skew_s,
    bestVal: run?.summary?.best_val_loss ?? null,
    bestStep: run?.summary?.best_val_step ?? null,
    checkpointStep: newest >= 0 ? newest : null,
    checkpoints,
    watching: store.watching,
    partners: session === null ? 0 : partnersOf(session),
    undo: session === null
      ? null
      : undoable(store.receiptsOf(session.session_id), data?.events ?? [], session.session_id, session.params),
  };
}

export function controlsNow(): Control[] {
  const session = store.current();
  return session === null ? [] : controls(viewNow(), store.receiptsOf(session.session_id), Date.now());
}

/** Press a control: by button or key. What is not possible or pending does nothing. */
export function press(control: Control): void {
  const session = store.current();
  if (session === null || control.state === "off" || control.state === "pending") return;
  page.menu = null;
  if (control.cmd === "fork" || control.cmd === "merge") {
    page.ask(control.cmd === "fork" && shared.cursor !== null ? { kind: "fork", from: { step: shared.cursor } } : { kind: control.cmd });
    return;
  }
  if (control.cmd === "stop" || control.cmd === "rollback" || control.cmd === "extend") {
    page.ask({ kind: control.cmd });
    return;
  }
  const undo = viewNow().undo;
  const payload: Dict = control.cmd === "test_now" ? { label: "manual" }
    : control.cmd === "undo" && undo !== null ? { request_id: undo.request_id } : {};
  give(control.cmd, payload);
}

/** Give a command to the session that is shown. */
export function give(cmd: string, payload: Dict): void {
  const session = store.current();
  if (session !== null) command(session.session_id, cmd, payload);
  store.changed();
}

// ---------------------------------------------------------------- Steer

export function draftsOf(session_id: string): Map<string, string> {
  let found = drafts.get(session_id);
  if (found === undefined) drafts.set(session_id, (found = new Map()));
  return found;
}

export type Reading = { ok: true; value: Json } | { ok: false; reason: string };

/** What somebody typed for a parameter, as a value within its bounds. */
export function readDraft(param: Param, text: string): Reading {
  if (param.kind === "bool") return { ok: true, value: text === "true" };
  if (param.kind === "enum") {
    const value = (param.choices ?? []).find((choice) => String(choice) === text);
    return value === undefined ? { ok: false, reason: "not one of the choices" } : { ok: true, value };
  }
  const value = Number(text.trim().replaceAll(",", ""));
  if (text.trim() === "" || !Number.isFinite(value)) return { ok: false, reason: "not a number" };
  if (param.kind === "int" && !Number.isInteger(value)) return { ok: false, reason: "a whole number is needed" };
  if (param.min !== null && param.min !== undefined && value < param.min) {
    return { ok: false, reason: `at least ${param.min}` };
  }
  if (param.max !== null && param.max !== undefined && value > param.max) {
    return { ok: false, reason: `at most ${param.max}` };
  }
  return { ok: true, value };
}

/** The latest receipt for a parameter. */
export function receiptFor(receipts: Held[], path: string): Held | undefined {
  return receipts.find((one) => one.cmd === "set_param" && one.payload?.["path"] === path);
}

/** What was set is over: script and schedule have the value again. */
export function giveBack(session_id: string, path: string): void {
  command(session_id, "set_param", { path, release: true });
}

/** Send what is typed and can be sent, for the next step or a later one; each row then waits for its own answer. */
export function applyDrafts(at_step?: number): void {
  const view = viewNow();
  const { session } = view;
  if (session === null || closed(view) !== null || stateOf(view) === "stalled") return;
  const typed = draftsOf(session.session_id);
  for (const [path, text] of [...typed]) {
    const param = session.params.find((one) => one.path === path);
    const receipt = receiptFor(store.receiptsOf(session.session_id), path);
    if (param === undefined || receipt?.state === "sent" || receipt?.state === "accepted") continue;
    const reading = readDraft(param, text);
    if (!reading.ok) continue;
    if (command(session.session_id, "set_param", { path, value: reading.value, ...(at_step === undefined ? {} : { at_step }) }) !== null) typed.delete(path);
  }
  store.changed();
}

/** Other runs of the project that have a checkpoint to merge with. */
function partnersOf(session: Session): number {
  let n = 0;
  for (const run of store.runs.values()) {
    if ((run.project ?? "") === (session.project ?? "") && run.run_id !== session.run_id && run.checkpoints.length > 0) n += 1;
  }
  return n;
}
