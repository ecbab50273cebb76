/** The place in the address: which run and which step. The token is never in it. */

import { store } from "./store";
import { shared } from "./view";

let wanted: { run: string | null; step: number | null } | null = null;

/** A link that puts the cursor on a step of a run. */
export function linkTo(run: string, step: number): string {
  const address = new URL(document.baseURI);
  address.hash = new URLSearchParams({ run, step: String(step) }).toString();
  return address.href;
}

function read(): void {
  const said = new URLSearchParams(location.hash.replace(/^#/, ""));
  const step = Number(said.get("step") ?? NaN);
  const run = said.get("run");
  wanted = run === null && Number.isNaN(step) ? null : { run, step: Number.isInteger(step) && step >= 0 ? step : null };
  store.changed();
}

/** Go where the address says, as soon as its run is here. Called once a frame. */
export function goThere(): void {
  if (wanted === null || !store.welcomed) return;
  const { run, step } = wanted;
  if (run !== null && store.byKey(run) === null) return;
  wanted = null;
  if (run !== null) store.focus(run);
  if (step !== null) shared.setCursor(step);
}

addEventListener("hashchange", read);
read();
