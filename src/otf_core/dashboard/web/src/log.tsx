/** The drawer Log. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { bytes, clockSeconds, count, plural, setting, sig, span } from "./format";
import { Icon } from "./icons";
import "./log.css";
import { placesText, readPlaces, readRankList, string } from "./ranks";
import type { View } from "./state";
import type { OtfEvent } from "./types";
import { shared } from "./view";
import { byWhom, guardText, paramName } from "./words";

export type Level = "all" | "warn" | "bad";

/** One line for an event, and how serious it is. */
export function lineOf(event: OtfEvent): { level: Level; text: string } {
  const level = String(event["level"] ?? "").toLowerCase();
  switch (event.type) {
    case "log":
      return { level: level.startsWith("err") || level === "critical" ? "bad" : level.startsWith("warn") ? "warn" : "all", text: String(event["text"] ?? "") };
    case "error":
      return { level: "bad", text: String(event["text"] ?? event["code"] ?? "error") };
    case "param_changed":
      return { level: "all", text: `${paramName(String(event["path"]))} ${setting(event["old"])} → ${setting(event["new"])}, ${byWhom(event)}` };
    case "state":
      return { level: event["state"] === "failed" ? "bad" : "all", text: `${String(event["previous"] ?? "–")} → ${String(event["state"])}${event["reason"] ? ` (${String(event["reason"])})` : ""}` };
    case "checkpoint_saved":
      return { level: "all", text: `checkpoint ${String(event["kind"] ?? "")} ${typeof event["bytes"] === "number" ? bytes(event["bytes"]) : ""} ${String(event["path"] ?? "")}`.replace(/ +/g, " ") };
    case "checkpoint_loaded":
      return { level: "all", text: `step ${setting(event.step)}${typeof event["from_step"] === "number" ? `, rolled back from ${count(event["from_step"])}` : ""} ${String(event["path"] ?? "")}`.trim() };
    case "exactness":
      return { level: event["exact"] === true ? "all" : "warn", text: [event["text"], ...(Array.isArray(event["reasons"]) ? event["reasons"] : [])].map(String).join("; ") };
    case "stall":
      return { level: event["over"] === true ? "all" : "bad", text: event["over"] === true ? "goes on again" : `no batch has ended for ${setting(event["seconds"])} s${stallPlace(event)}` };
    case "rank_state": {
      const { rank, state, seconds, exit_code: code, checkpoint, resume } = event;
      const after = state !== "failed" && typeof seconds === "number" ? ` after ${span(seconds)}` : "";
      const said = [
        string(event["why"])?.replace(/\.$/, "") ?? `rank ${setting(rank)} ${String(state)}${after}`, code == null ? "" : `exit code ${setting(code)}`,
        checkpoint ? `the checkpoint ${String(checkpoint)} is intact` : "", string(resume) ?? "",
      ];
      return { level: state === "failed" ? "bad" : state === "silent" ? "warn" : "all", text: said.filter(Boolean).join("; ") };
    }
    case "guard":
      return { level: "warn", text: guardText(event) };
    case "gap":
      return { level: "warn", text: `${String(event["count"])} events left out of the stream (${String(event["reason"])})` };
    case "trainingFinished":
      return { level: event["status"] === "failed" ? "bad" : "all", text: `${String(event["status"])}${event["error"] ? `: ${String(event["error"])}` : ""}` };
    case "note":
      return { level: "all", text: event["removed"] === true ? "note taken back" : String(event["text"] ?? "") };
    case "epoch_end":
      return { level: "all", text: `epoch ${count(Number(event["epoch"]))} ended${typeof event["val_loss"] === "number" ? `, val loss ${sig(event["val_loss"])}` : ""}` };
    default:
      return { level: "all", text: rest(event) };
  }
}

/** ": rank 1 in all_reduce, rank 0 in broadcast", or the place of the one process. */
function stallPlace(event: OtfEvent): string {
  const places = readPlaces(event["ranks"]);
  if (places.length > 0) return `: ${placesText(places, readRankList(event["unheard"]))}`;
  return event["where"] ? `, in ${String(event["where"])}` : "";
}

const STAMPS = new Set(["type", "run_id", "run_gen", "ts", "session_id", "event_seq", "step", "replay"]);

function rest(event: OtfEvent): string {
  return Object.entries(event)
    .filter(([key, value]) => !STAMPS.has(key) && value !== null && value !== undefined && value !== "")
    .map(([key, value]) => `${key} ${setting(value)}`)
    .join(", ");
}

const ROW_PX = 20;
const SPARE = 12;

interface Row {
  event: OtfEvent;
  level: Level;
  text: string;
  found: string;
}

/** Words of an event are made once; 50,000 of them are filtered in some milliseconds. */
const rows = new WeakMap<OtfEvent, Row>();

function rowOf(event: OtfEvent): Row {
  let row = rows.get(event);
  if (row === undefined) {
    const { level, text } = lineOf(event);
    row = { event, level, text, found: `${event.type} ${text}`.toLowerCase() };
    rows.set(event, row);
  }
  return row;
}

/** The lines that match, newest first. */
export function matching(events: readonly OtfEvent[], filter: string, level: Level): Row[] {
  const wanted = filter.trim().toLowerCase();
  const found: Row[] = [];
  for (let i = events.length - 1; i >= 0; i -= 1) {
    const row = rowOf(events[i] as OtfEvent);
    if (level === "bad" ? row.level !== "bad" : level === "warn" && row.level === "all") continue;
    if (wanted === "" || row.found.includes(wanted)) found.push(row);
  }
  return found;
}

