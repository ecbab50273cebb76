/** The family of the run that is shown, from the store. */

import { family, type Member } from "./family";
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

/** Other runs of the project that have a checkpoint to merge with. */
export function partnersOf(session: Session): number {
  let n = 0;
  for (const run of store.runs.values()) {
    if ((run.project ?? "") === (session.project ?? "") && run.run_id !== session.run_id && run.checkpoints.length > 0) n += 1;
  }
  return n;
}
