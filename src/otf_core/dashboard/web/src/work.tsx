/** Band 2: the charts' bar, the large chart, the small charts; and what stands there without a run. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Chart } from "./charts";
import "./charts.css";
import { count, plural, sig } from "./format";
import { Icon, Tag } from "./icons";
import { inOrder } from "./lanes";
import type { Lines } from "./lines";
import { KNOWN, metricOf, shownAtFirst, type Metric } from "./metrics";
import { page } from "./page";
import { nothingYet, type Drawn, type Scene } from "./scene";
import { SpotMenu } from "./spot";
import { nameOf, stateOf, type View } from "./state";
import { runKey, store } from "./store";
import type { Told } from "./told";
import type { Session } from "./types";
import { Menu } from "./top";
import { shared, type RangeName } from "./view";

const RANGES: readonly [RangeName, string][] = [["all", "All"], ["5k", "Last 5k"], ["1k", "Last 1k"], ["plan", "Plan"]];

export function Work({ view, scene }: { view: View; scene: Scene | null }): JSX.Element {
  const { session, data } = view;
  if (session === null || data === null || scene === null) return <div />;
  const stale = view.link.state !== "up" || !(session.connected || session.state === "left");
  const { shown, more } = chosen(scene);
  const large = [...shown, ...more].some((one) => one.key === shared.large) ? shared.large : "loss";
  return (
    <>
      <Bar planned={scene.total !== null} />
      <div class={`charts${shared.layout === "stack" ? " stack" : ""}`} id="charts" tabIndex={-1} role="group" aria-label="Charts">
        <LargeChart key={`${scene.focus.key} ${large}`} view={view} scene={scene} metric={metricOf(large)} stale={stale} />
        {shown.filter((metric) => metric.key !== large).map((metric) => (
          <SmallChart key={`${scene.focus.key} ${metric.key}`} metric={metric} scene={scene} stale={stale} />
        ))}
        <AddChart scene={scene} more={more} />
      </div>
      <SpotMenu view={view} scene={scene} />
    </>
  );
}

/** Charts in their order: the known ones, then what the module logs besides. */
function chosen(scene: Scene): { shown: Metric[]; more: Metric[] } {
  const drawn = [scene.focus, ...scene.others];
  const known = new Set(KNOWN.map((metric) => metric.key));
  const names = new Set(drawn.flatMap((one) => one.lines.names()));
  const extra = [...names].filter((key) => !known.has(key)).sort().map(metricOf);
  const shown: Metric[] = [];
  const more: Metric[] = [];
  for (const metric of [...KNOWN, ...extra]) {
    const on = drawn.some((one) => one.lines.has(metric.key)) && (metric.key === "loss" || (shared.shown.get(metric.key) ?? shownAtFirst(metric.key)));
    (on ? shown : more).push(metric);
  }
  return { shown, more };
}

function Bar({ planned }: { planned: boolean }): JSX.Element {
  return (
    <div class="cbar">
      <div class="seg" role="group" aria-label="Steps shown">
        {RANGES.filter(([range]) => range !== "plan" || planned).map(([range, label]) => (
          <button type="button" key={range} aria-pressed={shared.zoom === null && shared.range === range} onClick={() => shared.setRange(range)}>
            {label}
          </button>
        ))}
      </div>
      {shared.zoom === null ? (
        <span class="hint grow clip wide">Drag on a chart to zoom, click a curve to act on that step</span>
      ) : (
        <button type="button" class="btn sm" onClick={() => shared.setZoom(null)}>
          Steps {count(shared.zoom.from)} – {count(shared.zoom.to)} <Icon name="close" /><span class="sr">, reset zoom</span>
        </button>
      )}
      <span class="grow" />
      <label class="smo">
        Smoothing
        <input
          type="range" min="0" max="0.98" step="0.01" value={shared.smoothing}
          onInput={(event) => shared.setSmoothing(Number(event.currentTarget.value))}
        />
        <output>{shared.smoothing.toFixed(2)}</output>
      </label>
      <div class="seg" role="group" aria-label="Scale of losses and norms">
        <button type="button" aria-pressed={!shared.log} onClick={() => shared.setLog(false)}>Linear</button>
        <button type="button" aria-pressed={shared.log} onClick={() => shared.setLog(true)}>Log</button>
      </div>
      <div class="seg lay" role="group" aria-label="Layout of charts">
        <button type="button" aria-pressed={shared.layout === "grid"} onClick={() => shared.setLayout("grid")}>Grid</button>
        <button type="button" aria-pressed={shared.layout === "stack"} onClick={() => shared.setLayout("stack")}>Stack</button>
      </div>
    </div>
  );
}

