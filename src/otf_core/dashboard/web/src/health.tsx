/** The drawer Health: where a stalled run stands, what a resume brings back, and the five checks. */

import type { JSX } from "preact";
import { resumeLine } from "./checkpoints";
import { isDict } from "./columns";
import { Copy, Line } from "./copy";
import { age, count, plural, setting, sig, span } from "./format";
import { Guards } from "./guards";
import "./health.css";
import { Icon } from "./icons";
import { give } from "./page";
import { progressOf, remaining, share } from "./progress";
import { failedText, placesText, rankNames } from "./ranks";
import { Fallen, Hang, RankTable } from "./rankview";
import { closed, failedOf, nameOf, ranksOf, stateOf, stepOf, type View } from "./state";
import { isSettled, store, type Held } from "./store";
import type { Session } from "./types";
import { cli, why } from "./words";

const CHECKS: readonly { cmd: string; name: string; asks: string }[] = [
  { cmd: "dist_health", name: "Ranks", asks: "whether all ranks have the same parameters" },
  { cmd: "throughput_health", name: "Throughput", asks: "whether a step waits for its data or its computation" },
  { cmd: "activations_health", name: "Activations", asks: "dead units, zeros and saturated values, by layer" },
  { cmd: "numerics_health", name: "Numerics", asks: "where a NaN comes from, how large gradients and steps are" },
  { cmd: "determinism_health", name: "Determinism", asks: "whether a batch gives the same numbers twice" },
];

