/** Band 2: the charts' bar, the large chart, the small charts; and what stands there without a run. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Chart } from "./charts";
import type { Columns } from "./columns";
import { clock, count, sig } from "./format";
import { Icon, Tag } from "./icons";
import { KNOWN, metricOf, shownAtFirst, type Metric } from "./metrics";
import { page } from "./page";
import { nameOf, stateOf, totalSteps, type View } from "./state";
import { runKey, store } from "./store";
import type { Session } from "./types";
import { Menu } from "./top";
import { shared, type RangeName } from "./view";

const RANGES: readonly [RangeName, string][] = [["all", "All"], ["5k", "Last 5k"], ["1k", "Last 1k"]];

export function Work({ view }: { view: View }): JSX.Element {
  const { session, data } = view;
  if (session === null || data === null) return <div />;
  const { columns } = data;
  const stale = view.link.state !== "up" || !session.connected;
  const { shown, more } = chosen(columns);
  return (
    <>
      <Bar />
      <div class="charts" id="charts" tabIndex={-1} role="group" aria-label="Charts">
        <LargeChart key={runKey(session)} view={view} session={session} columns={columns} stale={stale} />
        {shown.map((metric) => (
          <SmallChart
            key={`${runKey(session)} ${metric.key}`} metric={metric} columns={columns} stale={stale}
            session={session} total={totalSteps(session, data)?.steps ?? null}
          />
        ))}
        <AddChart columns={columns} more={more} />
      </div>
    </>
  );
}

/** Charts in their order: the known ones, then what the module logs besides. */
function chosen(columns: Columns): { shown: Metric[]; more: Metric[] } {
  const named = KNOWN.filter((metric) => metric.key !== "loss");
  const known = new Set(KNOWN.map((metric) => metric.key));
  const extra = columns.names().filter((key) => !known.has(key)).sort().map(metricOf);
  const shown: Metric[] = [];
  const more: Metric[] = [];
  for (const metric of [...named, ...extra]) {
    const on = columns.has(metric.key) && (shared.shown.get(metric.key) ?? shownAtFirst(metric.key));
    (on ? shown : more).push(metric);
  }
  return { shown, more };
}

function Bar(): JSX.Element {
  return (
    <div class="cbar">
      <div class="seg" role="group" aria-label="Steps shown">
        {RANGES.map(([range, label]) => (
          <button type="button" key={range} aria-pressed={shared.zoom === null && shared.range === range} onClick={() => shared.setRange(range)}>
            {label}
          </button>
        ))}
      </div>
      {shared.zoom === null ? (
        <span class="hint grow clip wide">Drag on a chart to zoom</span>
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
    </div>
  );
}

/** The number of a chart: at the cursor, else the latest; with the event it came in. */
function Value({ metric, columns, stale }: { metric: Metric; columns: Columns; stale: boolean }): JSX.Element {
  const row = columns.rowOf(metric.key, shared.cursor);
  const value = row < 0 ? NaN : columns.at(metric.key, row);
  if (Number.isNaN(value)) return <span class="ch-v" data-metric={metric.key}>–</span>;
  const { unit } = metric;
  return (
    <span
      class={`ch-v${stale && shared.cursor === null ? " stale" : ""}`} data-metric={metric.key}
      data-seq={columns.seq.values[row]} data-step={columns.step.values[row]} data-value={String(value)}
    >
      {metric.show(value)}
      {unit !== "" && <small>{unit}</small>}
    </span>
  );
}

function cadence(session: Session, key: string): string | null {
  const found = session.cadence?.[key];
  if (found === undefined || found === null) return null;
  if (found.unit === "s") return `every ${sig(found.every).replace(/\.?0+$/, "")} s`;
  return found.every > 1 ? `every ${count(found.every)} steps` : null;
}

function Plot({ metric, large, columns, total }: {
  metric: Metric; large: boolean; columns: Columns; total: number | null;
}): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (box.current === null) return undefined;
    const chart = new Chart(box.current, metric, large);
    store.changed();
    return () => chart.destroy();
  }, [metric.key, large]);
  const { from, to } = shared.extent(columns, total);
  const last = columns.lastStep() ?? from;
  const step = shared.cursor ?? last;
  const row = columns.rowOf(metric.key, step);
  const said = row < 0
    ? "no value"
    : `${metric.title.toLowerCase()} ${metric.show(columns.at(metric.key, row))} ${metric.unit}`.trimEnd();
  const onKey = (event: KeyboardEvent): void => {
    const stride = event.shiftKey ? 10 : 1;
    const newest = columns.lastStep() ?? from;
    // Not the drawn step: a held key repeats faster than the page draws.
    const at = shared.cursor ?? newest;
    const targets: Record<string, number> = {
      ArrowLeft: at - stride, ArrowRight: at + stride, Home: columns.step.values[0] ?? from, End: newest,
    };
    const next = targets[event.key];
    if (next === undefined) return;
    event.preventDefault();
    shared.setCursor(Math.min(newest, Math.max(from, next)));
  };
  return (
    <div
      class="plot" ref={box} tabIndex={0} role="slider" aria-label={`Cursor on ${metric.title}`}
      aria-valuemin={from} aria-valuemax={to} aria-valuenow={step}
      aria-valuetext={`step ${count(step)}, ${said}`} onKeyDown={onKey} onBlur={() => shared.setCursor(null)}
    />
  );
}

