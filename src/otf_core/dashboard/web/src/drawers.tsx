/** The rail and its drawers. A drawer is a row of `PANELS`. */

import type { JSX } from "preact";
import { Health } from "./health";
import { Icon } from "./icons";
import { Checkpoints } from "./kept";
import { Lineage } from "./lineage";
import { Log } from "./log";
import { page, PANELS, type Panel } from "./page";
import { Samples, SampleSets } from "./samples";
import { nameOf, type View } from "./state";
import { Steer, SteerTools } from "./steer";

const DRAWERS: Record<Panel, { title: string; Body: (props: { view: View }) => JSX.Element; Tools?: () => JSX.Element }> = {
  steer: { title: "Steer", Body: Steer, Tools: SteerTools },
  samples: { title: "Samples", Body: Samples, Tools: SampleSets },
  checkpoints: { title: "Checkpoints", Body: Checkpoints },
  lineage: { title: "Lineage", Body: Lineage },
  health: { title: "Health", Body: Health },
  log: { title: "Log", Body: Log },
};

export function Rail({ amiss = 0 }: { amiss?: number }): JSX.Element {
  return (
    <nav class="rail" aria-label="Panels">
      {PANELS.map((panel, i) => (
        <button
          type="button" key={panel} data-panel={panel} aria-expanded={page.panel === panel}
          aria-keyshortcuts={String(i + 1)} onClick={() => page.toggle(panel)}
        >
          <Icon name={panel} />
          <span>{DRAWERS[panel].title}{panel === "health" && amiss > 0 && <span class="badge">{amiss > 9 ? "9+" : amiss}</span>}</span>
        </button>
      ))}
    </nav>
  );
}

export function Drawer({ view, panel }: { view: View; panel: Panel }): JSX.Element {
  const { title, Body, Tools } = DRAWERS[panel];
  return (
    <aside class="drawer" aria-label={title}>
      <div class="dr-h">
        <h2>{title}</h2>
        {Tools !== undefined ? <><span class="grow" /><Tools /></> : view.session !== null && <span class="hint clip">{nameOf(view.session)}</span>}
        <button type="button" class="icb" aria-label={`Close ${title}`} onClick={() => page.open(null)}>
          <Icon name="close" />
        </button>
      </div>
      <Body view={view} />
    </aside>
  );
}
