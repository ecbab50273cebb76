/** The dialog Merge: parents first, then what each way to merge them is worth, as the trainer has found it. */

import "./merges.css";
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Box, Cli } from "./box";
import { checkpointsOf } from "./checkpoints";
import { strategyName, strategyWords, type Member } from "./family";
import { count, sig, span } from "./format";
import { colourOf, Icon, Tag } from "./icons";
import { command } from "./live";
import {
  asked, axisOf, bestCandidate, bestParent, notMergeable, partedAt, placeOn, previewOf, rowsOf,
  type Candidate, type Options, type Preview, type Source,
} from "./merging";
import { page } from "./page";
import { lastOf, openOf } from "./pending";
import { Going } from "./going";
import { barred, letterOfRun, membersOf } from "./relatives";
import { nameOf, type View } from "./state";
import { store } from "./store";
import type { Checkpoint, Dict, Session } from "./types";
import { cli, why as whyRefused } from "./words";

export function Merge({ view, session, parents }: { view: View; session: Session; parents: string[] }): JSX.Element {
  const members = membersOf(session).filter((one) => one.run_id === session.run_id || one.run.checkpoints.length > 0);
  const [sources, setSources] = useState<Source[]>(() => firstSources(members, session, parents));
  const [options, setOptions] = useState<Options>({ recalibrate: false, limit_batches: null });
  const [limit, setLimit] = useState("");
  const [fresh, setFresh] = useState(false);
  const [picked, setPicked] = useState<string | null>(null);
  const [name, setName] = useState("");
  const closedWhy = barred(view, "merge");
  const badLimit = limit.trim() !== "" && options.limit_batches === null;
  const cannot = closedWhy ?? notMergeable(sources) ?? (badLimit ? "a whole number of batches is needed" : null);
  const request = asked(sources, options);
  const key = JSON.stringify(request);
  const open = openOf(view, "merge_preview");
  const mine = open !== null && (open.payload === null || JSON.stringify(open.payload) === key);
  const last = lastOf(session, "merge_preview", (one) => JSON.stringify(one.payload) === key);
  const done = open === null && last?.state === "applied" && last.reply?.data != null ? last.reply.data : null;
  const preview = done !== null ? previewOf(rowsOf(done)) : mine && open !== null ? previewOf(open.found) : null;
  const best = preview === null || done === null ? null : bestCandidate(preview);
  const choice = done === null ? null : preview?.candidates.find((one) => one.strategy === picked && one.refused === null) ?? best;
  const payload: Dict | null = choice == null ? null : {
    ...request, strategy: choice.strategy,
    ...(fresh ? { optimizer: "fresh" } : {}),
    ...(name.trim() === "" ? {} : { new_name: name.trim() }),
  };
  const nameFor = (run_id: string): string => members.find((one) => one.run_id === run_id)?.name ?? run_id;
  const title = `Merge ${sources.map((one) => `${letterOfRun({ project: session.project, run_id: one.run_id })} ${nameFor(one.run_id)}`).join(" and ")}`;
  const moved = done !== null && typeof done["step"] === "number" && session.step !== null && done["step"] !== session.step
    && sources.some((one) => one.run_id === session.run_id && one.checkpoint === null);
  const shut = payload === null || cannot !== null;
  const busy = open !== null;
  return (
    <Box
      wide title={title}
      foot={
        <>
          <label class="mg-name">
            New run <input class="inp" type="text" autocomplete="off" spellcheck={false} placeholder="merge1, merge2 …" value={name} onInput={(event) => setName(event.currentTarget.value)} />
          </label>
          <Cli line={payload === null ? cli("merge_preview", request, nameOf(session)) : cli("merge", payload, nameOf(session))} />
          <button type="button" class="btn" onClick={() => page.ask(null)}>Cancel</button>
          {done === null ? (
            <button
              type="button" class="btn pri" data-first aria-disabled={cannot !== null || busy ? "true" : undefined}
              onClick={() => cannot === null && !busy && command(session.session_id, "merge_preview", request)}
            >
              {busy ? "Evaluating" : "Evaluate candidates"}
            </button>
          ) : (
            <button
              type="button" class="btn pri" data-first aria-disabled={shut ? "true" : undefined}
              onClick={() => {
                if (shut || payload === null) return;
                page.ask(null);
                command(session.session_id, "merge", payload);
              }}
            >
              {choice == null ? "No candidate can be had" : `Merge with ${strategyName(choice.strategy)}`}
            </button>
          )}
        </>
      }
    >
      <p class="lead">
        Each candidate is built in memory and validated in the live model, whose own weights come back; the run stands
        meanwhile. Nothing is written until you press Merge. The merge trains on in place of {nameOf(session)}; all parents keep their state.
        {cannot !== null && <b> Not possible now: {cannot}.</b>}
      </p>
      <Parents session={session} members={members} sources={sources} change={setSources} off={busy} />
      <div class="mg-opts">
        <label><input type="checkbox" checked={options.recalibrate} disabled={busy} onChange={(event) => setOptions({ ...options, recalibrate: event.currentTarget.checked })} /> gather BatchNorm's statistics anew</label>
        <label><input type="checkbox" checked={fresh} onChange={(event) => setFresh(event.currentTarget.checked)} /> begin the optimizer anew</label>
        <label>
          validate with at most{" "}
          <input
            class="inp num" type="text" inputMode="numeric" autocomplete="off" value={limit} disabled={busy} placeholder="all" aria-invalid={badLimit ? "true" : undefined}
            onInput={(event) => {
              const text = event.currentTarget.value;
              const value = Number(text.trim().replaceAll(",", ""));
              setLimit(text);
              setOptions({ ...options, limit_batches: text.trim() !== "" && Number.isInteger(value) && value > 0 ? value : null });
            }}
          />{" "}
          batches
        </label>
      </div>
      {open !== null && <Going view={view} open={open} what={mine ? "Evaluating:" : "Another preview is evaluated:"} unit="candidates" />}
      {open === null && last?.state === "refused" && (
        <p class={/was cancelled/.test(whyRefused(last)) ? "lead" : "lead bad"} role="alert"><b>{/was cancelled/.test(whyRefused(last)) ? "Cancelled." : "Refused."}</b> {whyRefused(last)} Nothing changed.</p>
      )}
      {moved && <p class="lead warn">Evaluated at step {count(Number(done?.["step"]))}; {session.run_id} has trained on since.
        {" "}<button type="button" class="btn sm" onClick={() => cannot === null && command(session.session_id, "merge_preview", request)}>Evaluate again</button></p>}
      {preview !== null && <Candidates session={session} preview={preview} settled={done !== null} chosen={choice?.strategy ?? null} choose={setPicked} monitor={String(done?.["monitor"] ?? "val_loss")} nameFor={nameFor} />}
      {choice != null && choice.told.length > 0 && <ul class="reasons">{choice.told.map((text) => <li class="hint" key={text}>{text}</li>)}</ul>}
    </Box>
  );
}

