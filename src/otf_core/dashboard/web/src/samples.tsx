/** The drawer Samples: the loss of each sample, a range of them, and what to do with it. */

import "./samples.css";
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { fetchSamples, shownSample, type Shown } from "./asking";
import {
  choiceOf, choose, count as countSelection, countedOf, look, lookedAt, selectionOf, setShown, showSet, weightsFor,
  type Choice, type Figures, type Looked, type SetName, type Worst,
} from "./choosing";
import { selectionWords } from "./family";
import { count, plural, sig, span } from "./format";
import { about, byKey, extentOf, heightOf, lossTicks, moved, ticksOf, type Range } from "./histogram";
import { Icon } from "./icons";
import { command } from "./live";
import { page } from "./page";
import { lastOf, openOf } from "./pending";
import { Going } from "./going";
import { trainerOf } from "./relatives";
import { closed, nameOf, stateOf, stepOf, type View } from "./state";
import { isSettled, store } from "./store";
import type { Dict, Session } from "./types";

const SETS: readonly [SetName, string, string][] = [
  ["train", "Training set", "training set"], ["val", "Validation", "validation set"], ["test", "Test", "test set"],
];
const SHARES: readonly [number, string][] = [[0.0075, "0.75 %"], [0.05, "5 %"], [0.2, "20 %"], [0.5, "50 %"]];
const SHOWN = 10;
const SETTLE_MS = 120;

export function SampleSets(): JSX.Element {
  return (
    <div class="seg" role="group" aria-label="Which samples">
      {SETS.map(([on, label]) => (
        <button type="button" key={on} aria-pressed={setShown() === on} onClick={() => showSet(on)}>{label}</button>
      ))}
    </div>
  );
}

/** Why nothing can be asked of the samples now, else null. */
function shutOf(view: View): string | null {
  if (view.session === null || view.link.state !== "up") return "offline";
  if (!view.session.connected && trainerOf(view.session).connected) return null;
  return closed(view) ?? (stateOf(view) === "stalled" ? "no step end" : stateOf(view) === "starting" ? "the first step has not begun" : null);
}

export function Samples({ view }: { view: View }): JSX.Element {
  const shown = view.session as Session;
  const session = trainerOf(shown);
  const on = setShown();
  const shut = shutOf(view);
  const scans = [...(store.receipts.get(session.session_id)?.values() ?? [])]
    .filter((one) => one.cmd === "scan" && isSettled(one.state)).length;
  const open = openOf(view, "scan");
  useEffect(() => {
    if (shut === null) void look(session, on);
  }, [session.session_id, session.run_id, on, scans, open === null, shut === null]);
  const known = lookedAt(session, on);
  const name = SETS.find(([key]) => key === on)?.[2] ?? on;
  const scanning = open !== null && (open.payload === null || (open.payload["on"] ?? "train") === on);
  return (
    <div class="dr-b" data-set={on}>
      {session.run_id !== shown.run_id && <p class="lead warn" role="note">Of {nameOf(session)}, which trains; the samples of {nameOf(shown)} are looked at when it does.</p>}
      {shut !== null && <p class="lead" role="note">Nothing can be asked now: {shut}.{known?.figures != null && " What was found before stays below."}</p>}
      {open !== null && (
        <Going
          view={view} open={open} unit="samples"
          what={`Scanning the ${scanning ? name : `${String(open.payload?.["on"])} set`}${open.payload?.["background"] === true ? " while it trains:" : ":"}`}
        />
      )}
      {known?.refused != null
        ? <p class="lead">{known.refused}</p>
        : known === undefined
          ? shut === null && <p class="lead">Asking the trainer what it knows of its samples…</p>
          : <>
              <Scan view={view} session={session} on={on} known={known} name={name} shut={shut} busy={open !== null} />
              {known.figures !== null && <Losses view={view} session={session} on={on} known={known} figures={known.figures} shut={shut} />}
            </>}
    </div>
  );
}

