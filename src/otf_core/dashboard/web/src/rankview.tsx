/** In the drawer Health: how the ranks of a run fare, and where they hang. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { bytes, count, plural, sig, span } from "./format";
import { page } from "./page";
import { costOf, goneOf, heat, placesMeaning, rankNames, silentText, whyText, worstFirst, type Gone, type Rank, type Ranks } from "./ranks";
import "./ranks.css";
import { failedOf, ranksOf, silentOf, type View } from "./state";
import type { Stall } from "./told";
import type { Session } from "./types";

/** So many have a row each; of more there is a field of cells, and the rows of the worst. */
const FEW = 16;
const WORST = 8;

const upper = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

/** The stacks of a stalled run of several ranks, those that are the same once. */
export function Hang({ stall }: { stall: Stall }): JSX.Element {
  const { places, unheard, flight } = stall;
  const meaning = placesMeaning(places);
  return (
    <>
      {meaning !== null && <p>{meaning}</p>}
      {unheard.length > 0 && <p>{upper(rankNames(unheard))} did not answer: where {unheard.length === 1 ? "it is" : "they are"} is not known.</p>}
      <h4>Where the training threads are, innermost call last</h4>
      {places.map(({ ranks, where, call, stack }, i) => (
        <details key={ranks[0]} open={i === 0} class="place">
          <summary><b>{rankNames(ranks)}</b> <span class={i === 0 ? "bad" : undefined}>{call ?? where ?? "unknown"}</span></summary>
          <pre class="stack">{(stack.length > 0 ? stack : [where ?? "no stack"]).map((line, at) => <span class="ln" key={at}>{line}</span>)}</pre>
        </details>
      ))}
      {flight.length > 0 && <p class="hint">torch's flight recorder, for torchfrtrace: <code>{flight.join(" ")}</code></p>}
    </>
  );
}

export function RankTable({ view, session }: { view: View; session: Session }): JSX.Element {
  const ranks = view.data?.ranks ?? null;
  const size = ranksOf(session, view.data);
  const [looked, look] = useState<number | null>(null);
  const silent = silentOf(view);
  const hosts = new Set(ranks?.rows.map((row) => row.host).filter(Boolean)).size;
  const many = (ranks?.rows.length ?? 0) > FEW;
  const rows = ranks === null ? [] : worstFirst(ranks, many ? WORST : FEW);
  const own = looked === null || rows.some((row) => row.rank === looked) ? undefined : ranks?.rows.find((row) => row.rank === looked);
  return (
    <section class="blk ranks" data-size={size}>
      <h3>Ranks</h3>
      {silent.map((one) => (
        <p class="warn" key={one.rank}>{upper(silentText([one], view.now_s))}: it says nothing, and may be stopped or busy; the others wait where they need it.</p>
      )).slice(0, 3)}
      {ranks === null ? (
        <p class="hint">{count(size)} ranks. Rank 0 alone has told this page of anything so far.</p>
      ) : (
        <>
          <p>{summary(ranks, size, hosts)}</p>
          {many && <Field ranks={ranks} looked={looked} look={look} />}
          <div class="scroll" tabIndex={0} role="group" aria-label="Rows of ranks">
            <Rows rows={own === undefined ? rows : [own, ...rows]} ranks={ranks} gone={view.data?.gone ?? new Map()} now_s={view.now_s} />
          </div>
          {many && (
            <label class="look">
              Rank
              <input
                type="number" min="0" max={size - 1} value={looked ?? ""} placeholder="any"
                onInput={({ currentTarget: { value } }) => look(value === "" ? null : Number(value))}
              />
              <span class="hint">the {WORST} worst of {count(size)} are listed: failed and silent, then the slowest</span>
            </label>
          )}
        </>
      )}
    </section>
  );
}

const ms = (value: number | null): string => (value === null ? "–" : value.toFixed(value < 100 ? 1 : 0));

/** "4 ranks on 2 hosts at step 400. Slowest: rank 2, 65 ms of its own in a step of 71 ms." */
function summary({ rows, slowest, step }: Ranks, size: number, hosts: number): string {
  const row = rows.find((one) => one.rank === slowest);
  const on = hosts === 0 ? "" : ` on ${plural(hosts, "host")}`;
  const { what, of } = costOf(rows);
  const slow = row === undefined ? "" : ` Slowest: rank ${count(row.rank)}, ${what === "" ? "" : `${ms(of(row))} ms ${what} in `}a step of ${ms(row.step_ms)} ms.`;
  return `${count(size)} ranks${on}${step === null ? "" : ` at step ${count(step)}`}.${slow}`;
}

/** One cell a rank, the darker the slower; failed ones are crossed, silent ones hollow. */
function Field({ ranks, looked, look }: { ranks: Ranks; looked: number | null; look: (rank: number) => void }): JSX.Element {
  const ref = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  const { rows } = ranks;
  const wide = Math.max(width, 100);
  const cell = Math.max(3, Math.min(18, Math.floor(Math.sqrt((wide * 200) / rows.length))));
  const across = Math.floor(wide / cell);
  const high = Math.ceil(rows.length / across) * cell;
  useEffect(() => {
    const canvas = ref.current as HTMLCanvasElement;
    const seen = new ResizeObserver(() => setWidth(canvas.clientWidth));
    seen.observe(canvas);
    return () => seen.disconnect();
  }, []);
  useEffect(() => draw(ref.current as HTMLCanvasElement, rows, looked, { wide, high, cell, across }), [ranks, looked, wide, page.theme]);
  const bad = rows.filter((row) => row.state !== "ok");
  return (
    <>
      <canvas
        ref={ref} role="img" style={{ height: `${high}px` }}
        aria-label={`${count(rows.length)} ranks, a cell each: ${bad.length === 0 ? "all are heard" : rankNames(bad.map((row) => row.rank)) + " not"}`}
        onClick={({ offsetX, offsetY }) => {
          const row = rows[Math.floor(offsetY / cell) * across + Math.floor(offsetX / cell)];
          if (row !== undefined) look(row.rank);
        }}
      />
      <p class="hint">By rank, left to right. The stronger the colour, the more it holds the others up; hollow is silent, × failed.</p>
    </>
  );
}

function draw(
  canvas: HTMLCanvasElement, rows: readonly Rank[], looked: number | null,
  { wide, high, cell, across }: { wide: number; high: number; cell: number; across: number },
): void {
  const context = canvas.getContext("2d");
  if (context === null) return;
  const scale = devicePixelRatio || 1;
  canvas.width = wide * scale;
  canvas.height = high * scale;
  context.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const [accent, warn, bad, text] = ["--accent", "--warn", "--bad", "--text"].map((name) => style.getPropertyValue(name));
  const side = cell - (cell > 5 ? 2 : 1);
  const heats = heat(rows);
  rows.forEach((row, i) => {
    const [x, y] = [(i % across) * cell, Math.floor(i / across) * cell];
    const warmth = heats[i];
    context.globalAlpha = row.state === "ok" ? (warmth == null ? 0.1 : 0.18 + 0.82 * warmth) : 1;
    if (row.state === "ok") {
      context.fillStyle = accent as string;
      context.fillRect(x, y, side, side);
    } else {
      context.strokeStyle = (row.state === "failed" ? bad : warn) as string;
      context.lineWidth = Math.min(2, side / 3);
      context.strokeRect(x + 1, y + 1, side - 2, side - 2);
      if (row.state === "failed") {
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(x + side, y + side);
        context.moveTo(x + side, y);
        context.lineTo(x, y + side);
        context.stroke();
      }
    }
    if (row.rank !== looked) return;
    context.globalAlpha = 1;
    context.strokeStyle = text as string;
    context.lineWidth = 2;
    context.strokeRect(x, y, side, side);
  });
}

function Rows({ rows, ranks, gone, now_s }: { rows: readonly Rank[]; ranks: Ranks; gone: ReadonlyMap<number, Gone>; now_s: number }): JSX.Element {
  const device = ranks.rows.some((row) => row.device_mem_mb !== null);
  const waits = ranks.rows.some((row) => row.wait_ms !== null);
  const apart = ranks.rows.some((row) => row.step !== ranks.rows[0]?.step);
  const memory = (row: Rank): string => {
    const mb = device ? row.device_mem_mb : row.rss_mb;
    return mb === null ? "–" : bytes(mb * 1048576);
  };
  return (
    <table>
      <thead>
        <tr>
          <th>rank</th><th>state</th>{apart && <th class="num">step</th>}<th class="num">ms a step</th><th class="num">data</th>
          {waits && <th class="num">waits</th>}
          <th class="num">{device ? "GPU" : "memory"}</th><th class="num">loss</th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => {
          const slow = row.state === "ok" && row.rank === ranks.slowest;
          const since = gone.get(row.rank)?.since_ts ?? ranks.ts - (row.seen_s ?? 0);
          return (
            <tr key={row.rank} data-rank={row.rank} data-state={row.state} class={slow ? "slow" : undefined} title={row.host ?? undefined}>
              <td><b>{count(row.rank)}</b></td>
              <td>{row.state === "silent" ? `silent ${span(now_s - since)}` : row.state !== "ok" ? row.state : slow ? "slowest" : row.standing ? "stands" : "trains"}</td>
              {apart && <td class="num">{count(row.step)}</td>}
              <td class="num" title={row.step_ms_p95 === null ? undefined : `p95 ${ms(row.step_ms_p95)} ms`}>{ms(row.step_ms)}</td>
              <td class="num">{ms(row.data_wait_ms)}</td>
              {waits && <td class="num">{ms(row.wait_ms)}</td>}
              <td class="num">{memory(row)}</td>
              <td class="num">{sig(row.loss)}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

/** What has become of the ranks that failed, a line each. */
export function Fallen({ view }: { view: View }): JSX.Element | null {
  const failed = failedOf(view.data);
  const silent = goneOf(view.data?.gone ?? new Map(), "silent");
  if (failed.length === 0 || failed.length + silent.length < 2) return null; // one is in the heading
  return (
    <ul class="reasons">
      {[...failed, ...silent].slice(0, WORST).map((one) => (
        <li key={one.rank}>{whyText(one)}{one.step !== null && `, at step ${count(one.step)}`}</li>
      ))}
    </ul>
  );
}