/** The runs that were asked for; beside one alone the run that trains, or the best of the others. */
function firstSources(members: Member[], session: Session, parents: string[]): Source[] {
  const asked = parents.length > 0 ? parents : [session.run_id ?? ""];
  const known = asked.filter((id) => members.some((one) => one.run_id === id));
  if (known.length === 1) {
    const others = members.filter((one) => one.run_id !== known[0]);
    const other = others.find((one) => one.run_id === session.run_id)
      ?? [...others].sort((a, b) => (a.best ?? Infinity) - (b.best ?? Infinity))[0];
    if (other !== undefined) known.push(other.run_id);
  }
  return known.map((run_id) => ({ run_id, checkpoint: null }));
}

function Parents({ session, members, sources, change, off }: {
  session: Session; members: Member[]; sources: Source[]; change: (next: Source[]) => void; off: boolean;
}): JSX.Element {
  const put = (at: number, source: Source): void => change(sources.map((one, i) => (i === at ? source : one)));
  const [one, other] = sources;
  const parted = one !== undefined && other !== undefined && sources.length === 2 ? partedAt(members, one.run_id, other.run_id) : null;
  const kept = (run_id: string): Checkpoint[] =>
    run_id === session.run_id ? checkpointsOf(store.runOf(session), store.toldOf(session).events) : checkpointsOf(members.find((member) => member.run_id === run_id)?.run, []);
  return (
    <div class="pars" role="group" aria-label="Parents">
      <span>Parents</span>
      {sources.map((source, i) => (
        <span class="par" key={i}>
          <Tag letter={letterOfRun({ project: session.project, run_id: source.run_id })} />
          <select aria-label={`Parent ${i + 1}`} value={source.run_id} disabled={off} onChange={(event) => put(i, { run_id: event.currentTarget.value, checkpoint: null })}>
            {members.map((member) => <option key={member.run_id} value={member.run_id}>{member.name}</option>)}
          </select>
          <span aria-hidden="true">@</span>
          <select
            aria-label={`Checkpoint of parent ${i + 1}`} value={source.checkpoint ?? ""} disabled={off}
            onChange={(event) => put(i, { ...source, checkpoint: event.currentTarget.value || null })}
          >
            <option value="">{source.run_id === session.run_id ? "where it stands" : "where it was left"}</option>
            {kept(source.run_id).map((kept_) => <option key={kept_.id} value={kept_.id}>{count(kept_.step)}, {kept_.kind}</option>)}
          </select>
          {sources.length > 2 && (
            <button type="button" class="icb" aria-label={`Without parent ${i + 1}`} aria-disabled={off ? "true" : undefined} onClick={() => !off && change(sources.filter((_, j) => j !== i))}>
              <Icon name="close" />
            </button>
          )}
        </span>
      ))}
      <button
        type="button" class="btn sm ghost" aria-disabled={off ? "true" : undefined}
        onClick={() => {
          const next = members.find((member) => !sources.some((source) => source.run_id === member.run_id)) ?? members[0];
          if (!off && next !== undefined) change([...sources, { run_id: next.run_id, checkpoint: null }]);
        }}
      >
        <Icon name="plus" /> Add a parent
      </button>
      {parted !== null && (
        <span class="hint">
          common ancestor: {letterOfRun({ project: session.project, run_id: parted.run_id })}{parted.step === null ? "" : ` @ ${count(parted.step)}`}
        </span>
      )}
    </div>
  );
}

