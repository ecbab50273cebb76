/** The page: three bands (state, charts, timeline), the rail and its drawer. */

import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { BandView } from "./band";
import { Banner } from "./banner";
import { Live } from "./announce";
import { Dialogs } from "./dialogs";
import { Drawer, Rail } from "./drawers";
import { count } from "./format";
import { page } from "./page";
import { amissIn, stateOf, type View } from "./state";
import { store } from "./store";
import { titleOf } from "./title";
import type { Scene } from "./scene";
import { Timeline } from "./timeline";
import { TopBar } from "./top";
import { Empty } from "./empty";
import { Work } from "./work";

export function App({ view, scene }: { view: View; scene: Scene | null }): JSX.Element {
  const state = stateOf(view);
  document.title = titleOf(view);
  useEffect(() => {
    // Nothing else opens by itself.
    if (state === "stalled" && innerWidth > 1100 && page.panel !== "health") {
      page.panel = "health";
      store.changed();
    }
  }, [state === "stalled"]);
  return (
    <>
      <a class="skip" href="#charts" onClick={toCharts}>Skip to the charts</a>
      <TopBar view={view} />
      <main>
        <Banner />
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
          {view.session !== null && <Rail amiss={amissIn(view)} />}
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

export function stepText(step: number | null): string {
  return step === null ? "no step yet" : `step ${count(step)}`;
}