/** The number of a chart: at the cursor, else the latest; with the event it came in. */
function Value({ metric, lines, stale }: { metric: Metric; lines: Lines; stale: boolean }): JSX.Element {
  const found = lines.at(metric.key, shared.cursor);
  if (found === null) return <span class="ch-v" data-metric={metric.key}>–</span>;
  const { unit } = metric;
  return (
    <span
      class={`ch-v${stale && shared.cursor === null ? " stale" : ""}`} data-metric={metric.key}
      data-seq={found.seq} data-step={found.step} data-value={String(found.value)}
    >
      {metric.show(found.value)}
      {unit !== "" && <small>{unit}</small>}
    </span>
  );
}

/** The same of a run beside it: nothing where it does not reach. */
function ValueOf({ metric, run }: { metric: Metric; run: Drawn }): JSX.Element {
  const found = run.lines.within(metric.key, shared.cursor);
  return found === null ? <span class="ch-v">—</span> : (
    <span class="ch-v" data-run={run.key} data-run-metric={metric.key} data-run-seq={found.seq} data-run-value={String(found.value)}>
      {metric.show(found.value)}
    </span>
  );
}

function cadence(session: Session, key: string): string | null {
  const found = session.cadence?.[key];
  if (found === undefined || found === null) return null;
  if (found.unit === "s") return `every ${sig(found.every).replace(/\.?0+$/, "")} s`;
  return found.every > 1 ? `every ${count(found.every)} steps` : null;
}

function Plot({ metric, large, scene }: { metric: Metric; large: boolean; scene: Scene }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const made = useRef<Chart | null>(null);
  useEffect(() => {
    if (box.current === null) return undefined;
    const opener = box.current;
    const chart = new Chart(opener, metric, large, (run, step, at) => {
      shared.openSpot({ run, step, ...at, told: [], opener });
    });
    made.current = chart;
    store.changed();
    return () => chart.destroy();
  }, [metric.key, large]);
  const { from, to } = scene;
  const { lines } = scene.focus;
  const newest = lines.lastStep() ?? from;
  const step = shared.cursor ?? newest;
  const found = lines.at(metric.key, step);
  const said = found === null ? "no value" : `${metric.title.toLowerCase()} ${metric.show(found.value)} ${metric.unit}`.trimEnd();
  const onKey = (event: KeyboardEvent): void => {
    const stride = event.shiftKey ? 10 : 1;
    // Not the drawn step: a held key repeats faster than the page draws.
    const at = shared.cursor ?? newest;
    if (event.key === "Enter") {
      event.preventDefault();
      const spot = made.current?.spot(at) ?? { x: 0, y: 0 };
      shared.openSpot({ run: scene.focus.key, step: at, ...spot, told: [], opener: box.current });
      return;
    }
    const targets: Record<string, number> = {
      ArrowLeft: at - stride, ArrowRight: at + stride, Home: lines.firstStep() ?? from, End: newest,
    };
    const next = targets[event.key];
    if (next === undefined) return;
    event.preventDefault();
    shared.setCursor(Math.min(newest, Math.max(from, next)));
  };
  return (
    <div
      class="plot" ref={box} tabIndex={0} role="slider" aria-label={`Cursor on ${metric.title}`} aria-haspopup="menu"
      aria-valuemin={from} aria-valuemax={to} aria-valuenow={step}
      aria-valuetext={`step ${count(step)}, ${said}`} onKeyDown={onKey} onBlur={() => shared.setCursor(null)}
    />
  );
}

/** Where the legend has more runs than this, the one in focus comes first. */
const LEGEND = 6;

function LargeChart({ view, scene, metric, stale }: { view: View; scene: Scene; metric: Metric; stale: boolean }): JSX.Element {
  const rate = cadence(scene.focus.session, metric.key);
  const none = ![scene.focus, ...scene.others].some((one) => one.lines.has(metric.key));
  return (
    <figure class="ch hero" aria-label={metric.title}>
      <figcaption class="leg">
        <div class="top1">
          <h2 class="ch-t">{metric.title}</h2>
          {rate !== null && <span class="hint">{rate}</span>}
          {metric.key === "loss" && scene.focus.lines.has("val_loss") && <span class="sub"><i class="ringkey" aria-hidden="true" /> validation</span>}
        </div>
        <div class="lrs" role="group" aria-label="Runs: press to focus, with Alt to hide">
          {inOrder(scene.runs, scene.focus.key, LEGEND).map((run) => <Legend key={run.key} run={run} scene={scene} metric={metric} stale={stale} />)}
        </div>
        <MoreRuns scene={scene} />
        <p class="at" aria-hidden="true">
          {shared.cursor === null ? "" : `at step ${count(shared.cursor)}`}
        </p>
      </figcaption>
      {none ? (
        <p class="none">{nothingYet(metric.key, view.data as Told, stateOf(view))}</p>
      ) : (
        <Plot metric={metric} large scene={scene} />
      )}
    </figure>
  );
}

