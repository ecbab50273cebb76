/** The keys: one table, which is the list that `?` shows and what a press does.
 *
 * A room that owns a key says so with `bind("g", …)`; a row that nobody has bound, and that is no
 * command of the band, is neither listed nor acted on.
 */

import { controlsNow, page, PANELS, press } from "./page";
import { shared } from "./view";

interface Key {
  /** As `event.key` has it in lower case; none where the key acts on one place only, which handles it. */
  keys: readonly string[];
  shown: string;
  text: string;
  /** Commands of the band: the first that is there is pressed. */
  cmds?: readonly string[];
  act?: (key: string) => void;
}

const acts = new Map<string, () => void>();

/** What a key of the table does. */
export function bind(key: string, act: () => void): void {
  acts.set(key, act);
}

/** Whether a room has bound it. */
export function bound(key: string): boolean {
  return acts.has(key);
}

export const KEYS: readonly Key[] = [
  { keys: [], shown: "Ctrl K", text: "Commands, runs, steps" },
  { keys: [" "], shown: "Space", text: "Pause or resume", cmds: ["pause", "resume"] },
  { keys: ["c"], shown: "C", text: "Save checkpoint", cmds: ["save_ckpt"] },
  { keys: ["v"], shown: "V", text: "Validate", cmds: ["validate_now"] },
  { keys: ["t"], shown: "T", text: "Test", cmds: ["test_now"] },
  { keys: ["f"], shown: "F", text: "Fork at the cursor", cmds: ["fork"] },
  { keys: ["m"], shown: "M", text: "Merge", cmds: ["merge"] },
  { keys: ["r"], shown: "R", text: "Roll back, asks first", cmds: ["rollback"] },
  { keys: ["x"], shown: "X", text: "Stop, asks first", cmds: ["stop"] },
  { keys: ["n"], shown: "N", text: "Note at the cursor" },
  { keys: ["1", "2", "3", "4", "5", "6"], shown: "1 … 6", text: "Panels", act: (key) => page.toggle(PANELS[Number(key) - 1] ?? "log") },
  { keys: [], shown: "Esc", text: "Close the topmost" },
  { keys: [], shown: "Ctrl ↵", text: "Apply changes in Steer" },
  { keys: [], shown: "← →", text: "Cursor on a chart" },
  { keys: [], shown: "Shift ← →", text: "Cursor × 10" },
  { keys: [], shown: "Home End", text: "First, last step" },
  { keys: ["enter"], shown: "↵", text: "Menu at the cursor" },
  { keys: ["["], shown: "[", text: "Previous event" },
  { keys: ["]"], shown: "]", text: "Next event" },
  { keys: [], shown: "← →", text: "Along the marks of the timeline" },
  { keys: ["z"], shown: "Z", text: "Reset zoom", act: () => shared.setZoom(null) },
  { keys: ["g"], shown: "G", text: "Grid or stack" },
  { keys: ["?"], shown: "?", text: "This list", act: () => page.ask({ kind: "keys" }) },
];

/** The rows that hold now. */
export function listed(): Key[] {
  return KEYS.filter((row) => row.keys.length === 0 || row.act !== undefined || row.cmds !== undefined
    || row.keys.some((key) => acts.has(key)));
}

/** The key that is written beside a command. */
export function keyOf(cmd: string): string | undefined {
  return KEYS.find((row) => row.cmds?.includes(cmd))?.shown;
}

/** Do what a key does; false where it does nothing. */
export function strike(key: string, repeated = false): boolean {
  const row = KEYS.find((one) => one.keys.includes(key));
  if (row === undefined) return false;
  const act = acts.get(key);
  if (act !== undefined) act();
  else if (row.act !== undefined) row.act(key);
  else {
    const control = controlsNow().find((one) => row.cmds?.includes(one.cmd));
    if (control === undefined || repeated) return false;
    press(control);
  }
  return true;
}

const TYPED = "input:not([type=checkbox],[type=radio],[type=range]), select, textarea, [contenteditable], dialog";
const TAKES_SPACE = "button, a, summary, input, [role=slider], [role=option], [tabindex='0']";

/** Single keys act unless somebody types or a dialog is open; Space only when nothing has the focus that takes it. */
export function onKey(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "k" || event.shiftKey) return;
    event.preventDefault();
    page.ask(page.dialog?.kind === "palette" ? null : { kind: "palette" });
    return;
  }
  if (event.key === "Escape") {
    escape(event);
    return;
  }
  const target = event.target instanceof Element ? event.target : null;
  if (page.dialog !== null || !page.singleKeys || target?.closest(TYPED)) return;
  if ((key === " " || key === "enter") && target?.closest(TAKES_SPACE)) return;
  if (strike(key, event.repeat)) event.preventDefault();
}

/** Close what lies on top, and give the focus back to what had opened it. */
function escape(event: KeyboardEvent): void {
  if (page.dialog !== null) return; // the dialog closes itself
  if (page.menu !== null) {
    const opener = document.querySelector<HTMLElement>(`[data-menu="${page.menu}"]`);
    page.showMenu(null);
    opener?.focus();
  } else if (page.panel !== null) {
    const opener = document.querySelector<HTMLElement>(`[data-panel="${page.panel}"]`);
    page.open(null);
    opener?.focus();
  } else {
    return;
  }
  event.preventDefault();
}
