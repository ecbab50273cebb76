/** What the palette offers and what of it a query finds. Pure functions but for what an entry does. */

import { checkpointLine } from "./checkpoints";
import { count, setting } from "./format";
import { bound, keyOf, strike } from "./keys";
import { metricOf, shownAtFirst } from "./metrics";
import { controlsNow, page, PANELS, press, toggleTheme } from "./page";
import { nameOf, type View } from "./state";
import { runKey, store } from "./store";
import type { Panel } from "./page";
import { shared } from "./view";
import { cli, paramName } from "./words";

export interface Entry {
  group: string;
  icon: string;
  label: string;
  hint: string;
  key?: string;
  /** The same on the command line; its first word is looked for as well. */
  cli?: string;
  /** Why it cannot be done now. */
  off?: string;
  /** Looked for beside the label. */
  also?: string;
  /** Only shown when it is asked for. */
  asked?: boolean;
  act: () => void;
}

export const TITLES: Record<Panel, string> = {
  steer: "Steer", samples: "Samples", checkpoints: "Checkpoints", lineage: "Lineage", health: "Health", log: "Log",
};

const KEYED: readonly [key: string, label: string, icon: string, line: string][] = [
  ["f", "Fork at the cursor…", "fork", "fork"], ["m", "Merge…", "merge", "merge"], ["n", "Note at the cursor…", "note", "note"],
];

export function entries(view: View): Entry[] {
  const { session, data } = view;
  const all: Entry[] = [];
  if (session !== null) {
    const run = nameOf(session);
    const controls = controlsNow();
    for (const control of controls) {
      const key = keyOf(control.cmd);
      all.push({
        group: "Run", icon: control.cmd, label: control.label, hint: control.line,
        cli: cli(control.cmd, {}, run) || `otf ${control.cmd}`, ...(key === undefined ? {} : { key }),
        ...(control.state === "off" || control.state === "pending" ? { off: control.line } : {}),
        act: () => press(control),
      });
    }
    for (const [key, label, icon, line] of KEYED) {
      if (!bound(key) || controls.some((one) => one.cmd === line)) continue;
      all.push({ group: "Run", icon, label, hint: "", key: key.toUpperCase(), cli: `otf ${line} --run ${run}`, act: () => void strike(key) });
    }
    for (const param of session.params) {
      all.push({
        group: "Steer", icon: "steer", label: `Set ${lower(paramName(param.path))}…`, hint: `${setting(param.value)} now`,
        cli: `otf set ${param.path}`, also: param.path, asked: param.path !== "lr",
        act: () => {
          page.open("steer");
          focusOn(`[id="param-${CSS.escape(param.path)}"]`);
        },
      });
    }
    PANELS.forEach((panel, i) => all.push({
      group: "Go to", icon: panel, label: TITLES[panel], hint: "panel", key: String(i + 1),
      ...(panel === "health" ? { cli: "otf health" } : panel === "checkpoints" ? { cli: "otf checkpoints" } : panel === "log" ? { cli: "otf tail" } : {}),
      act: () => {
        page.open(panel);
        focusOn(".drawer .dr-h button");
      },
    }));
  }
  all.push(
    { group: "Go to", icon: "help", label: "Keyboard list", hint: "", key: "?", act: () => page.ask({ kind: "keys" }) },
    { group: "Go to", icon: "theme", label: page.theme === "dark" ? "Light theme" : "Dark theme", hint: "", act: toggleTheme },
  );
  for (const one of store.sorted()) {
    all.push({
      group: "Runs", icon: "lineage", label: `${store.letterOf(one)} ${nameOf(one)}`, hint: one.connected ? one.state : "no trainer",
      act: () => store.focus(runKey(one)),
    });
  }
  if (session === null || data === null) return all;
  const roll = controlsNow().find((one) => one.cmd === "rollback");
  for (const one of view.checkpoints) {
    all.push({
      group: "Checkpoints", icon: "checkpoints", label: `Roll back to step ${count(one.step)}…`, hint: checkpointLine(one), asked: true,
      cli: cli("rollback", { checkpoint: one.id }, nameOf(session)),
      ...(roll === undefined || roll.state === "off" || roll.state === "pending" ? { off: roll?.line ?? "no run" } : {}),
      act: () => page.ask({ kind: "rollback", to: { checkpoint: one.id } }),
    });
  }
  const lines = store.linesOf(session);
  for (const key of lines.names().filter((name) => lines.has(name))) {
    const metric = metricOf(key);
    const on = key === "loss" || (shared.shown.get(key) ?? shownAtFirst(key));
    all.push({
      group: "Charts", icon: "samples", label: metric.title, hint: on ? "chart" : "chart, not shown now", asked: true,
      act: () => {
        if (!on) shared.show(key, true);
        focusOn(`figure[aria-label="${CSS.escape(metric.title)}"] .plot`);
      },
    });
  }
  return all;
}

/** "7420", "step 7,420", "Step 12k": a step to go to. */
export function stepIn(query: string): number | null {
  const found = /^(?:step\s*)?(\d[\d,. ]*)(k?)$/i.exec(query.trim());
  if (found === null) return null;
  const value = Number((found[1] ?? "").replaceAll(/[, ]/g, "")) * (found[2] === "" ? 1 : 1000);
  return Number.isInteger(value) ? value : null;
}

/** Labels first, then the start of the command line's verb; every word that is typed must be in the label. */
export function find(all: readonly Entry[], query: string): Entry[] {
  const wanted = query.trim().toLowerCase();
  if (wanted === "") return all.filter((one) => one.asked !== true);
  const words = wanted.split(/\s+/);
  const inLabel = (one: Entry): boolean => {
    const label = `${one.label} ${one.also ?? ""}`.toLowerCase();
    return words.every((word) => label.includes(word) || label.replaceAll(",", "").includes(word));
  };
  const labels = all.filter(inLabel);
  const verbs = all.filter((one) => !labels.includes(one) && one.cli !== undefined && verbOf(one.cli).startsWith(wanted));
  return [...labels, ...verbs];
}

/** "set lr" of "otf set lr 0.1 --run base": what names a run is not looked for. */
function verbOf(line: string): string {
  return line.replace(/^otf /, "").replace(/ --run .*$/, "").toLowerCase();
}

export function stepEntry(view: View, step: number): Entry {
  const lines = view.session === null ? null : store.linesOf(view.session);
  const last = lines?.lastStep() ?? null;
  const there = last !== null && step >= Math.min(lines?.firstStep() ?? 0, 1) && step <= last;
  return {
    group: "Steps", icon: "right", label: `Step ${count(step)}`, hint: "cursor in all charts",
    ...(there ? {} : { off: last === null ? "no step yet" : `steps go to ${count(last)}` }),
    act: () => goTo(step),
  };
}

/** Put the cursor of all charts on a step, and the focus on the large chart, whose keys move it. */
export function goTo(step: number): void {
  const zoom = shared.zoom;
  if (zoom !== null && (step < zoom.from || step > zoom.to)) shared.setZoom(null);
  focusOn(".hero .plot", () => shared.setCursor(step));
}

/** The focus goes where the page is drawn anew; a dialog that closes gives it back first. */
function focusOn(selector: string, then?: () => void): void {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    const found = document.querySelector<HTMLElement>(selector);
    found?.focus();
    found?.scrollIntoView({ block: "nearest" });
    then?.();
  }));
}

function lower(name: string): string {
  return name.charAt(0).toLowerCase() + name.slice(1);
}