function Legend({ run, scene, metric, stale }: { run: Drawn; scene: Scene; metric: Metric; stale: boolean }): JSX.Element {
  const own = run === scene.focus;
  return (
    <button
      type="button" class={`lr${own ? " on" : ""}${run.hidden ? " off" : ""}`} aria-pressed={own}
      title={own ? run.name : `${run.name}: press to focus, with Alt to ${run.hidden ? "show" : "hide"}`}
      onClick={(event) => {
        if (!event.altKey) store.focus(run.key);
        else if (!own) shared.setDrawn(run.key, run.kin, run.kin && run.hidden);
      }}
    >
      <Tag letter={run.letter} />
      <span class="clip">{run.name}</span>
      {own ? <Value metric={metric} lines={run.lines} stale={stale} /> : run.hidden ? <span class="hint">hidden</span> : <ValueOf metric={metric} run={run} />}
    </button>
  );
}

/** The other runs, to be drawn beside the one in focus. */
function MoreRuns({ scene }: { scene: Scene }): JSX.Element | null {
  const listed = new Set(scene.runs.map((one) => one.key));
  const others = store.sorted().filter((one) => one.project === scene.focus.session.project && (!listed.has(runKey(one)) || shared.added.has(runKey(one))));
  if (others.length === 0) return null;
  const open = page.menu === "more-runs";
  return (
    <div class="menu-at more-runs">
      <button type="button" class="link" data-menu="more-runs" aria-haspopup="true" aria-expanded={open} onClick={() => page.showMenu("more-runs")}>
        {plural(others.length, "other run")}…
      </button>
      {open && (
        <Menu label="Other runs of the project">
          {others.map((one) => (
            <label class="item" key={runKey(one)}>
              <input type="checkbox" checked={listed.has(runKey(one))} onChange={(event) => shared.setDrawn(runKey(one), false, event.currentTarget.checked)} />
              <Tag letter={store.letterOf(one)} />
              <span class="clip">{nameOf(one)}</span>
            </label>
          ))}
        </Menu>
      )}
    </div>
  );
}

function SmallChart({ metric, scene, stale }: { metric: Metric; scene: Scene; stale: boolean }): JSX.Element {
  const rate = cadence(scene.focus.session, metric.key);
  return (
    <figure class="ch" aria-label={metric.title}>
      <figcaption class="ch-h">
        <h3><button type="button" class="ch-t" title="Show large" onClick={() => shared.setLarge(metric.key)}>{metric.title}</button></h3>
        {rate !== null && <span class="hint rate">{rate}</span>}
        <Value metric={metric} lines={scene.focus.lines} stale={stale} />
      </figcaption>
      <Plot metric={metric} large={false} scene={scene} />
    </figure>
  );
}

function AddChart({ scene, more }: { scene: Scene; more: Metric[] }): JSX.Element {
  const { lines } = scene.focus;
  const open = page.menu === "charts";
  const logged = lines.names().filter((key) => key !== "loss" && lines.has(key)).map(metricOf);
  const without = more.filter((metric) => !lines.has(metric.key));
  const addable = more.length - without.length;
  return (
    <div class="ch add menu-at">
      <button
        type="button" data-menu="charts" aria-haspopup="true" aria-expanded={open}
        onClick={() => page.showMenu("charts")}
      >
        <Icon name="plus" />
        <span>Add a chart</span>
        <small>{addable > 0 ? `${addable} more logged` : "all that is logged is shown"}{without.length > 0 && `, ${without.length} without a value`}</small>
      </button>
      {open && (
        <Menu label="Charts" up>
          {logged.map((metric) => (
            <label class="item" key={metric.key}>
              <input
                type="checkbox" checked={shared.shown.get(metric.key) ?? shownAtFirst(metric.key)}
                onChange={(event) => shared.show(metric.key, event.currentTarget.checked)}
              />
              <span class="clip">{metric.title}</span>
              <span class="hint num">{metric.show(lines.at(metric.key)?.value ?? NaN)}</span>
            </label>
          ))}
          {without.map((metric) => (
            <p class="item off" key={metric.key}>
              <span class="clip">{metric.title}</span>
              <span class="hint">no value yet</span>
            </p>
          ))}
        </Menu>
      )}
    </div>
  );
}