function LargeChart({ view, session, columns, stale }: {
  view: View; session: Session; columns: Columns; stale: boolean;
}): JSX.Element {
  const metric = metricOf("loss");
  const rate = cadence(session, "loss");
  const none = !columns.has("loss");
  return (
    <figure class="ch hero" aria-label="Train loss">
      <figcaption class="leg">
        <div class="top1">
          <h2 class="ch-t">Train loss</h2>
          {rate !== null && <span class="hint">{rate}</span>}
          {columns.has("val_loss") && <span class="sub"><i class="ringkey" aria-hidden="true" /> validation</span>}
        </div>
        <div class="lr">
          <Tag letter={store.letterOf(session)} />
          <span class="clip">{nameOf(session)}</span>
          <Value metric={metric} columns={columns} stale={stale} />
        </div>
        <p class="at" aria-hidden="true">
          {shared.cursor === null ? "" : `at step ${count(shared.cursor)}`}
        </p>
      </figcaption>
      {none ? (
        <p class="none">{stateOf(view) === "starting" ? "The first step has not begun." : "No step with a loss yet."}</p>
      ) : (
        <Plot metric={metric} large columns={columns} total={totalSteps(session, view.data)?.steps ?? null} />
      )}
    </figure>
  );
}

function SmallChart({ metric, columns, stale, session, total }: {
  metric: Metric; columns: Columns; stale: boolean; session: Session; total: number | null;
}): JSX.Element {
  const rate = cadence(session, metric.key);
  return (
    <figure class="ch" aria-label={metric.title}>
      <figcaption class="ch-h">
        <h3 class="ch-t">{metric.title}</h3>
        {rate !== null && <span class="hint rate">{rate}</span>}
        <Value metric={metric} columns={columns} stale={stale} />
      </figcaption>
      <Plot metric={metric} large={false} columns={columns} total={total} />
    </figure>
  );
}

function AddChart({ columns, more }: { columns: Columns; more: Metric[] }): JSX.Element {
  const open = page.menu === "charts";
  const logged = columns.names().filter((key) => key !== "loss" && columns.has(key)).map(metricOf);
  const without = more.filter((metric) => !columns.has(metric.key));
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
              <span class="hint num">{metric.show(columns.at(metric.key, columns.rowOf(metric.key)))}</span>
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

const SNIPPET = `from otf_lightning import OnTheFlyCallback

trainer = Trainer(callbacks=[OnTheFlyCallback()])
trainer.fit(model, data)`;

export function Empty({ state, since_s }: { state: string; since_s: number }): JSX.Element {
  if (state !== "empty") return <div class="empty" />;
  return (
    <div class="empty" id="charts" tabIndex={-1}>
      <h2>Add one line and start training</h2>
      <p>The callback finds this dashboard by itself. Nothing in the training changes until you ask for it.</p>
      <div class="code">
        <pre>{SNIPPET}</pre>
        <button type="button" class="btn sm" onClick={() => void navigator.clipboard?.writeText(SNIPPET)}>Copy</button>
      </div>
      <p class="listen"><span class="spin" aria-hidden="true" /> Listening since {clock(since_s)}</p>
    </div>
  );
}