function Candidates({ session, preview, settled, chosen, choose, monitor, nameFor }: {
  session: Session; preview: Preview; settled: boolean; chosen: string | null; choose: (strategy: string) => void; monitor: string; nameFor: (run_id: string) => string;
}): JSX.Element {
  const axis = axisOf(preview);
  const best = bestParent(preview);
  const letter = (run_id: string): string => letterOfRun({ project: session.project, run_id });
  const what = monitor.replace(/_/g, " ");
  const dot = (score: number | null, colour: string | null): JSX.Element => (
    <td class="ax-c">
      <div class="dp" aria-hidden="true">
        {axis !== null && preview.parents.map((one, i) => one.score !== null && (
          <i key={i} data-colour={colourOf(letter(one.run_id))} style={{ left: `${placeOn(axis, one.score).toFixed(2)}%` }} />
        ))}
        {axis !== null && score !== null && <u data-colour={colour ?? undefined} data-open={settled || colour !== null ? undefined : ""} style={{ left: `${placeOn(axis, score).toFixed(2)}%` }} />}
      </div>
    </td>
  );
  return (
    <table class="mg">
      <thead>
        <tr>
          <th>candidate</th>
          <th class="ax-h"><span class="ax"><span>{axis === null ? "" : sig(axis.low)}</span><span>{what}</span><span>{axis === null ? "" : sig(axis.high)}</span></span></th>
          <th class="num">{what}</th>
          <th class="num">{best === null ? "difference" : `against ${letter(best.run_id)}`}</th>
          <th class="num">accuracy</th>
          <th class="num c-what">evaluated</th>
        </tr>
      </thead>
      <tbody>
        {preview.parents.map((one, i) => (
          <tr key={i} data-parent={one.run_id}>
            <td><span class="mg-par"><Tag letter={letter(one.run_id)} /><span>{nameFor(one.run_id)}, as it is</span></span></td>
            {dot(one.score, colourOf(letter(one.run_id)))}
            <td class="num">{sig(one.score)}</td>
            <td class="num">{best === null || one === best || one.score === null || best.score === null ? "–" : signed(one.score - best.score)}</td>
            <td class="num">{sig(one.accuracy)}</td>
            <td class="num hint c-what">{one.checkpoint ?? ""}</td>
          </tr>
        ))}
        {preview.candidates.map((one) => (
          <Row
            key={one.strategy} one={one} settled={settled} chosen={one.strategy === chosen} choose={() => choose(one.strategy)}
            against={best?.score == null || one.score === null ? null : one.score - best.score} dot={dot(one.score, null)}
          />
        ))}
      </tbody>
    </table>
  );
}

function Row({ one, settled, chosen, choose, against, dot }: {
  one: Candidate; settled: boolean; chosen: boolean; choose: () => void; against: number | null; dot: JSX.Element;
}): JSX.Element {
  const name = (
    <label>
      <input type="radio" name="candidate" checked={chosen} disabled={!settled || one.refused !== null || one.score === null} onChange={choose} />
      <span>
        <span class="nm">{strategyName(one.strategy)}</span>
        <span class="ds">{one.refused === null ? strategyWords(one.strategy) : `not possible: ${one.refused}`}</span>
      </span>
    </label>
  );
  if (one.refused !== null) {
    return <tr data-candidate={one.strategy} data-refused=""><td colSpan={6}>{name}</td></tr>;
  }
  return (
    <tr class={chosen ? "sel" : undefined} data-candidate={one.strategy} data-score={settled && one.score !== null ? String(one.score) : undefined}>
      <td>{name}</td>
      {dot}
      <td class="num"><b>{settled ? "" : "≈ "}{one.score === null ? "not finite" : sig(one.score)}</b></td>
      <td class={`num${!settled || against === null ? "" : against < 0 ? " ok" : " bad"}`}>{settled && against !== null ? signed(against) : "–"}</td>
      <td class="num">{settled ? sig(one.accuracy) : "–"}</td>
      <td class="num hint c-what">{one.seconds === null ? "" : span(one.seconds)}</td>
    </tr>
  );
}

function signed(value: number): string {
  return `${value < 0 ? "−" : "+"}${sig(Math.abs(value))}`;
}
