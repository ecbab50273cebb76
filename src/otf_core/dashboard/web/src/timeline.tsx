/** Band 3: what happened at which step, a lane for each run; forks leave and merges join theirs. */

import "./timeline.css";
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { count, standing, tick } from "./format";
import { Tag } from "./icons";
import { gather, inOrder, joinsOf, marksOf, spaced, ticks, type Group, type Join, type Mark, type MarkKind } from "./lanes";
import type { Drawn, Scene } from "./scene";
import { keyOf, store } from "./store";
import type { Session } from "./types";
import { shared } from "./view";

const CHIPS: readonly [MarkKind, string][] = [
  ["command", "Commands"], ["checkpoint", "Checkpoints"], ["fork", "Forks, merges"], ["note", "Notes"],
  ["health", "Health"], ["stall", "Stalls"], ["pause", "Pauses"],
];

const off = new Set<MarkKind>();
const LANE_PX = 22;
/** More lanes than this scroll. */
const LANES = 6;

interface Lane {
  run: Drawn;
  start: number;
  end: number;
  joins: Join[];
  marks: Mark[];
}

const made = new Map<string, { key: string; marks: Mark[] }>();

/** Marks of one run; made anew only when an event or an answer came. */
function ownMarks(run: Drawn, isFocus: boolean): Mark[] {
  const settled = isFocus ? store.receiptsOf(run.session.session_id).filter((one) => one.settled_ms !== null) : [];
  const key = `${run.told.eventsVersion} ${settled.length} ${run.lines.parts}`;
  const known = made.get(run.key);
  if (known !== undefined && known.key === key) return known.marks;
  const { ts, step } = run.lines.columns;
  const stepAt = (at: number): number | null => {
    const rows = run.lines.columns.length;
    if (rows === 0) return null;
    let row = 0;
    while (row < rows - 1 && (ts.values[row + 1] as number) <= at) row += 1;
    return step.values[row] as number;
  };
  const marks = marksOf(run.told, settled, stepAt);
  made.set(run.key, { key, marks });
  return marks;
}

function lanesOf(scene: Scene): Lane[] {
  const runs = inOrder(scene.runs, scene.focus.key, LANES);
  const lanes = runs.map((run): Lane => {
    const { start, joins } = joinsOf(store.runOf(run.session), run.told.events, run.lines.firstStep());
    const end = run.lines.lastStep() ?? run.session.step ?? start ?? 0;
    return { run, start: start ?? 0, end, joins, marks: ownMarks(run, run === scene.focus) };
  });
  for (const lane of lanes) {
    for (const join of lane.joins) {
      const parent = lanes.find((one) => one.run.key === keyOf(lane.run.session.project, join.from));
      if (parent === undefined) continue;
      const how = lane.joins.length > 1 ? "merged into" : "forked to";
      const mark: Mark = { kind: "fork", step: join.step, text: `${how} ${lane.run.letter} ${lane.run.name} at step ${count(join.step)}` };
      parent.marks = [...parent.marks, mark].sort((a, b) => a.step - b.step);
    }
  }
  return lanes;
}

const SHAPES: Record<MarkKind, JSX.Element> = {
  command: <path d="M0-5 5 0 0 5-5 0z" class="m-full" />,
  checkpoint: <rect x="-4" y="-4" width="8" height="8" rx="1" class="m-open" />,
  fork: <circle r="4.500" class="m-fork" />,
  note: <path d="M-3 6V-6h8L2.500-3 5 0h-8" class="m-open" />,
  health: <path d="M0-5.500 5.500 4.500h-11z" class="m-health" />,
  stall: <path d="M0-6V6" class="m-stall" />,
  pause: <path d="M-2.200-5v10M2.200-5v10" class="m-bars" />,
};

const REFUSED = <><path d="M0-5 5 0 0 5-5 0z" class="m-bad" /><path d="M-1.700-1.700l3.400 3.400M1.700-1.700l-3.400 3.400" class="m-bad" /></>;

function short(session: Session): string {
  if (store.link.state !== "up") return "unknown";
  return standing(session);
}

let laid: { left: number; width: number } | null = null;

