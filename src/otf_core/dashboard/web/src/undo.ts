/** What Undo would take back: the last command that changed the run, as far as this page has heard. Pure functions. */

import { isDict } from "./columns";
import { brief, count, plural } from "./format";
import { changesOf } from "./steering";
import type { Held } from "./store";
import type { OtfEvent, Param } from "./types";
import { paramName, what } from "./words";

const UNDOABLE = new Set(["set_param", "set_params", "extend", "note", "rollback", "load_ckpt", "fork", "merge", "switch_run"]);

export interface Undoable {
  request_id: string;
  /** For the line under the button. */
  short: string;
  text: string;
}

/** Of the session that trains: another process knows nothing of what was asked of the one before. */
export function undoable(receipts: Held[], events: OtfEvent[], session_id: string, params: Param[]): Undoable | null {
  const gone = new Set(receipts.filter((one) => one.cmd === "undo" && one.state === "applied").map(undone));
  const told = receipts.find((one) => UNDOABLE.has(one.cmd) && one.state === "applied" && !gone.has(one.id));
  if (told !== undefined) return { request_id: told.id, short: short(told), text: what(told, params) };
  return fromEvents(events, session_id, new Set([...gone, ...receipts.map((one) => one.id)]));
}

function undone(receipt: Held): string {
  const data = receipt.reply?.data;
  const said = isDict(data) ? data["undone"] : null;
  return isDict(said) ? String(said["request_id"]) : "";
}

/** A dashboard that was started later has no receipts, but the stream says what was set and by whom. */
function fromEvents(events: OtfEvent[], session_id: string, known: Set<string>): Undoable | null {
  const undone = new Set<unknown>();
  for (let i = events.length - 1; i >= 0; i -= 1) {
    const event = events[i] as OtfEvent;
    if (event.type !== "param_changed" || event["session_id"] !== session_id) continue;
    const id = event["request_id"];
    if (event["by"] === "undo") undone.add(event["path"]);
    else if (event["by"] === "user" && typeof id === "string") {
      if (undone.delete(event["path"]) || known.has(id)) continue;
      const path = String(event["path"]);
      const change = `${brief(event["old"])} → ${brief(event["new"])}`;
      return { request_id: id, short: `${tail(path)} ${change}`, text: `${paramName(path)} ${change}` };
    }
  }
  return null;
}

function short(receipt: Held): string {
  const payload = receipt.payload ?? {};
  const data = isDict(receipt.reply?.data) ? receipt.reply.data : {};
  switch (receipt.cmd) {
    case "set_param":
      return `${tail(String(payload["path"]))} ${brief(data["old"])} → ${brief(data["new"])}`;
    case "set_params":
      return plural(changesOf(receipt).length, "value");
    case "rollback":
    case "load_ckpt":
      return typeof data["step"] === "number" ? `roll back to ${count(data["step"])}` : "roll back";
    case "extend":
      return typeof data["max_epochs"] === "number" ? `to ${count(data["max_epochs"])} epochs`
        : typeof data["max_steps"] === "number" ? `to ${count(data["max_steps"])} steps` : "extend";
    default:
      return receipt.cmd.replace("_", " ");
  }
}

function tail(path: string): string {
  return path.split(".").at(-1) ?? path;
}
