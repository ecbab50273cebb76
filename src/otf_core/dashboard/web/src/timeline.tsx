/** Band 3: what happened at which step, one lane for the run that is shown. */

import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { count, setting, sig, span, tick } from "./format";
import { Tag, colourOf } from "./icons";
import { nameOf, stateOf, stepOf, totalSteps, type View } from "./state";
import { runKey, store, type Held } from "./store";
import type { Told, Turn } from "./told";
import type { OtfEvent, Session } from "./types";
import { shared } from "./view";
import { paramName } from "./words";

type MarkKind = "command" | "checkpoint" | "note" | "stall" | "pause";

interface Mark {
  kind: MarkKind;
  step: number;
  text: string;
}

const CHIPS: readonly [MarkKind, string][] = [
  ["command", "Commands"], ["checkpoint", "Checkpoints"], ["note", "Notes"], ["stall", "Stalls"], ["pause", "Pauses"],
];

const hidden = new Set<MarkKind>();
const NEAR_PX = 9;

let made: { key: string; marks: Mark[] } = { key: "", marks: [] };

/** Marks of one session, oldest first; made anew only when an event or an answer came. */
function marksOf(session: Session, data: Told): Mark[] {
  const settled = store.receiptsOf(session.session_id).filter((one) => one.settled_ms !== null);
  const key = `${runKey(session)} ${data.eventsVersion} ${settled.length}`;
  if (key !== made.key) made = { key, marks: collect(data, settled) };
  return made.marks;
}

function collect(data: Told, settled: Held[]): Mark[] {
  const marks: Mark[] = [];
  const removed = new Set(
    data.events.filter((event) => event.type === "note" && event["removed"] === true).map((event) => event["note_id"]),
  );
  for (const event of data.events) {
    const mark = markOf(event, removed);
    if (mark !== null) marks.push(mark);
  }
  for (const pause of data.pauses) {
    const long = pause.to_ts === null ? "paused, still held" : `paused ${span(pause.to_ts - pause.from_ts)}`;
    marks.push({ kind: "pause", step: pause.step, text: `${long} at step ${count(pause.step)}` });
  }
  for (const turn of data.turns) marks.push({ kind: "command", step: turn.step, text: turnText(turn) });
  for (const receipt of settled) {
    const at = receipt.reply?.data?.["applied_step"];
    if (receipt.cmd === "validate_now" && receipt.state === "applied" && typeof at === "number") {
      marks.push({ kind: "command", step: at, text: `validated at step ${count(at)}` });
    }
  }
  return marks.sort((a, b) => a.step - b.step);
}

function turnText(turn: Turn): string {
  const from = turn.checkpoint === null ? "" : ` (${turn.checkpoint})`;
  if (turn.kind === "resume") return `resumed at step ${count(turn.step)} in a new process${from}`;
  if (turn.from === null || turn.from < turn.step) return `checkpoint of step ${count(turn.step)} loaded${from}`;
  return `rolled back from step ${count(turn.from)} to ${count(turn.step)}${from}`;
}

function markOf(event: OtfEvent, removed: Set<unknown>): Mark | null {
  const step = typeof event["applied_step"] === "number" ? event["applied_step"] : event.step;
  if (typeof step !== "number") return null;
  switch (event.type) {
    case "param_changed":
      return {
        kind: "command", step,
        text: `${paramName(String(event["path"]))} ${setting(event["old"])} → ${setting(event["new"])}, applied at step ${count(step)}`,
      };
    case "test_complete":
    case "auto_test_complete": {
      const loss = typeof event["avg_loss"] === "number" ? `, loss ${sig(event["avg_loss"])}` : "";
      return { kind: "command", step, text: `tested at step ${count(step)}${loss}` };
    }
    case "checkpoint_saved":
      return { kind: "checkpoint", step, text: `${String(event["kind"] ?? "checkpoint")} checkpoint at step ${count(step)}` };
    case "note":
      return removed.has(event["note_id"]) ? null : { kind: "note", step, text: `note at step ${count(step)}: ${String(event["text"] ?? "")}` };
    case "stall":
      return event["over"] === true ? null : { kind: "stall", step, text: `stalled at step ${count(step)}${event["where"] ? `: ${String(event["where"])}` : ""}` };
    default:
      return null;
  }
}

const SHAPES: Record<MarkKind, JSX.Element> = {
  command: <path d="M0-5 5 0 0 5-5 0z" class="m-full" />,
  checkpoint: <rect x="-4" y="-4" width="8" height="8" rx="1" class="m-open" />,
  note: <path d="M-3.500 6V-5.500H5L2.500-2.500 5 .5h-8.500" class="m-open" />,
  stall: <path d="M0-6V6" class="m-stall" />,
  pause: <path d="M-2-5V5M2-5V5" class="m-bars" />,
};

interface Drawn {
  from: number;
  to: number;
  plot: { left: number; width: number } | null;
}

let drawn: Drawn = { from: 0, to: 1, plot: null };