export function Timeline({ scene }: { scene: Scene | null }): JSX.Element {
  const svg = useRef<SVGSVGElement>(null);
  if (scene === null) return <div />;
  const { from, to, focus } = scene;
  const lanes = lanesOf(scene);
  const box = svg.current?.getBoundingClientRect();
  const left = box !== undefined && shared.plot !== null ? shared.plot.left - box.left : 0;
  const width = shared.plot?.width ?? Math.max(50, (box?.width ?? 400) - 16);
  laid = shared.plot;
  const x = (step: number): number => left + ((step - from) / (to - from)) * width;
  const high = lanes.length * LANE_PX;
  const all = lanes.flatMap((lane) => lane.marks);
  const epochs = [...focus.lines.epochs()].filter(([epoch, at]) => epoch > 0 && at >= from && at <= to);
  const tall = Math.min(lanes.length, LANES) * LANE_PX;
  return (
    <section class="tl" aria-label="Timeline">
      <div class="tl-h">
        <h2>Timeline</h2>
        {CHIPS.map(([kind, label]) => (
          <button
            type="button" class="fchip" key={kind} aria-pressed={!off.has(kind)} title={label}
            onClick={() => {
              if (!off.delete(kind)) off.add(kind);
              store.changed();
            }}
          >
            <svg viewBox="-7 -7 14 14" aria-hidden="true">{SHAPES[kind]}</svg>
            <span class="l">{label}</span>
            <span class="c">{count(all.filter((mark) => mark.kind === kind).length)}</span>
          </button>
        ))}
      </div>
      <div class="tl-s" style={{ maxHeight: `${tall}px` }}>
        <div class="lanes">
          {lanes.map(({ run }) => (
            <button
              type="button" class={`lane${run === focus ? " on" : ""}${run.hidden ? " off" : ""}`} key={run.key}
              aria-pressed={run === focus} onClick={() => store.focus(run.key)}
            >
              <Tag letter={run.letter} />
              <span class="clip">{run.name}</span>
              <small>{short(run.session)}</small>
            </button>
          ))}
        </div>
        <svg class="g" ref={svg} role="group" aria-label="Events by step" onKeyDown={rove} style={{ height: `${high}px` }}>
          {epochs.length <= 24 && epochs.map(([epoch, at]) => (
            <line key={epoch} class="epoch" x1={x(at)} x2={x(at)} y1="2" y2={high} />
          ))}
          {lanes.map((lane, i) => <Track key={lane.run.key} lane={lane} i={i} lanes={lanes} x={x} scene={scene} />)}
          <Marks lanes={lanes} x={x} scene={scene} />
          {shared.cursor !== null && shared.cursor >= from && shared.cursor <= to && (
            <line class="cursor" x1={x(shared.cursor)} x2={x(shared.cursor)} y1="0" y2={high} />
          )}
        </svg>
      </div>
      <svg class="g ax" aria-hidden="true">
        <line class="axis" x1={left} x2={left + width} y1="0.5" y2="0.5" />
        {ticks(from, to, width).map((at) => (
          <text key={at} x={x(at)} y="13" text-anchor="middle">{tick(at)}</text>
        ))}
        {spaced(epochs, x).map(([epoch, at]) => (
          <text key={`e${epoch}`} x={x(at)} y="26" text-anchor="middle">epoch {count(epoch)}</text>
        ))}
      </svg>
    </section>
  );
}

/** The run's line, and how it comes from those of its parents. */
function Track({ lane, i, lanes, x, scene }: {
  lane: Lane; i: number; lanes: Lane[]; x: (step: number) => number; scene: Scene;
}): JSX.Element {
  const { run } = lane;
  const { from, to } = scene;
  const y = 11 + i * LANE_PX;
  const clamp = (step: number): number => x(Math.min(to, Math.max(from, step)));
  const reach = run.lines.columns.reach();
  return (
    <g data-colour={run.colour} data-run={run.key} class={`track${run === scene.focus ? " on" : ""}${run.dashed ? " dash" : ""}${run.hidden ? " off" : ""}`}>
      {lane.joins.map((join) => {
        const p = lanes.findIndex((one) => one.run.key === keyOf(run.session.project, join.from));
        if (p < 0 || join.step < from || join.step > to) return null;
        return <path key={join.from} class="join" d={curve(x(join.step), 11 + p * LANE_PX, clamp(lane.start), y)} />;
      })}
      {reach > lane.end && <line class="undone" x1={clamp(lane.end)} x2={clamp(reach)} y1={y} y2={y} />}
      {lane.end >= from && lane.start <= to && <line class="run" x1={clamp(lane.start) + (lane.joins.length > 0 && lane.start >= from ? 8 : 0)} x2={clamp(lane.end)} y1={y} y2={y} />}
      {lane.end >= from && lane.end <= to && <End session={run.session} at={x(lane.end)} y={y} />}
    </g>
  );
}

/** From a parent's lane down (or up) and round into the run's own. */
function curve(x0: number, y0: number, x1: number, y1: number): string {
  const round = y1 > y0 ? 9 : -9;
  if (x1 < x0 - 1) return `M${x0} ${y0}V${y1 - round}Q${x0} ${y1} ${x0 - 9} ${y1}H${x1}`; // a merge goes on from its first parent
  return `M${x0} ${y0}V${y1 - round}Q${x0} ${y1} ${x0 + 9} ${y1}H${Math.max(x0 + 9, x1)}`;
}

