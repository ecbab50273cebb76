/** Sub-views of Lineage: several runs on the same samples, and what tests and validations have found. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ask, fetchSamples, shownSample } from "./asking";
import { isDict } from "./columns";
import type { SetName } from "./choosing";
import type { Member } from "./family";
import { clock, count, plural, sig } from "./format";
import { Tag } from "./icons";
import { command } from "./live";
import { lastOf, openOf } from "./pending";
import { Going } from "./going";
import { letterOfRun } from "./relatives";
import { stateOf, type View } from "./state";
import { isSettled, store } from "./store";
import type { Dict, Session } from "./types";
import { headline } from "./words";

const MOST = 16;
const SETS: readonly [SetName, string][] = [["train", "Training set"], ["val", "Validation"], ["test", "Test"]];

interface Row {
  name: string;
  run_id: string;
  checkpoint: string | null;
  step: number;
  mean: number | null;
  accuracy: number | null;
  quantiles: { share: number; loss: number }[];
}

interface Pair {
  one: string;
  other: string;
  better: number;
  worse: number;
  same: number;
  apart?: { id: number; one: number; other: number }[];
}

export function Compare({ view, session, members, first }: { view: View; session: Session; members: Member[]; first: Member }): JSX.Element {
  const able = members.filter((one) => one.run_id === session.run_id || one.run.checkpoints.length > 0);
  const [off, setOff] = useState<ReadonlySet<string>>(new Set(able.length > 6 ? able.filter((one) => one !== first && one.run_id !== session.run_id).map((one) => one.run_id) : []));
  const [on, setOn] = useState<SetName>("val");
  const [worst, setWorst] = useState(false);
  const open = openOf(view, "compare");
  const runs = [first, ...able.filter((one) => one !== first)].filter((one) => able.includes(one) && !off.has(one.run_id)).map((one) => one.run_id);
  const why = (view.link.state !== "up" ? "offline" : !session.connected ? "no trainer" : null) ?? (stateOf(view) === "stalled" ? "no step end" : null)
    ?? (session.capabilities.length > 0 && !session.capabilities.includes("compare") ? "not in this run" : null)
    ?? (runs.length < 2 ? "choose two runs" : runs.length > MOST ? `at most ${MOST} runs` : null);
  const shut = why !== null || open !== null;
  const last = lastOf(session, "compare", (one) => one.state === "applied");
  const payload: Dict = { runs, on, ...(worst ? { selection: { kind: "quantile", from: 0.9, to: 1 } } : {}) };
  return (
    <div class="lin-sub" data-sub="compare">
      <h3>Compare on the same samples</h3>
      <div class="checks" role="group" aria-label="Runs">
        {able.map((one) => (
          <label key={one.run_id}>
            <input
              type="checkbox" checked={!off.has(one.run_id)}
              onChange={(event) => {
                const next = new Set(off);
                if (event.currentTarget.checked) next.delete(one.run_id);
                else next.add(one.run_id);
                setOff(next);
              }}
            />
            <Tag letter={one.letter} /><span class="clip">{one.name}</span>
          </label>
        ))}
      </div>
      <div class="setup">
        <div class="seg" role="group" aria-label="On which samples">
          {SETS.map(([key, label]) => <button type="button" key={key} aria-pressed={on === key} onClick={() => setOn(key)}>{label}</button>)}
        </div>
        <label class="hint"><input type="checkbox" checked={worst} onChange={(event) => setWorst(event.currentTarget.checked)} /> only the worst tenth of {first.name}</label>
        <button type="button" class="btn sm pri" aria-disabled={shut ? "true" : undefined} onClick={() => !shut && command(session.session_id, "compare", payload)}>
          Compare {plural(runs.length, "run")}
        </button>
        {why !== null && <span class="hint">{why}</span>}
      </div>
      {open !== null && <Going view={view} open={open} what="Comparing:" unit="losses" />}
      {last?.reply?.data != null && <Compared session={session} data={last.reply.data} worst={isDict(last.payload?.["selection"])} shut={view.link.state !== "up" || !session.connected} />}
    </div>
  );
}

function Compared({ session, data, worst, shut }: { session: Session; data: Dict; worst: boolean; shut: boolean }): JSX.Element {
  const rows = (Array.isArray(data["runs"]) ? data["runs"] : []) as unknown as Row[];
  const pairs = (Array.isArray(data["pairs"]) ? data["pairs"] : []) as unknown as Pair[];
  const on = String(data["on"]) as SetName;
  const best = Math.min(...rows.map((row) => row.mean ?? Infinity));
  const at = (row: Row, share: number): string => sig(row.quantiles.find((one) => one.share === share)?.loss ?? null);
  return (
    <>
      <p class="hint" data-compared={String(data["count"])}>
        {plural(Number(data["count"]), "sample")} of the {SETS.find(([key]) => key === on)?.[1].toLowerCase() ?? on}
        {worst && `, the worst of ${rows[0]?.name ?? "the first"}`}, when {session.run_id} stood at step {count(Number(data["step"]))}
      </p>
      <div class="scroll-x">
        <table>
          <thead><tr><th>run</th><th class="num">step</th><th class="num">mean loss</th><th class="num">right</th><th class="num">median</th><th class="num">95 %</th></tr></thead>
          <tbody>
            {rows.map((row) => (
              <tr key={row.name}>
                <td class="clip"><Tag letter={letterOfRun({ project: session.project, run_id: row.run_id })} />{row.name}</td>
                <td class="num">{count(row.step)}</td>
                <td class={`num${row.mean === best ? " ok" : ""}`}><b>{sig(row.mean)}</b></td>
                <td class="num">{row.accuracy === null ? "–" : `${sig(100 * row.accuracy)} %`}</td>
                <td class="num">{at(row, 0.5)}</td>
                <td class="num">{at(row, 0.95)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {pairs.map((pair) => <PairView key={`${pair.one}\n${pair.other}`} session={session} pair={pair} on={on} shut={shut} open={pairs.length === 1} />)}
    </>
  );
}

function PairView({ session, pair, on, shut, open }: { session: Session; pair: Pair; on: SetName; shut: boolean; open: boolean }): JSX.Element {
  const [seen, setSeen] = useState(open);
  const apart = pair.apart ?? [];
  const key = `${session.session_id} ${session.run_id ?? ""}`;
  useEffect(() => {
    if (seen && !shut && apart.length > 0) void fetchSamples(session.session_id, key, on, apart.map((one) => one.id));
  }, [seen, shut, key, on, apart.map((one) => one.id).join()]);
  return (
    <details class="pair" open={seen} onToggle={(event) => setSeen(event.currentTarget.open)}>
      <summary><b>{pair.other}</b> does better than <b>{pair.one}</b> on {count(pair.better)}, worse on {count(pair.worse)}{pair.same > 0 && `, the same on ${count(pair.same)}`}</summary>
      {apart.length > 0 && (
        <table class="worst">
          <thead><tr><th><span class="sr">what it is</span></th><th>differ most on</th><th class="num clip">{pair.one}</th><th class="num clip">{pair.other}</th></tr></thead>
          <tbody>
            {apart.map((one) => {
              const shown = shownSample(key, on, one.id);
              return (
                <tr key={one.id}>
                  <td>{shown?.url === undefined ? <span class="thumb" /> : <img class="thumb" src={shown.url} alt={`Sample ${one.id}`} />}</td>
                  <td class="mono">{one.id}</td>
                  <td class={`num${one.one < one.other ? " ok" : ""}`}>{sig(one.one)}</td>
                  <td class={`num${one.other < one.one ? " ok" : ""}`}>{sig(one.other)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      )}
    </details>
  );
}

interface Result {
  kind: string;
  label: string | null;
  step: number;
  run_id: string;
  metrics: Record<string, unknown>;
  avg_loss: number | null;
  limit_batches: number | null;
  ts: number | null;
}

export function Results({ view, session, members }: { view: View; session: Session; members: Member[] }): JSX.Element {
  const [rows, setRows] = useState<Result[] | null>(null);
  const [refused, setRefused] = useState<string | null>(null);
  const shut = view.link.state !== "up" ? "offline" : !session.connected ? "no trainer" : null;
  const done = [...(store.receipts.get(session.session_id)?.values() ?? [])].filter((one) => /^(test|validate)/.test(one.cmd) && isSettled(one.state)).length;
  useEffect(() => {
    if (shut !== null) return undefined;
    let gone = false;
    void ask(session.session_id, "results", {}).then((reply) => {
      if (gone || reply === null) return;
      setRefused(reply.ok ? null : (reply.detail ?? "not possible"));
      setRows(Array.isArray(reply.data?.["results"]) ? (reply.data["results"] as unknown as Result[]) : null);
    });
    return () => {
      gone = true;
    };
  }, [session.session_id, session.run_id, done, shut === null]);
  const letters = new Map(members.map((one) => [one.run_id, one.letter]));
  return (
    <div class="lin-sub" data-sub="results">
      <h3>Tests and validations of this run and its relatives</h3>
      {shut !== null && rows === null && <p class="hint">Nothing can be asked now: {shut}.</p>}
      {refused !== null && <p class="hint">{refused}</p>}
      {rows !== null && rows.length === 0 && <p class="hint">None yet. Test and Validate, in the band above, find one.</p>}
      {rows !== null && rows.length > 0 && (
        <div class="scroll-x">
          <table>
            <thead><tr><th>run</th><th>what</th><th>label</th><th class="num">step</th><th class="num">found</th><th class="num">at</th></tr></thead>
            <tbody>
              {[...rows].reverse().map((row, i) => (
                <tr key={i}>
                  <td class="clip"><Tag letter={letters.get(row.run_id) ?? "?"} />{row.run_id}</td>
                  <td>{row.kind}{row.limit_batches === null ? "" : `, ${plural(row.limit_batches, "batch")} at most`}</td>
                  <td class="clip">{row.label ?? "–"}</td>
                  <td class="num">{count(row.step)}</td>
                  <td class="num" title={Object.entries(row.metrics).map(([name, value]) => `${name} ${typeof value === "number" ? sig(value) : String(value)}`).join(", ")}>
                    {headline(row.metrics) ?? (row.avg_loss === null ? "–" : `loss ${sig(row.avg_loss)}`)}
                  </td>
                  <td class="num">{row.ts === null ? "–" : clock(row.ts)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}