export function Health({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const state = stateOf(view);
  return (
    <div class="dr-b health">
      {state === "stalled" && <Stalled view={view} session={session} />}
      {state === "failed" && <Failed view={view} session={session} />}
      <Resumes view={view} session={session} />
      {ranksOf(session, view.data) > 1 && <RankTable view={view} session={session} />}
      <section class="blk">
        <h3>Checks</h3>
        <p class="lead">Each lets the run stand for some seconds and leaves it as it was: no optimizer steps.</p>
        {CHECKS.map((check) => <Check key={check.cmd} {...check} view={view} session={session} />)}
      </section>
      <Guards view={view} session={session} shut={closed(view) ?? (state === "stalled" ? "no step end" : null)} />
      <Gradients view={view} session={session} />
    </div>
  );
}

function Stalled({ view, session }: { view: View; session: Session }): JSX.Element {
  const stall = view.data?.stall ?? null;
  const long = span(view.now_s - (stall?.since_ts ?? view.now_s));
  const step = stepOf(session, view.data);
  const kept = view.checkpoints[0];
  const lines = stall?.stack.length ? stall.stack : (stall?.where?.split("\n") ?? []);
  const where = lines.length > 0 ? lines.join("\n") : null;
  const places = stall?.places ?? [];
  const report = [
    `Stalled ${long}: ${nameOf(session)} at step ${count(step)}`,
    ...(places.length === 0 ? [`where: ${where ?? "the trainer does not know"}`]
      : [placesText(places, stall?.unheard ?? [], Infinity), ...places.map((one) => `${rankNames(one.ranks)}:\n  ${(one.stack.length > 0 ? one.stack : [one.where ?? "unknown"]).join("\n  ")}`), ...(stall?.flight ?? [])]),
    `host: ${session.host ?? "unknown"}, pid ${session.pid ?? "unknown"}`,
    `last checkpoint: ${kept === undefined ? "none" : `${kept.id} ${kept.path ?? ""}`}`, `exactness: ${session.exactness ?? "unknown"}`,
  ].join("\n");
  return (
    <div class="hang">
      <h3>Stalled {long}{places[0] === undefined ? ` at step ${count(step)}` : `: ${placesText(places.slice(0, 1), [])}`}</h3>
      <p>No batch has ended since. What needs the end of a step waits for it: nothing is lost, and nothing is done twice.</p>
      {stall !== null && places.length > 0 ? <Hang stall={stall} /> : (
        <>
          <h4>Where the training thread is</h4>
          {where === null
            ? <p class="hint">The trainer does not know.</p>
            : <pre class="stack">{lines.map((line, i) => <span class="ln" key={i}>{line}</span>)}</pre>}
        </>
      )}
      <p class="hint">
        {kept === undefined ? "No checkpoint is kept." : `Newest checkpoint: step ${count(kept.step)}, ${kept.exact === true ? "exact" : "approximate"}${step !== null && kept.step !== null ? `, ${plural(Math.max(0, step - kept.step), "step")} ago` : ""}.`}
      </p>
      <div class="acts"><Copy text={report} label="Copy report" /></div>
      {kept?.path != null && <Line text={resumeLine(kept.path)} hint="before the command that started the run, once this process is ended" />}
    </div>
  );
}

function Failed({ view, session }: { view: View; session: Session }): JSX.Element {
  const kept = view.checkpoints[0];
  const step = stepOf(session, view.data);
  const failed = failedOf(view.data);
  const resume = failed.find((one) => one.resume !== null)?.resume ?? undefined;
  const redo = kept?.step != null && step !== null ? step - kept.step : null;
  return (
    <div class="hang">
      <h3>{failed.length === 0 ? `Failed at step ${count(step)}` : `Failed: ${failedText(failed)}`}</h3>
      <Fallen view={view} />
      {(failed.length === 0 || session.finished?.error) && (
        <pre class="stack">{session.finished?.error ?? session.reason ?? "The trainer gave no reason."}</pre>
      )}
      {resume === undefined && kept?.path != null && (
        <>
          <p class="hint">
            The checkpoint of step {count(kept.step)} is {kept.exact === true ? "exact" : "approximate"}{redo !== null && redo > 0 && `; ${plural(redo, "step")} to do again`}.
          </p>
          <Line text={resumeLine(kept.path)} hint="before the command that started the run" />
        </>
      )}
      {resume !== undefined && <Line text={resume} hint="lets the run go on" />}
    </div>
  );
}

function Resumes({ view, session }: { view: View; session: Session }): JSX.Element | null {
  const told = view.data?.events.findLast((event) => event.type === "exactness");
  const reasons = Array.isArray(told?.["reasons"]) ? told["reasons"].map(String) : [];
  if (session.exactness === null) return null;
  const exact = told === undefined ? /^exact/i.test(session.exactness) : told["exact"] === true;
  return (
    <section class="blk">
      <h3><Icon name={exact ? "exact" : "inexact"} />Exactness</h3>
      <p>
        A resume, a rollback or a fork {exact ? <>goes on <b>bit for bit</b></> : <>goes on <b>approximately</b></>}
        {reasons.length === 0 ? "." : exact ? `, but for ${plural(reasons.length, "thing")}:` : `, for ${plural(reasons.length, "reason")}:`}
      </p>
      {reasons.length > 0 && <ul class="reasons">{reasons.map((reason) => <li key={reason}>{reason}</li>)}</ul>}
      {!exact && reasons.length === 0 && <p class="hint">{session.exactness}</p>}
    </section>
  );
}

/** Why a check cannot be begun now. */
function barred(view: View, session: Session, cmd: string): string | null {
  const shut = closed(view);
  if (shut !== null) return shut;
  if (session.capabilities.length > 0 && !session.capabilities.includes(cmd)) return "not in this run";
  switch (stateOf(view)) {
    case "stalled":
      return "no step end";
    case "starting":
      return "not begun";
    case "validating":
    case "testing":
      return "after this";
    default:
      return null;
  }
}

function Check({ cmd, name, asks, view, session }: { cmd: string; name: string; asks: string; view: View; session: Session }): JSX.Element {
  const receipt = store.receiptsOf(session.session_id).find((one) => one.cmd === cmd);
  const asked = session.pending.find((one) => one.cmd === cmd);
  const open = (receipt !== undefined && !isSettled(receipt.state)) || asked !== undefined;
  const id = receipt !== undefined && !isSettled(receipt.state) ? receipt.id : asked?.request_id;
  const off = barred(view, session, cmd);
  const progress = open ? progressOf(view.data) : null;
  const left = progress === null ? null : remaining(progress, view.now_s);
  const stops = closed(view) === null && id !== undefined;
  return (
    <div class="check" data-check={cmd} data-s={open ? "pending" : (receipt?.state ?? "idle")}>
      <div class="ck-1">
        <b>{name}</b>
        <span class="hint grow">{asks}</span>
        {open ? (
          <button
            type="button" class="btn sm" aria-label={`Cancel ${name}`} aria-disabled={stops ? undefined : "true"}
            onClick={() => {
              if (stops) give("cancel", { request_id: id });
            }}
          >
            Cancel
          </button>
        ) : (
          <button
            type="button" class="btn sm" aria-label={`Run ${name}`} aria-disabled={off === null ? undefined : "true"} aria-describedby={`ck-${cmd}`}
            title={cli(cmd, {}, nameOf(session))}
            onClick={() => {
              if (off === null) give(cmd, {});
            }}
          >
            Run
          </button>
        )}
      </div>
      <p class="ck-2" id={`ck-${cmd}`} role="status">
        {open ? (
          <>
            <span class="spin" aria-hidden="true" /> {closed(view) === "offline" ? "sent, no answer — unknown until reconnected"
              : progress !== null && progress.cmd === cmd ? `${share(progress)}${left === null ? "" : `, ${left} left`}`
                : stateOf(view) === "validating" ? "the run stands and is looked at" : "waits for step end"}
          </>
        ) : off !== null ? `not possible: ${off}` : receipt === undefined ? "not run yet" : null}
      </p>
      {receipt !== undefined && !open && <Result receipt={receipt} now_s={view.now_s} />}
    </div>
  );
}

function Result({ receipt, now_s }: { receipt: Held; now_s: number }): JSX.Element {
  if (receipt.state === "refused") return <p class="ck-r bad">refused: {why(receipt)} Nothing changed.</p>;
  const data = receipt.reply?.data;
  if (!isDict(data)) return <p class="ck-r hint">no answer, and the dashboard has no record of it</p>;
  const ok = data["ok"] === true;
  const ago = receipt.settled_ms === null ? "" : `, ${age(now_s - receipt.settled_ms / 1000 - store.skew_s)} ago`;
  const lines = String(data["text"] ?? "").split("\n");
  return (
    <div class="ck-r">
      <p class={ok ? "ok" : "warn"}><Icon name={ok ? "ok" : "warn"} /> {ok ? "nothing found" : "something found"} at step {count(Number(data["step"]))}{ago}</p>
      <pre class="stack">{lines.join("\n")}</pre>
      <Figures data={data} />
    </div>
  );
}

const SAID = new Set(["ok", "text", "step", "applied_step"]);

/** All that the check has found, as it was answered. */
function Figures({ data }: { data: Record<string, unknown> }): JSX.Element | null {
  const plain = Object.entries(data).filter(([key, value]) => !SAID.has(key) && value !== null);
  if (plain.length === 0) return null;
  return (
    <details>
      <summary>Figures</summary>
      <dl class="figures">
        {plain.map(([key, value]) => {
          const rows = Array.isArray(value) ? value.filter(isDict) : [];
          return [
            <dt key={key}>{key.replaceAll("_", " ")}</dt>,
            <dd key={`${key} =`}>{rows.length > 0 ? <Rows rows={rows} /> : typeof value === "number" ? sig(value) : setting(value)}</dd>,
          ];
        })}
      </dl>
    </details>
  );
}

function Rows({ rows }: { rows: Record<string, unknown>[] }): JSX.Element {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].slice(0, 6);
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label="Rows">
      <table>
        <thead><tr>{names.map((name) => <th key={name}>{name.replaceAll("_", " ")}</th>)}</tr></thead>
        <tbody>
          {rows.slice(0, 20).map((row, i) => (
            <tr key={i}>{names.map((name) => <td key={name}>{typeof row[name] === "number" ? sig(row[name]) : setting(row[name])}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const SEEN: readonly [key: string, name: string][] = [
  ["grad_norm", "Gradient norm"], ["weight_norm", "Weight norm"], ["activation_zero_frac", "Activations at zero"],
];

function Gradients({ view, session }: { view: View; session: Session }): JSX.Element | null {
  const columns = view.data?.columns;
  const rows = SEEN.filter(([key]) => columns?.has(key));
  if (columns === undefined || rows.length === 0) return null;
  return (
    <section class="blk">
      <h3>Gradients and activations</h3>
      <table>
        <thead><tr><th>what</th><th class="num">latest</th><th class="num">median of the last 500</th><th class="num">at step</th></tr></thead>
        <tbody>
          {rows.map(([key, name]) => {
            const row = columns.rowOf(key);
            const values = [...(columns.values(key)?.subarray(Math.max(0, columns.length - 500), columns.length) ?? [])]
              .filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
            return (
              <tr key={key} data-figure={key}>
                <td>{name}</td><td class="num"><b>{sig(columns.at(key, row))}</b></td>
                <td class="num">{sig(values[values.length >> 1])}</td><td class="num">{count(columns.step.values[row])}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {session.status?.["telemetry"] === "basic" && <p class="hint">telemetry="basic": norms are not computed.</p>}
    </section>
  );
}
