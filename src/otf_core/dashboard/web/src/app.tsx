/** The page: three bands (state, charts, timeline), the rail and its drawer. */

import type { JSX } from "preact";
import { BandView } from "./band";
import { Live } from "./announce";
import type { Scene } from "./charts";
import { Dialogs } from "./dialogs";
import { Drawer, Rail } from "./drawers";
import { count, span } from "./format";
import { colourOf } from "./icons";
import { page, viewNow } from "./page";
import { stateOf, totalSteps, type View } from "./state";
import { runKey, store } from "./store";
import { Timeline } from "./timeline";
import type { Turn } from "./told";
import { TopBar } from "./top";
import { shared } from "./view";
import { Empty, Work } from "./work";

export function App(): JSX.Element {
  const view = viewNow();
  const state = stateOf(view);
  document.title = titleOf(view, state);
  return (
    <>
      <a class="skip" href="#charts" onClick={toCharts}>Skip to the charts</a>
      <TopBar view={view} />
      <main>
        <BandView view={view} />
        <div class={`body${page.panel !== null && view.session !== null ? " with-drawer" : ""}`}>
          <div class="work">
            {view.session === null ? (
              <Empty state={state} since_s={view.opened_s} />
            ) : (
              <>
                <Work view={view} />
                <Timeline view={view} />
              </>
            )}
          </div>
          {view.session !== null && page.panel !== null && <Drawer view={view} panel={page.panel} />}
          {view.session !== null && <Rail />}
        </div>
      </main>
      <Dialogs view={view} />
      <Live view={view} />
    </>
  );
}

function toCharts(event: Event): void {
  event.preventDefault();
  document.getElementById("charts")?.focus();
}

function titleOf(view: View, state: string): string {
  const { session, data } = view;
  if (session === null) return "otf";
  const name = session.run_name || session.run_id || session.session_id;
  const total = totalSteps(session, data);
  if (state === "running" && total !== null && session.step !== null) {
    return `${Math.floor((100 * Math.min(session.step, total.steps)) / total.steps)} % · ${name} · otf`;
  }
  return `${state.replace("-", " ")} · ${name} · otf`;
}

/** What the charts draw in this frame. */
export function sceneNow(): Scene | null {
  const view = viewNow();
  const { session, data } = view;
  if (session === null || data === null || data.columns.length === 0) return null;
  const letter = store.letterOf(session);
  const total = totalSteps(session, data);
  const state = stateOf(view);
  return {
    columns: data.columns,
    run: runKey(session),
    letter,
    colour: colourOf(letter),
    ...shared.extent(data.columns, total?.steps ?? null),
    rules: [
      ...data.pauses.map((pause) => ({
        step: pause.step,
        label: pause.to_ts === null ? "paused" : `paused ${span(pause.to_ts - pause.from_ts)}`,
      })),
      ...data.turns.map((turn) => ({ step: turn.step, label: ruleOf(turn) })),
    ].sort((a, b) => a.step - b.step),
    ended: ENDED[state] ?? null,
    version: data.eventsVersion,
  };
}

function ruleOf(turn: Turn): string {
  if (turn.kind === "resume") return "resumed";
  return turn.from === null ? "rolled back" : `rolled back from ${count(turn.from)}`;
}

const ENDED: Record<string, string> = {
  stalled: "stalled",
  failed: "failed here",
  "connection-lost": "no data",
  "trainer-lost": "no data",
};

export function stepText(step: number | null): string {
  return step === null ? "no step yet" : `step ${count(step)}`;
}