/** What is known and how old it is; what a scan costs, and its two buttons. */
function Scan({ view, session, on, known, name, shut, busy }: {
  view: View; session: Session; on: SetName; known: Looked; name: string; shut: string | null; busy: boolean;
}): JSX.Element {
  const [share, setShare] = useState(SHARES[0]?.[0] as number);
  const { figures } = known;
  const held = ["paused", "pausing"].includes(session.state);
  const off = shut !== null || busy;
  const rate = view.data?.columns.rowOf("throughput") ?? -1;
  const per_s = rate < 0 ? NaN : (view.data?.columns.at("throughput", rate) ?? NaN);
  const cost = known.of !== null && per_s > 0 ? `, less than ${span(Math.max(0.1, known.of / per_s))} at the speed it trains` : "";
  const press = (background: boolean): void => {
    if (!off) command(session.session_id, "scan", background ? { on, background: true, share } : { on });
  };
  return (
    <>
      {figures === null ? (
        <p class="lead">
          Not scanned yet. A scan finds the loss of each of {known.of === null ? "its" : `${count(known.of)}`} samples once, in eval mode{cost}. The run
          stands meanwhile and is afterwards as it was.
        </p>
      ) : (
        <p class="lead" data-scanned={known.last_step ?? undefined}>
          {plural(figures.count, "sample")}, {when(known)}: mean loss {sig(figures.mean)}
          {figures.accuracy !== null && `, ${sig(100 * figures.accuracy)} % right`}
          {figures.not_finite > 0 && `, ${count(figures.not_finite)} without a finite loss`}. <Stale session={session} known={known} />
        </p>
      )}
      <div class="setup">
        <button type="button" class={`btn sm${figures === null ? " pri" : ""}`} aria-disabled={off ? "true" : undefined} onClick={() => press(false)}>
          {figures === null ? `Scan the ${name}` : "Scan again"}
        </button>
        <button type="button" class="btn sm" aria-disabled={off || held ? "true" : undefined} onClick={() => !held && press(true)}>
          Scan in the background
        </button>
        <label class="hint">
          share of the run's time{" "}
          <select class="inp" value={String(share)} disabled={off || held} onChange={(event) => setShare(Number(event.currentTarget.value))}>
            {SHARES.map(([value, label]) => <option key={label} value={String(value)}>{label}</option>)}
          </select>
        </label>
        {held && <span class="hint">it stands: nothing goes on in the background</span>}
      </div>
    </>
  );
}

function when({ first_step, last_step }: Looked): string {
  return first_step !== last_step
    ? `scanned from step ${count(first_step)} to ${count(last_step)}` : `scanned at step ${count(last_step)}`;
}

function Stale({ session, known }: { session: Session; known: Looked }): JSX.Element | null {
  const step = stepOf(session, store.toldOf(session));
  if (known.run_id !== null && known.run_id !== session.run_id) return <span class="stale-note">Of {known.run_id}; another run trains now.</span>;
  if (step === null || known.last_step === null || step === known.last_step) {
    return known.first_step === known.last_step ? null : <span class="stale-note">Of several states of the model.</span>;
  }
  const steps = step - known.last_step;
  return <span class="stale-note">{steps > 0 ? `That was ${plural(steps, "step")} ago` : "It was rolled back since"}; weights have moved since.</span>;
}

