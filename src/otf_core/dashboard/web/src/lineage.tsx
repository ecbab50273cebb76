/** The drawer Lineage: all runs of the project as a top-down graph, and what is known of one of them. */

import "./lineage.css";
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Compare, Results } from "./compare";
import { cameFrom, difference, type Member } from "./family";
import { count, sig } from "./format";
import { layOut, walk, type Edge, type Size } from "./graph";
import { colourOf, Icon, Tag } from "./icons";
import { command } from "./live";
import { page } from "./page";
import { openOf } from "./pending";
import { barred, letterOfRun, membersOf, trainerOf } from "./relatives";
import { stateOf, type View } from "./state";
import { keyOf, store } from "./store";
import type { Session } from "./types";

const SIZE: Size = { width: 130, height: 66, gapX: 13, gapY: 56 };

let picked: string | null = null;

/** Show a run in the drawer, also before it is open. */
export function pick(run_id: string): void {
  picked = run_id;
  store.changed();
}

export function Lineage({ view }: { view: View }): JSX.Element {
  const shown = view.session as Session;
  const session = trainerOf(shown);
  const members = membersOf(session);
  const chosen = members.find((one) => one.run_id === picked) ?? members.find((one) => one.run_id === shown.run_id) ?? members[0];
  if (chosen === undefined) return <div class="dr-b"><p class="lead">No run has told of itself yet.</p></div>;
  return (
    <div class="dr-b">
      <p class="lead">Each line says at which step a run left its parent. Arrow keys walk along the lines.</p>
      <Tree members={members} chosen={chosen} here={session.run_id} />
      <Details view={view} session={session} members={members} member={chosen} />
    </div>
  );
}