/** How the run stands, at the end of its line. */
function End({ session, at, y }: { session: Session; at: number; y: number }): JSX.Element | null {
  if (session.state === "paused" || session.state === "pausing") return <path class="held" d={`M${at + 9} ${y - 5}v10M${at + 14} ${y - 5}v10`} />;
  if (session.connected && session.state !== "finished") return <circle class="live" cx={at} cy={y} r="4" />;
  return <rect class="live" x={at - 3} y={y - 3} width="6" height="6" />;
}

interface Shown {
  lane: Lane;
  y: number;
  group: Group;
}

/** Step -> element of the marks, for the keys. */
let order: Shown[] = [];

function Marks({ lanes, x, scene }: { lanes: Lane[]; x: (step: number) => number; scene: Scene }): JSX.Element {
  const shown: Shown[] = [];
  lanes.forEach((lane, i) => {
    const marks = lane.marks.filter((mark) => !off.has(mark.kind) && mark.step >= scene.from && mark.step <= scene.to);
    for (const group of gather(marks, x)) shown.push({ lane, y: 11 + i * LANE_PX, group });
  });
  order = [...shown].sort((a, b) => a.group.step - b.group.step || a.y - b.y);
  const stop = order.findIndex((one) => one.lane.run === scene.focus);
  return (
    <>
      {order.map(({ lane, y, group }, i) => {
        const many = group.texts.length;
        const said = `${many > 1 ? `${many}: ` : ""}${group.texts.join("; ")}`;
        return (
          <g
            key={`${lane.run.key} ${group.kind} ${group.step}`} class="mk" data-colour={lane.run.colour} data-kind={group.kind} data-step={group.step}
            tabIndex={i === Math.max(0, stop) ? 0 : -1} role="button" aria-haspopup="true"
            aria-label={lanes.length > 1 ? `${lane.run.letter} ${lane.run.name}: ${said}` : said}
            transform={`translate(${group.at.toFixed(1)} ${y})`}
            onFocus={() => shared.setCursor(group.step)} onBlur={() => shared.setCursor(null)}
            onMouseEnter={() => shared.setCursor(group.step)} onMouseLeave={() => shared.setCursor(null)}
            onClick={(event) => open(event.currentTarget, lane.run, group)}
          >
            <circle r="9" class="hit" />
            {group.bad ? REFUSED : SHAPES[group.kind]}
            {many > 1 && <text x="5" y="-4" class="n">{`${many} `}</text>}
            <title>{group.texts.join("\n")}</title>
          </g>
        );
      })}
    </>
  );
}

function open(mark: Element, run: Drawn, group: Group): void {
  const box = mark.getBoundingClientRect();
  shared.openSpot({ run: run.key, step: group.step, x: box.left + box.width / 2, y: box.top, told: group.texts, opener: mark });
}

/** The large chart has moved since the timeline was drawn: draw it again in the next frame. */
export function moveTimeline(scene: Scene | null): void {
  const now = shared.plot;
  if (scene === null || now === null) return;
  if (laid !== null && Math.abs(now.left - laid.left) < 0.5 && Math.abs(now.width - laid.width) < 0.5) return;
  store.changed();
}

function marksIn(): SVGGElement[] {
  return [...document.querySelectorAll<SVGGElement>(".tl .mk")];
}

/** Arrow keys go along the marks; the group is one tab stop. */
function rove(event: KeyboardEvent): void {
  const stride = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
  const marks = marksIn();
  const at = marks.findIndex((mark) => mark === document.activeElement);
  if (event.key === "Enter" || event.key === " ") {
    const one = order[at];
    const mark = marks[at];
    if (one !== undefined && mark !== undefined) open(mark, one.lane.run, one.group);
  } else if (stride === 0) {
    return;
  } else {
    marks[Math.min(marks.length - 1, Math.max(0, at + stride))]?.focus();
  }
  event.preventDefault();
}

/** The mark before or behind the one that has the focus, else the cursor, else the end. */
export function toEvent(stride: 1 | -1): void {
  const marks = marksIn();
  const own = marks.findIndex((mark) => mark === document.activeElement);
  const at = shared.cursor ?? Infinity;
  const next = own >= 0 ? own + stride
    : stride > 0 ? order.findIndex((one) => one.group.step > at) : order.findLastIndex((one) => one.group.step < at);
  marks[Math.min(marks.length - 1, Math.max(0, next))]?.focus();
}