function Losses({ view, session, on, known, figures, shut }: {
  view: View; session: Session; on: SetName; known: Looked; figures: Figures; shut: string | null;
}): JSX.Element {
  const choice = choiceOf(session, on);
  const extent = extentOf(figures.histogram);
  const selection = selectionOf(choice);
  const signature = selection === null ? "" : JSON.stringify(selection);
  const found = countedOf(session, on);
  const current = found !== undefined && found.signature === signature ? found : undefined;
  useEffect(() => {
    if (selection === null || current !== undefined || shut !== null) return undefined;
    const timer = setTimeout(() => void countSelection(session, on, selection), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [session.session_id, on, signature, current === undefined, shut === null]);
  const n = current?.count ?? null;
  const guess = choice.kind === "range" && choice.range !== null ? about(figures.histogram, choice.range) : null;
  const part = n === null ? null : (100 * n) / figures.count;
  return (
    <>
      <div class="row-h">
        <h3>Samples by loss</h3>
      </div>
      {extent !== null && (
        <Histo
          figures={figures} extent={extent} range={choice.kind === "range" ? choice.range : null}
          move={(which, to) => {
            // Not the drawn range: keys and pointers are faster than the page draws.
            const now = choiceOf(session, on);
            if (now.kind !== "range" || now.range === null) return;
            const value = typeof to === "number" ? to : byKey(now.range[which], to, extent);
            if (value !== null) choose(session, on, { kind: "range", range: moved(now.range, which, value, extent) });
          }}
        />
      )}
      <div class="row-acts" role="group" aria-label="Chosen by">
        <div class="seg">
          {KINDS.map(([label, made]) => (
            <button
              type="button" key={label} aria-pressed={choice.kind === made(extent).kind}
              onClick={() => choice.kind !== made(extent).kind && choose(session, on, made(extent))}
            >
              {label}
            </button>
          ))}
        </div>
      </div>
      <div class="selbox" aria-live="off">
        <div class="grow">
          <b data-selected={n ?? undefined}>{heading(choice)}</b>
          {choice.kind === "kmeans" && <Clusters choice={choice} change={(next) => choose(session, on, next)} />}
          <p>
            {current?.refused != null ? <span class="bad">{current.refused}</span>
              : n !== null ? `${plural(n, "sample")}, ${sig(part)} % of the set`
                : guess !== null ? `≈ ${count(guess)} samples, being counted` : "being counted"}
          </p>
        </div>
        {on === "train" && (
          <button type="button" class="btn pri" aria-disabled={n === null || n === 0 ? "true" : undefined} onClick={() => fork(selection, n)}>
            <Icon name="fork" />
            {n === null ? "Fork on these…" : `Fork on ${n === 1 ? "this sample" : `these ${count(n)} samples`}…`}
          </button>
        )}
      </div>
      <div class="row-acts">
        {on === "train" && (
          <button
            type="button" class="btn sm" aria-disabled={n === null || n === 0 || n === figures.count ? "true" : undefined}
            onClick={() => n !== figures.count && fork(selection === null ? null : { kind: "complement", of: selection }, n === null ? null : figures.count - n)}
          >
            Leave these out…
          </button>
        )}
        {on === "train" && choice.kind === "range" && <Often session={session} range={choice.range} n={n} all={figures.count} shut={shut} />}
        <Export view={view} session={session} on={on} selection={selection} n={n} shut={shut} />
      </div>
      <WorstTable session={session} on={on} rows={current?.worst ?? null} n={n} most={figures.histogram.edges.at(-1) ?? 1} shut={shut} known={known} />
    </>
  );
}

/** Drawing hard samples more often keeps what the others teach. */
function Often({ session, range, n, all, shut }: { session: Session; range: Range | null; n: number | null; all: number; shut: string | null }): JSX.Element {
  const [problem, setProblem] = useState("");
  const part = session.status?.["data"] != null ? "it trains on chosen samples" : null;
  const off = shut !== null || part !== null || range === null || n === null || n === 0 || n === all;
  return (
    <>
      <button
        type="button" class="btn sm" aria-disabled={off ? "true" : undefined} title={part ?? undefined}
        onClick={() => {
          if (off || range === null || n === null) return;
          setProblem("");
          void weightsFor(session, range).then((weights) => {
            if (weights === null) setProblem("the losses could not be had");
            else page.ask({ kind: "fork", weights, selected: n });
          });
        }}
      >
        Draw these more often…
      </button>
      {problem !== "" && <span class="hint bad">{problem}</span>}
    </>
  );
}

const KINDS: readonly [string, (extent: Range | null) => Choice][] = [
  ["Range of losses", (extent) => ({ kind: "range", range: extent === null ? null : { from: (extent.from + extent.to) / 2, to: extent.to } })],
  ["Doubtful labels", () => ({ kind: "label_noise" })],
  ["Clusters", () => ({ kind: "kmeans", k: 4, cluster: 3 })],
];

function heading(choice: Choice): string {
  if (choice.kind === "range") return choice.range === null ? "No range" : `Loss ${sig(choice.range.from)} – ${sig(choice.range.to)}`;
  const words = selectionWords(selectionOf(choice) as Dict);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function fork(selection: Dict | null, n: number | null): void {
  if (selection !== null && n !== null && n > 0) page.ask({ kind: "fork", selection, selected: n });
}

function Clusters({ choice, change }: { choice: Choice & { kind: "kmeans" }; change: (next: Choice) => void }): JSX.Element {
  return (
    <p>
      <label>
        clusters{" "}
        <input
          class="inp num" type="number" min={2} max={50} value={choice.k}
          onChange={(event) => {
            const k = Math.min(50, Math.max(2, Math.round(Number(event.currentTarget.value)) || 2));
            change({ kind: "kmeans", k, cluster: Math.min(choice.cluster, k - 1) });
          }}
        />
      </label>{" "}
      <label>
        take{" "}
        <select class="inp" value={String(choice.cluster)} onChange={(event) => change({ ...choice, cluster: Number(event.currentTarget.value) })}>
          {Array.from({ length: choice.k }, (_, i) => (
            <option key={i} value={String(i)}>{i + 1}{i === 0 ? ", lowest loss" : i === choice.k - 1 ? ", highest loss" : ""}</option>
          ))}
        </select>
      </label>
    </p>
  );
}

function Histo({ figures, extent, range, move }: {
  figures: Figures; extent: Range; range: Range | null; move: (which: "from" | "to", to: number | string) => void;
}): JSX.Element {
  const area = useRef<HTMLDivElement>(null);
  const held = useRef<"from" | "to" | null>(null);
  const { edges, counts } = figures.histogram;
  const most = Math.max(1, ...counts);
  const width = extent.to - extent.from || 1;
  const place = (loss: number): number => (100 * (loss - extent.from)) / width;
  const at = (event: PointerEvent): number => {
    const box = (area.current as HTMLDivElement).getBoundingClientRect();
    return extent.from + ((event.clientX - box.left) / box.width) * width;
  };
  const drag = (event: PointerEvent): void => {
    if (held.current !== null) move(held.current, at(event));
  };
  const grab = (event: PointerEvent): void => {
    if (range === null || event.button !== 0) return;
    const loss = at(event);
    held.current = Math.abs(loss - range.from) <= Math.abs(loss - range.to) ? "from" : "to";
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
    drag(event);
  };
  return (
    <div class="histo">
      <div
        class="plot-area" ref={area} onPointerDown={grab} onPointerMove={drag}
        onPointerUp={() => (held.current = null)} onPointerCancel={() => (held.current = null)}
      >
        {ticksOf(most).map((n) => (
          <span key={n} aria-hidden="true">
            <i class="rule" style={{ bottom: `${(100 * heightOf(n, most)).toFixed(2)}%` }} />
            <span class="ty" style={{ bottom: `${(100 * heightOf(n, most)).toFixed(2)}%` }}>{n >= 1000 ? `${n / 1000}k` : n}</span>
          </span>
        ))}
        <svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label={`Histogram of ${plural(figures.count, "loss")}, counts on a logarithmic scale`}>
          {counts.map((n, i) => {
            const [low, high] = [edges[i] as number, edges[i + 1] as number];
            const tall = 100 * heightOf(n, most);
            const inside = range !== null && high > range.from && low <= range.to;
            return n === 0 ? null : (
              <rect key={i} class={inside ? "in" : undefined} x={place(low) + 0.15} width={Math.max(0.3, place(high) - place(low) - 0.3)} y={100 - tall} height={tall} />
            );
          })}
        </svg>
        {lossTicks(extent.from, extent.to).map((loss) => (
          <span class="tx" key={loss} aria-hidden="true" style={{ left: `${place(loss).toFixed(2)}%` }}>{String(loss)}</span>
        ))}
        {range !== null && (["from", "to"] as const).map((which) => (
          <span
            class="hh" key={which} tabIndex={0} role="slider" data-handle={which}
            aria-label={which === "from" ? "Lowest loss in the selection" : "Highest loss in the selection"}
            aria-valuemin={extent.from} aria-valuemax={extent.to} aria-valuenow={range[which]} aria-valuetext={`loss ${sig(range[which])}`}
            style={{ left: `${place(range[which]).toFixed(2)}%` }}
            onKeyDown={(event) => {
              if (byKey(range[which], event.key, extent) === null) return;
              event.preventDefault();
              move(which, event.key);
            }}
          />
        ))}
      </div>
    </div>
  );
}

const FORMATS = ["csv", "json", "parquet", "feather"] as const;

function Export({ view, session, on, selection, n, shut }: {
  view: View; session: Session; on: SetName; selection: Dict | null; n: number | null; shut: string | null;
}): JSX.Element {
  const [format, setFormat] = useState<string>("csv");
  const open = openOf(view, "export_subset");
  const last = lastOf(session, "export_subset", (one) => one.state === "applied");
  const data = last?.reply?.data;
  const off = shut !== null || open !== null || n === null || n === 0 || selection === null;
  return (
    <>
      <button
        type="button" class="btn sm" aria-disabled={off ? "true" : undefined}
        onClick={() => {
          if (!off) command(session.session_id, "export_subset", { on, selection, format });
        }}
      >
        <Icon name="download" /> Export these
      </button>
      <select class="inp" aria-label="Format of the file" value={format} onChange={(event) => setFormat(event.currentTarget.value)}>
        {FORMATS.map((one) => <option key={one} value={one}>{one}</option>)}
      </select>
      {open !== null && <Going view={view} open={open} what="Exporting:" unit="samples" />}
      {data != null && open === null && (
        <p class="written" role="status">{plural(Number(data["rows"]), "row")} written: <code>{String(data["out_path"])}</code></p>
      )}
    </>
  );
}

function WorstTable({ session, on, rows, n, most, shut, known }: {
  session: Session; on: SetName; rows: Worst[] | null; n: number | null; most: number; shut: string | null; known: Looked;
}): JSX.Element {
  const [shown, setShown] = useState(SHOWN);
  const list = (rows ?? []).slice(0, shown);
  const run = `${session.session_id} ${known.run_id ?? ""}`;
  const ids = list.map((one) => one.id).join();
  useEffect(() => {
    if (shut === null && list.length > 0) void fetchSamples(session.session_id, run, on, list.map((one) => one.id));
  }, [run, on, ids, shut === null]);
  const classes = list.some((one) => one.label !== null || one.prediction !== null);
  return (
    <section aria-label="Worst samples">
      <div class="row-h">
        <h3>Worst of these</h3>
        <span class="hint">{rows === null ? "" : `${count(list.length)} of ${count(n)}`}</span>
      </div>
      {list.length > 0 && (
        <table class="worst">
          <thead>
            <tr>
              <th><span class="sr">what it is</span></th><th>sample</th>
              {classes && <><th>label → predicted</th><th class="num">sure</th></>}
              <th class="num">loss</th>
            </tr>
          </thead>
          <tbody>
            {list.map((one) => (
              <tr key={one.id} data-sample={one.id}>
                <td><Thumb one={one} shown={shownSample(run, on, one.id)} /></td>
                <td><span class="mono">{one.id}</span><Words shown={shownSample(run, on, one.id)} /></td>
                {classes && (
                  <>
                    <td><b>{one.label ?? "–"}</b> → {one.prediction ?? "–"}</td>
                    <td class="num">{one.sure === null ? "–" : one.sure.toFixed(2)}</td>
                  </>
                )}
                <td class="num">
                  <b>{one.loss === null ? "not finite" : sig(one.loss)}</b>
                  {one.loss !== null && <div class="bar" aria-hidden="true"><i style={{ width: `${Math.min(100, (100 * one.loss) / (most || 1)).toFixed(1)}%` }} /></div>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {rows !== null && rows.length > shown && (
        <button type="button" class="btn sm" onClick={() => setShown(shown + 20)}>Show {count(Math.min(20, rows.length - shown))} more</button>
      )}
    </section>
  );
}

function Thumb({ one, shown }: { one: Worst; shown: Shown | undefined }): JSX.Element {
  if (shown?.url === undefined) return <span class="thumb" />;
  return <img class="thumb" src={shown.url} alt={`Sample ${one.id}${one.label === null ? "" : `, labelled ${one.label}`}`} />;
}

/** What is no picture, in a line; untrusted, so text. */
function Words({ shown }: { shown: Shown | undefined }): JSX.Element | null {
  if (shown === undefined || shown.url !== undefined) return null;
  const text = shown.reason ?? shown.text ?? (shown.values ?? []).slice(0, 8).map((value) => (typeof value === "number" ? sig(value) : String(value))).join(" ");
  return text === "" ? null : <span class="said-of clip" title={text}>{text}</span>;
}