function Tree({ members, chosen, here }: { members: Member[]; chosen: Member; here: string | null }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const [wide, setWide] = useState(416);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWide(Math.floor((entry?.contentRect.width ?? 416))));
    if (box.current !== null) watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    box.current?.querySelector(`[aria-selected="true"]`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [members.length, wide]);
  // A row of three is as wide as the drawer where it is at least a phone's.
  const size = { ...SIZE, width: Math.max(104, Math.min(SIZE.width, Math.floor((wide - 2 * SIZE.gapX) / 3))) };
  const graph = layOut(
    members.map((one) => ({
      id: one.run_id,
      parents: one.parents.map((parent) => ({ id: parent.run_id, label: parent.step === null ? "" : count(parent.step) })),
    })),
    size, wide,
  );
  const at = new Map(graph.nodes.map((node) => [node.id, node]));
  const letters = new Map(members.map((one) => [one.run_id, one.letter]));
  const onKey = (event: KeyboardEvent): void => {
    const to = walk(graph, chosen.run_id, event.key);
    if (to === null || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pick(to);
    const node = [...(box.current?.querySelectorAll<HTMLElement>("[data-run]") ?? [])].find((one) => one.dataset["run"] === to);
    node?.focus();
    node?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  return (
    <div class="dag" ref={box}>
      <div class="dag-in" role="listbox" aria-label="Lineage of runs" style={{ width: `${graph.width}px`, height: `${graph.height}px` }} onKeyDown={onKey}>
        <svg aria-hidden="true">{graph.edges.map((edge) => <Line key={`${edge.from} ${edge.to} ${edge.at[0]}`} edge={edge} letter={letters.get(edge.to) ?? "A"} />)}</svg>
        {members.map((one) => {
          const node = at.get(one.run_id);
          const from = one.parents.map((parent) => `${parent.run_id}${parent.step === null ? "" : ` at step ${count(parent.step)}`}`).join(" and ");
          return (
            <button
              type="button" class="nd" role="option" key={one.run_id} data-run={one.run_id} aria-selected={one === chosen} tabIndex={one === chosen ? 0 : -1}
              aria-current={one.run_id === here ? "true" : undefined}
              style={{ left: `${node?.x ?? 0}px`, top: `${node?.y ?? 0}px`, width: `${size.width}px`, height: `${size.height}px` }}
              onClick={() => pick(one.run_id)}
            >
              <span class="n1"><Tag letter={one.letter} /><span class="clip">{one.name}</span></span>
              <span class="n2"><span class="clip">{one.state}</span><b><span class="sr">{one.best === null ? "no validation yet" : "best validation loss "}</span>{one.best === null ? "–" : sig(one.best)}</b></span>
              <span class="n3">step {count(one.step)}<span class="sr">, {from === "" ? "started new" : `from ${from}`}</span></span>
            </button>
          );
        })}
      </div>
    </div>
  );
}

function Line({ edge, letter }: { edge: Edge; letter: string }): JSX.Element {
  const [start, ...rest] = edge.points as [[number, number], ...[number, number][]];
  let [fromX, fromY] = start;
  const way = rest.map(([x, y]) => {
    const bend = Math.min(30, (y - fromY) / 2);
    const piece = x === fromX ? `L${x} ${y}` : `C${fromX} ${fromY + bend} ${x} ${y - bend} ${x} ${y}`;
    [fromX, fromY] = [x, y];
    return piece;
  });
  return (
    <>
      <path data-colour={colourOf(letter)} d={`M${start[0]} ${start[1]}${way.join("")}`} />
      <text x={edge.at[0]} y={edge.at[1] + 4}>{edge.label}</text>
    </>
  );
}

type Sub = "compare" | "results" | null;

function Details({ view, session, members, member }: { view: View; session: Session; members: Member[]; member: Member }): JSX.Element {
  const [sub, setSub] = useState<Sub>(null);
  const trains = member.run_id === session.run_id && session.connected;
  const letterOf = (run_id: string): string => letterOfRun({ project: session.project, run_id });
  const newest = [...member.run.checkpoints].sort((a, b) => (b.step ?? 0) - (a.step ?? 0))[0];
  const data = trains ? session.status?.["data"] : null;
  const drawn = data !== null && typeof data === "object" && !Array.isArray(data) ? data : null;
  const elsewhere = member.session?.connected === true && member.session.session_id !== session.session_id;
  const pending = openOf(view, "switch_run") !== null;
  const cannot = (view.link.state !== "up" ? "offline" : !session.connected ? "no trainer" : stateOf(view) === "stalled" ? "no step end" : null)
    ?? (trains ? "it trains now" : elsewhere ? "another process trains it" : null)
    ?? (session.capabilities.length > 0 && !session.capabilities.includes("switch_run") ? "not in this run" : null)
    ?? (newest === undefined ? "it has no checkpoint" : null) ?? (pending ? "a switch is under way" : null);
  const off = (cmd: string): boolean => barred(view, cmd) !== null;
  return (
    <section aria-label={`Details of ${member.name}`} data-details={member.run_id}>
      <div class="nd-h"><Tag letter={member.letter} /><b class="grow clip">{member.name}</b><span class="pill">{member.state}</span></div>
      <dl class="kv">
        <dt>came from</dt><dd>{cameFrom(member, letterOf)}</dd>
        <dt>difference</dt><dd>{difference(member)}</dd>
        {drawn !== null && <><dt>samples</dt><dd>{count(Number(drawn["chosen"]))} of {count(Number(drawn["of"]))}; {count(Number(drawn["drawn"]))} of them drawn by now</dd></>}
        <dt>best val loss</dt>
        <dd>{member.best === null ? "no validation yet" : sig(member.best)}{member.run.summary?.best_val_step == null ? "" : ` at step ${count(member.run.summary.best_val_step)}`}</dd>
        <dt>runs on</dt><dd>{member.session?.connected === true ? [member.session.device, member.session.host].filter(Boolean).join(" on ") || "a trainer" : "not loaded, kept on disk"}</dd>
        <dt>resume</dt>
        <dd class={newest?.exact === true ? "ok" : undefined}>
          {newest === undefined ? "no checkpoint" : `${newest.exact === true ? "bit-exact" : "approximate"} from step ${count(newest.step)}`}
        </dd>
      </dl>
      <div class="nd-acts">
        <ShowInCharts member={member} shown={member.run_id === view.session?.run_id} />
        <button
          type="button" class="btn sm" aria-disabled={cannot !== null ? "true" : undefined} aria-describedby="switch-why"
          onClick={() => {
            if (cannot === null) command(session.session_id, "switch_run", { run_id: member.run_id });
          }}
        >
          {pending ? <span class="spin" aria-hidden="true" /> : <Icon name="resume" />} Switch to
        </button>
        <button type="button" class="btn sm" aria-disabled={off("fork") ? "true" : undefined} onClick={() => !off("fork") && page.ask({ kind: "fork", from: { run_id: member.run_id } })}>
          <Icon name="fork" /> Fork…
        </button>
        <button type="button" class="btn sm" aria-disabled={off("merge") ? "true" : undefined} onClick={() => !off("merge") && page.ask({ kind: "merge", parents: [member.run_id] })}>
          <Icon name="merge" /> Merge…
        </button>
        <button type="button" class="btn sm" aria-pressed={sub === "compare"} onClick={() => setSub(sub === "compare" ? null : "compare")}>Compare</button>
        <button type="button" class="btn sm" aria-pressed={sub === "results"} onClick={() => setSub(sub === "results" ? null : "results")}>Results</button>
      </div>
      <p class="why-not" id="switch-why">
        {cannot !== null ? `Switch to: ${cannot}.` : `Switch to: ${session.run_id ?? "the run"} is saved and left as it stands, ${member.name} goes on from where it was left and stays paused.`}
      </p>
      {sub === "compare" && <Compare view={view} session={session} members={members} first={member} />}
      {sub === "results" && <Results view={view} session={session} members={members} />}
    </section>
  );
}

/** The page shows this run, in focus in the charts; what trains goes on training. */
function ShowInCharts({ member, shown }: { member: Member; shown: boolean }): JSX.Element {
  return (
    <button
      type="button" class="btn sm" aria-disabled={shown ? "true" : undefined} title={shown ? "It is shown" : undefined}
      onClick={() => {
        if (!shown) store.focus(keyOf(member.run.project, member.run_id));
      }}
    >
      Show in charts
    </button>
  );
}