function stepOfEvent(event: OtfEvent): number | null {
  const step = typeof event["applied_step"] === "number" ? event["applied_step"] : event.step;
  return typeof step === "number" ? step : null;
}

export function Log({ view }: { view: View }): JSX.Element {
  const [filter, setFilter] = useState("");
  const [level, setLevel] = useState<Level>("all");
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const [chosen, choose] = useState<OtfEvent | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const told = view.data;
  const events = told?.events ?? [];
  const found = useMemo(() => matching(events, filter, level), [told, told?.eventsVersion, filter, level]);
  useEffect(() => {
    const element = box.current;
    if (element === null) return undefined;
    const seen = new ResizeObserver(() => setHeight(element.clientHeight));
    seen.observe(element);
    return () => seen.disconnect();
  }, []);
  useEffect(() => {
    box.current?.scrollTo(0, 0);
  }, [filter, level]);
  const first = Math.max(0, Math.floor(top / ROW_PX) - SPARE);
  const last = Math.min(found.length, Math.ceil((top + height) / ROW_PX) + SPARE);
  const at = chosen === null ? -1 : found.findIndex((row) => row.event === chosen);
  const go = (row: Row | undefined, focus: boolean): void => {
    if (row === undefined) return;
    choose(row.event);
    const step = stepOfEvent(row.event);
    if (step !== null) pointAt(step);
    if (!focus || box.current === null) return;
    const y = found.indexOf(row) * ROW_PX;
    const { scrollTop, clientHeight } = box.current;
    if (y < scrollTop) box.current.scrollTop = y;
    else if (y + ROW_PX > scrollTop + clientHeight) box.current.scrollTop = y + ROW_PX - clientHeight;
  };
  const onKey = (event: KeyboardEvent): void => {
    const page = Math.max(1, Math.floor(height / ROW_PX) - 1);
    const moves: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -found.length, End: found.length };
    const move = moves[event.key];
    if (move === undefined || found.length === 0) return;
    event.preventDefault();
    go(found[Math.min(found.length - 1, Math.max(0, at + move))], true);
  };
  const shown: JSX.Element[] = [];
  for (let i = first; i < last; i += 1) {
    const row = found[i] as Row;
    const { event } = row;
    const step = stepOfEvent(event);
    shown.push(
      <li
        key={i} id={`log-${i}`} role="option" aria-selected={event === chosen} aria-posinset={i + 1} aria-setsize={found.length}
        data-level={row.level} data-seq={event.event_seq} data-type={event.type} style={{ top: `${i * ROW_PX}px` }} onClick={() => go(row, false)}
      >
        <span class="t">{typeof event.ts === "number" ? clockSeconds(event.ts) : ""}</span>
        <span class="t num">{step === null ? "" : count(step)}</span>
        <span class="x clip"><b>{event.type}</b> {row.text}</span>
      </li>,
    );
  }
  return (
    <>
      <div class="dr-t">
        <input
          class="inp grow" type="search" placeholder="Filter" aria-label="Filter the log" value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
        <select class="inp" aria-label="Level" value={level} onChange={(event) => setLevel(event.currentTarget.value as Level)}>
          <option value="all">all</option>
          <option value="warn">warnings and errors</option>
          <option value="bad">errors</option>
        </select>
      </div>
      <p class="log-n hint" role="status">
        {events.length === 0 ? "No event yet." : found.length === 0 ? "No line matches." : `${plural(found.length, "line")}${found.length === events.length ? "" : ` of ${count(events.length)}`}, newest first`}
      </p>
      <div class="dr-b log-b" ref={box} onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
        <ol
          class="log" role="listbox" aria-label="Events" tabIndex={0} onKeyDown={onKey} style={{ height: `${found.length * ROW_PX}px` }}
          aria-activedescendant={at >= first && at < last ? `log-${at}` : undefined}
        >
          {shown}
        </ol>
      </div>
      {chosen !== null && <Whole event={chosen} close={() => choose(null)} />}
    </>
  );
}

/** One event in full: its words, and its fields as they were told. */
function Whole({ event, close }: { event: OtfEvent; close: () => void }): JSX.Element {
  const step = stepOfEvent(event);
  const fields = Object.entries(event).filter(([key, value]) => !HIDDEN.has(key) && value !== null && value !== undefined);
  return (
    <section class="log-w" aria-label="The chosen line" tabIndex={0}>
      <button type="button" class="icb sm" aria-label="Close the line" onClick={close}><Icon name="close" /></button>
      <p><b>{event.type}</b>{step !== null && ` at step ${count(step)}`}{typeof event.ts === "number" && `, ${clockSeconds(event.ts)}`}</p>
      <p>{rowOf(event).text}</p>
      <dl>{fields.map(([key, value]) => [<dt key={key}>{key}</dt>, <dd key={`${key} =`}>{setting(value)}</dd>])}</dl>
    </section>
  );
}

const HIDDEN = new Set(["type", "run_id", "run_gen", "ts", "session_id", "replay", "step"]);

/** The cursor of all charts, zoomed out where the step is not in view. */
function pointAt(step: number): void {
  const { zoom } = shared;
  if (zoom !== null && (step < zoom.from || step > zoom.to)) shared.setZoom(null);
  shared.setCursor(step);
}
