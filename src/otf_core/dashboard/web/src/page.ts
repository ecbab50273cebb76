/** The page's own state (drawer, dialog, drafts) and what its buttons do; keys are in keys.ts. */

import { checkpointsOf } from "./checkpoints";
import { command } from "./live";
import { readDraft, receiptFor, type Draft } from "./steering";
import { kept, store } from "./store";
import { closed, controls, parkedOf, stateOf, stepOf, type Control, type View } from "./state";
import type { Dict, Session } from "./types";
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
export const drafts = new Map<string, Map<string, Draft>>();

class Page {
  panel: Panel | null = PANELS.find((one) => one === kept.get("panel")) ?? null;
  dialog: Dialog | null = null;
  menu: "runs" | "verbs" | "charts" | "notices" | "more-runs" | null = null;
  theme: Theme = startTheme();
  /** What the drawer Steer shows. */
  steer: "values" | "changes" = "values";
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
    : control.cmd === "park" && parkedOf(session) !== null ? { back: true }
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

export function draftsOf(session_id: string): Map<string, Draft> {
  let found = drafts.get(session_id);
  if (found === undefined) drafts.set(session_id, (found = new Map()));
  return found;
}

/** What was set is over: script and schedule have the value again. */
export function giveBack(session_id: string, path: string): void {
  command(session_id, "set_param", { path, release: true });
}

/** What is typed and can be sent, as changes. */
export function draftedChanges(session: Session, step: number): Dict[] {
  const receipts = store.receiptsOf(session.session_id);
  return [...draftsOf(session.session_id)].flatMap(([path, draft]) => {
    const param = session.params.find((one) => one.path === path);
    const receipt = receiptFor(receipts, path);
    if (param === undefined || receipt?.state === "sent" || receipt?.state === "accepted") return [];
    const reading = readDraft(param, draft, step);
    return reading.ok ? [reading.value] : [];
  });
}

/** Send it, for the next step or a later one: several as one command, so that all are made at one step or none. */
export function applyDrafts(at_step?: number): void {
  const view = viewNow();
  const { session } = view;
  if (session === null || closed(view) !== null || stateOf(view) === "stalled") return;
  const changes = draftedChanges(session, stepOf(session, view.data) ?? 0);
  const at = at_step === undefined ? {} : { at_step };
  const together = changes.length > 1 && session.capabilities.includes("set_params");
  const commands: [string, Dict][] = together ? [["set_params", { changes, ...at }]] : changes.map((one) => ["set_param", { ...one, ...at }]);
  const sent = commands.map(([cmd, payload]) => command(session.session_id, cmd, payload)).every((id) => id !== null);
  if (sent) for (const one of changes) draftsOf(session.session_id).delete(String(one["path"]));
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