export function Timeline({ view }: { view: View }): JSX.Element {
  const { session, data } = view;
  const svg = useRef<SVGSVGElement>(null);
  if (session === null || data === null) return <div />;
  const { columns } = data;
  const total = totalSteps(session, data)?.steps ?? null;
  const { from, to } = shared.extent(columns, total);
  const marks = marksOf(session, data);
  const box = svg.current?.getBoundingClientRect();
  const left = box !== undefined && shared.plot !== null ? shared.plot.left - box.left : 0;
  const width = shared.plot?.width ?? Math.max(50, (box?.width ?? 400) - 16);
  drawn = { from, to, plot: shared.plot };
  const x = (step: number): number => left + ((step - from) / (to - from)) * width;
  const step = stepOf(session, data) ?? 0;
  const first = columns.step.values[0];
  const start = x(Math.max(from, Math.min(step, columns.length > 0 && first !== undefined ? first : 0)));
  const letter = store.letterOf(session);
  const groups = gather(marks.filter((mark) => !hidden.has(mark.kind) && mark.step >= from && mark.step <= to), x);
  const epochs = [...columns.epochStarts].filter(([epoch, at]) => epoch > 0 && at >= from && at <= to);
  return (
    <section class="tl" aria-label="Timeline">
      <div class="tl-h">
        <h2>Timeline</h2>
        {CHIPS.map(([kind, label]) => (
          <button
            type="button" class="fchip" key={kind} aria-pressed={!hidden.has(kind)}
            onClick={() => {
              if (!hidden.delete(kind)) hidden.add(kind);
              store.changed();
            }}
          >
            <svg viewBox="-7 -7 14 14" aria-hidden="true">{SHAPES[kind]}</svg>
            <span class="l">{label}</span>
            <span class="c">{count(marks.filter((mark) => mark.kind === kind).length)}</span>
          </button>
        ))}
      </div>
      <div class="tl-b">
        <div class="lanes">
          <div class="lane">
            <Tag letter={letter} />
            <span class="clip">{nameOf(session)}</span>
            <small>{stateOf(view).replace("-", " ")}</small>
          </div>
        </div>
        <svg class="g" ref={svg} role="group" aria-label="Events by step" onKeyDown={rove}>
          {epochs.length <= 24 && epochs.map(([epoch, at]) => (
            <line key={epoch} class="epoch" x1={x(at)} x2={x(at)} y1="2" y2="24" />
          ))}
          {columns.reach() > step && <line class="undone" x1={x(Math.max(from, step))} x2={x(Math.min(columns.reach(), to))} y1="12" y2="12" />}
          {columns.length > 0 && <line class="run" data-colour={colourOf(letter)} x1={start} x2={x(Math.min(step, to))} y1="12" y2="12" />}
          {groups.map((group, i) => (
            <g
              key={`${group.kind} ${group.step} ${i}`} class="mk" tabIndex={i === 0 ? 0 : -1} role="img"
              aria-label={group.texts.join("; ")} transform={`translate(${group.at.toFixed(1)} 12)`}
              onFocus={() => shared.setCursor(group.step)} onBlur={() => shared.setCursor(null)}
            >
              <circle r="9" class="hit" />
              {SHAPES[group.kind]}
              {group.texts.length > 1 && <text x="5" y="-4" class="n">{group.texts.length}</text>}
              <title>{group.texts.join("\n")}</title>
            </g>
          ))}
          <line class="axis" x1={left} x2={left + width} y1="27" y2="27" />
          {ticks(from, to, width).map((at) => (
            <text key={at} x={x(at)} y="39" text-anchor="middle">{tick(at)}</text>
          ))}
          {spaced(epochs, x).map(([epoch, at]) => (
            <text key={`e${epoch}`} x={x(at)} y="52" text-anchor="middle">epoch {count(epoch)}</text>
          ))}
          {shared.cursor !== null && shared.cursor >= from && shared.cursor <= to && (
            <line class="cursor" x1={x(shared.cursor)} x2={x(shared.cursor)} y1="0" y2="27" />
          )}
        </svg>
      </div>
    </section>
  );
}

/** The large chart has moved since the timeline was drawn: draw it again in the next frame. */
export function moveTimeline(): void {
  const [now, then] = [shared.plot, drawn.plot];
  if (now === null || (then !== null && Math.abs(now.left - then.left) < 0.5 && Math.abs(now.width - then.width) < 0.5)) return;
  store.changed();
}

interface Group {
  kind: MarkKind;
  step: number;
  at: number;
  texts: string[];
}

/** Marks nearer than 9 px on the lane become one with a count. */
function gather(marks: Mark[], x: (step: number) => number): Group[] {
  const groups: Group[] = [];
  for (const mark of marks) {
    const at = x(mark.step);
    const last = groups.at(-1);
    if (last !== undefined && at - last.at < NEAR_PX) last.texts.push(mark.text);
    else groups.push({ kind: mark.kind, step: mark.step, at, texts: [mark.text] });
  }
  return groups;
}

/** Arrow keys go along the marks; the group is one tab stop. */
function rove(event: KeyboardEvent): void {
  const stride = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
  const box = event.currentTarget as SVGSVGElement;
  if (stride === 0) return;
  const marks = [...box.querySelectorAll<SVGGElement>(".mk")];
  const at = marks.findIndex((mark) => mark === document.activeElement);
  marks[Math.min(marks.length - 1, Math.max(0, at + stride))]?.focus();
  event.preventDefault();
}

/** Round steps for the axis. */
function ticks(from: number, to: number, width: number): number[] {
  const most = Math.max(2, Math.floor(width / 60));
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  const stride = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? power * 10;
  const out: number[] = [];
  for (let at = Math.ceil(from / stride) * stride; at <= to; at += stride) out.push(at);
  return out;
}

/** Epoch labels that do not touch each other. */
function spaced(epochs: [number, number][], x: (step: number) => number): [number, number][] {
  const out: [number, number][] = [];
  let free = -Infinity;
  for (const [epoch, at] of epochs.sort((a, b) => a[1] - b[1])) {
    if (x(at) < free) continue;
    out.push([epoch, at]);
    free = x(at) + 64;
  }
  return out;
}
