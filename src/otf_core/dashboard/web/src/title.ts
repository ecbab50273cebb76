/** The title of the document: the state or the percent first, so that a narrow tab says it. */

import { nameOf, stateOf, totalSteps, type View } from "./state";

const LOUD = new Set(["stalled", "failed"]);

export function titleOf(view: View): string {
  const { session, data } = view;
  const state = stateOf(view);
  if (session === null) return state === "empty" ? "no run · otf" : "otf";
  const name = nameOf(session);
  const total = totalSteps(session, data);
  if (state === "running" && total !== null && session.step !== null) {
    return `${Math.floor((100 * Math.min(session.step, total.steps)) / total.steps)} % · ${name} · otf`;
  }
  const said = state.replace("-", " ");
  return `${LOUD.has(state) ? said.toUpperCase() : said} · ${name} · otf`;
}
