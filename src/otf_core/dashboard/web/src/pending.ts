/** A command that takes its time: whether one is open, and how far it is. */

import { isDict } from "./columns";
import { command } from "./live";
import { trainerOf } from "./relatives";
import { isSettled, store, type Held } from "./store";
import type { View } from "./state";
import type { Dict, Session } from "./types";

export interface Open {
  id: string;
  payload: Dict | null;
  /** Until the trainer has begun with it. */
  waits_for: string | null;
  done: number | null;
  total: number | null;
  eta_s: number | null;
  /** What it has told beside, one by one. */
  found: Dict[];
}

/** The newest open command of that name, after a reload too: then the server says that it is pending. */
export function openOf(view: View, cmd: string): Open | null {
  if (view.session === null) return null;
  const session = trainerOf(view.session);
  const receipt = allReceipts(session).find((one) => one.cmd === cmd && !isSettled(one.state));
  const pending = session.pending.find((one) => one.cmd === cmd);
  const id = receipt?.id ?? pending?.request_id;
  if (id === undefined) return null;
  const known = store.receipts.get(session.session_id)?.get(id);
  if (known !== undefined && isSettled(known.state)) return null; // the session is told a moment later
  const told = store.toldOf(session).events.filter((event) => event.type === "progress" && event["request_id"] === id);
  const last = told.at(-1);
  return {
    id, payload: receipt?.payload ?? null, waits_for: receipt?.waits_for ?? pending?.waits_for ?? null,
    done: numberOf(last?.["done"]), total: numberOf(last?.["total"]), eta_s: numberOf(last?.["eta_s"]),
    found: told.flatMap((event) => (isDict(event["found"]) ? [event["found"] as Dict] : [])),
  };
}

/** The newest receipt of that name that fits, whatever became of it. */
export function lastOf(session: Session, cmd: string, fits: (one: Held) => boolean = () => true): Held | undefined {
  return allReceipts(session).find((one) => one.cmd === cmd && fits(one));
}

function allReceipts(session: Session): Held[] {
  return [...(store.receipts.get(session.session_id)?.values() ?? [])].sort((a, b) => b.first_ms - a.first_ms);
}

export function cancel(view: View, open: Open): void {
  if (view.session !== null) command(trainerOf(view.session).session_id, "cancel", { request_id: open.id });
}

export function numberOf(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
