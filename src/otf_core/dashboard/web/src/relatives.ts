/** The family of the run that is shown, from the store. */

import { family, type Member } from "./family";
import { controlsNow } from "./page";
import type { View } from "./state";
import { store } from "./store";
import type { Run, Session } from "./types";

export function letterOfRun(run: { project: string | null; run_id: string }): string {
  return store.letters.get(`${run.project ?? ""}/${run.run_id}`) ?? "?";
}

export function membersOf(session: Session): Member[] {
  return family(store.runs.values(), store.sessions.values(), session.project, (run: Run) => letterOfRun(run));
}

/** Who carries commands on runs out: the session that trains, also while another run of it is looked at. */
export function trainerOf(session: Session): Session {
  if (session.connected) return session;
  return [...store.sessions.values()].find((one) => one.connected && one.project === session.project) ?? session;
}

/** Why a command on runs cannot be given now, else null: also while a run is looked at that does not train. */
export function barred(view: View, cmd: string): string | null {
  if (view.session === null) return "no run";
  const goes = trainerOf(view.session);
  if (view.session.connected) {
    const control = controlsNow().find((one) => one.cmd === cmd);
    if (control === undefined) return "no run";
    return control.state === "off" || control.state === "pending" ? control.line : null;
  }
  if (view.link.state !== "up") return "offline";
  if (!goes.connected) return "no trainer";
  return goes.capabilities.length > 0 && !goes.capabilities.includes(cmd) ? "not in this run" : null;
}
