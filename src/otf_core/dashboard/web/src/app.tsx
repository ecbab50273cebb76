/** The page: three bands (state, charts, timeline), the rail and its drawer. */

import type { JSX } from "preact";
import { BandView } from "./band";
import { Live } from "./announce";
import { Dialogs } from "./dialogs";
import { Drawer, Rail } from "./drawers";
import { count } from "./format";
import { page } from "./page";
import { stateOf, totalSteps, type View } from "./state";
import type { Scene } from "./scene";
import { Timeline } from "./timeline";
import { TopBar } from "./top";
import { Empty, Work } from "./work";

export function App({ view, scene }: { view: View; scene: Scene | null }): JSX.Element {
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
                <Work view={view} scene={scene} />
                <Timeline scene={scene} />
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

export function stepText(step: number | null): string {
  return step === null ? "no step yet" : `step ${count(step)}`;
}
