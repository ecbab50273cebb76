/** The rail and its drawers: Steer, Checkpoints, Log. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { isDict } from "./columns";
import { KINDS } from "./checkpoints";
import { bytes, clockSeconds, count, plural, setting, sig } from "./format";
import { Icon } from "./icons";
import { download } from "./live";
import { applyDrafts, controlsNow, draftsOf, giveBack, page, readDraft, receiptFor, type Panel } from "./page";
import { closed, nameOf, stateOf, type View } from "./state";
import { store, type Held } from "./store";
import type { Checkpoint, OtfEvent, Param, Session } from "./types";
import { nearest, paramName, waits, why } from "./words";

const TITLES: readonly [Panel, string][] = [["steer", "Steer"], ["checkpoints", "Checkpoints"], ["log", "Log"]];

export function Rail(): JSX.Element {
  return (
    <nav class="rail" aria-label="Panels">
      {TITLES.map(([panel, title], i) => (
        <button
          type="button" key={panel} data-panel={panel} aria-expanded={page.panel === panel}
          aria-keyshortcuts={String(i + 1)} onClick={() => page.toggle(panel)}
        >
          <Icon name={panel} />
          {title}
        </button>
      ))}
    </nav>
  );
}

export function Drawer({ view, panel }: { view: View; panel: Panel }): JSX.Element {
  const title = TITLES.find(([key]) => key === panel)?.[1] ?? "";
  return (
    <aside class="drawer" aria-label={title}>
      <div class="dr-h">
        <h2>{title}</h2>
        {view.session !== null && <span class="hint clip">{nameOf(view.session)}</span>}
        <button type="button" class="icb" aria-label={`Close ${title}`} onClick={() => page.open(null)}>
          <Icon name="close" />
        </button>
      </div>
      {panel === "steer" && <Steer view={view} />}
      {panel === "checkpoints" && <Checkpoints view={view} />}
      {panel === "log" && <Log view={view} />}
    </aside>
  );
}

// ---------------------------------------------------------------- Steer

/** The learning rate first, the rest in the trainer's order, single groups last. */
function inOrder(params: Param[]): Param[] {
  const rank = (param: Param): number => (param.path === "lr" ? 0 : param.path.startsWith("optim.") ? 2 : 1);
  return [...params].sort((a, b) => rank(a) - rank(b));
}

function Steer({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const typed = draftsOf(session.session_id);
  const receipts = store.receiptsOf(session.session_id);
  const params = inOrder(session.params);
  const shut = closed(view) ?? (stateOf(view) === "stalled" ? "no step end" : null);
  const ready = params.filter((param) => {
    const text = typed.get(param.path);
    return text !== undefined && readDraft(param, text).ok;
  });
  if (params.length === 0) {
    return (
      <div class="dr-b">
        <p class="lead">
          {session.protocol === "legacy"
            ? "This trainer speaks the old protocol and tells of no value that could be changed."
            : "The trainer has told of no value that can be changed."}
        </p>
      </div>
    );
  }
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      applyDrafts();
    }
  };
  return (
    <>
      <div class="dr-b" onKeyDown={onKey}>
        {params.map((param) => (
          <ParamRow
            key={param.path} param={param} typed={typed} view={view}
            receipt={receiptFor(receipts, param.path)} shut={shut}
          />
        ))}
      </div>
      <div class="dr-f">
        <span class="grow">
          {typed.size === 0 ? <span class="hint">No change. Values are as the trainer read them back.</span> : <><b>{plural(typed.size, "change")}</b> not sent</>}
          {shut !== null && typed.size > 0 && <span class="hint"> — {shut}</span>}
        </span>
        {typed.size > 0 && (
          <button
            type="button" class="btn ghost"
            onClick={() => {
              typed.clear();
              store.changed();
            }}
          >
            Discard
          </button>
        )}
        <button
          type="button" class="btn pri" aria-disabled={ready.length === 0 || shut !== null ? "true" : undefined}
          onClick={applyDrafts}
        >
          Apply{ready.length > 0 ? ` ${plural(ready.length, "change")}` : ""}
          <kbd aria-hidden="true">Ctrl ↵</kbd>
        </button>
      </div>
    </>
  );
}

interface RowState {
  s: "idle" | "edited" | "pending" | "applied" | "refused";
  text: string;
}

function rowState(param: Param, draft: string | undefined, receipt: Held | undefined, view: View): RowState {
  const now = setting(param.value);
  if (draft !== undefined) {
    const reading = readDraft(param, draft);
    if (!reading.ok) return { s: "refused", text: `${now} → ${draft || "nothing"}, not possible: ${reading.reason}` };
    return { s: "edited", text: `${now} → ${setting(reading.value)}, not sent` };
  }
  if (receipt !== undefined && (receipt.state === "sent" || receipt.state === "accepted")) {
    const asked = receipt.payload?.["release"] === true ? "the script's own" : setting(receipt.payload?.["value"]);
    const wait = view.link.state === "up" ? `sent, waiting for ${waits(receipt.waits_for)}` : "sent, no answer — unknown until reconnected";
    return { s: "pending", text: `${now} → ${asked}, ${wait}` };
  }
  if (param.pending) {
    const at = param.pending.at_step === null ? "the trainer" : `step ${count(param.pending.at_step)}`;
    return { s: "pending", text: `${now} → ${setting(param.pending.value)}, waiting for ${at}` };
  }
  if (receipt?.state === "refused") return { s: "refused", text: `refused: ${why(receipt)}` };
  if (receipt?.state === "unknown") return { s: "refused", text: "no answer, and the dashboard has no record of it" };
  const data = receipt?.reply?.data;
  if (receipt?.state === "applied" && isDict(data)) {
    const step = data["applied_step"];
    const at = typeof step === "number" ? ` at step ${count(step)}` : "";
    const until = typeof data["until"] === "number" ? `, until step ${count(data["until"])}` : "";
    return { s: "applied", text: `applied${at}, read back ${setting(data["new"])}${until}` };
  }
  return { s: "idle", text: "" };
}

function ParamRow({ param, typed, receipt, view, shut }: {
  param: Param; typed: Map<string, string>; receipt: Held | undefined; view: View; shut: string | null;
}): JSX.Element {
  const draft = typed.get(param.path);
  const state = rowState(param, draft, receipt, view);
  const id = `param-${param.path}`;
  const name = paramName(param.path);
  const off = shut !== null || state.s === "pending";
  const fits = draft === undefined && receipt?.state === "refused" ? nearest(receipt) : null;
  const type = (text: string): void => {
    if (text === String(param.value)) typed.delete(param.path);
    else typed.set(param.path, text);
    store.changed();
  };
  return (
    <div class="pr" data-s={state.s} data-path={param.path}>
      <div class="pr-1">
        <label for={id}>{name}</label>
        <span class="cur">
          <b data-current={JSON.stringify(param.value)}>{setting(param.value)}</b>
          {param.unit ? ` ${param.unit}` : ""}
          {param.script !== undefined
            ? ` set, ${setting(param.script)} by the script`
            : param.owner === "scheduler" ? " on the schedule" : ""}
        </span>
      </div>
      <Editor id={id} name={name} param={param} draft={draft} off={off} type={type} invalid={draft !== undefined && !readDraft(param, draft).ok} />
      <div class="pr-3">
        <span>{boundsOf(param)}</span>
        <span class="st" id={`${id}-st`}>{state.text}</span>
      </div>
      {fits !== null && (
        <button type="button" class="btn sm" onClick={() => type(String(fits))}>Use {fits}</button>
      )}
      {param.script !== undefined && !off && draft === undefined && (
        <button type="button" class="btn sm" onClick={() => giveBack((view.session as Session).session_id, param.path)}>Give back to the script</button>
      )}
    </div>
  );
}

function Editor({ id, name, param, draft, off, type, invalid }: {
  id: string; name: string; param: Param; draft: string | undefined; off: boolean; invalid: boolean;
  type: (text: string) => void;
}): JSX.Element {
  if (param.kind === "bool" || param.kind === "enum") {
    const choices = param.kind === "bool" ? [true, false] : (param.choices ?? []);
    return (
      <div class="pr-2 one">
        <select
          id={id} class="inp" disabled={off} value={draft ?? String(param.value)} aria-describedby={`${id}-st`}
          onChange={(event) => type(event.currentTarget.value)}
        >
          {choices.map((choice) => <option key={String(choice)} value={String(choice)}>{setting(choice)}</option>)}
        </select>
      </div>
    );
  }
  const numbers = Array.isArray(param.value) ? param.value : [param.value];
  const first = numbers.find((value): value is number => typeof value === "number") ?? 0;
  const shown = draft === undefined ? first : Number(draft);
  const slide = slider(param, first);
  return (
    <div class={`pr-2${slide === null ? " one" : ""}`}>
      {slide !== null && (
        <input
          type="range" min="0" max="1000" step="1" disabled={off} aria-label={`${name}, slider`}
          aria-valuetext={setting(shown)} value={slide.place(Number.isFinite(shown) ? shown : first)}
          onInput={(event) => type(String(slide.value(Number(event.currentTarget.value))))}
        />
      )}
      <input
        id={id} class="inp num" type="text" inputMode="decimal" autocomplete="off" spellcheck={false} disabled={off}
        aria-invalid={invalid ? "true" : undefined} aria-describedby={`${id}-st`}
        value={draft ?? (Array.isArray(param.value) ? setting(param.value) : String(param.value ?? ""))}
        onInput={(event) => type(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) applyDrafts();
        }}
      />
    </div>
  );
}

interface Slider {
  place(value: number): number;
  value(place: number): number;
}

/** Where a value lies between its bounds; by decades around it if the bounds are far apart. */
function slider(param: Param, current: number): Slider | null {
  const { min, max } = param;
  if (typeof min !== "number" || typeof max !== "number" || max <= min) return null;
  const round = (value: number): number => (param.kind === "int" ? Math.round(value) : Number(value.toPrecision(3)));
  const wide = min >= 0 && (min === 0 ? max > 1.5 || (current > 0 && current < max / 50) : max / min > 50);
  if (!wide || param.kind === "int") {
    return {
      place: (value) => (1000 * (Math.min(max, Math.max(min, value)) - min)) / (max - min),
      value: (place) => round(min + (place / 1000) * (max - min)),
    };
  }
  const anchor = current > 0 ? current : max / 1e4;
  const low = Math.max(min, anchor / 100, Number.MIN_VALUE);
  const high = Math.min(max, anchor * 100);
  const decades = Math.log(high / low);
  return {
    place: (value) => (value <= 0 ? 0 : 1000 * Math.min(1, Math.max(0, Math.log(value / low) / decades))),
    value: (place) => (place === 0 && min === 0 ? 0 : round(low * Math.exp((place / 1000) * decades))),
  };
}

function boundsOf(param: Param): string {
  const { min, max } = param;
  if (typeof min === "number" && typeof max === "number") return `${setting(min)} – ${setting(max)}`;
  if (typeof min === "number") return `at least ${setting(min)}`;
  if (typeof max === "number") return `at most ${setting(max)}`;
  return "";
}

// ---------------------------------------------------------------- Checkpoints

function Checkpoints({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const list = view.checkpoints;
  const [problem, setProblem] = useState<string | null>(null);
  const fetchFile = async (one: Checkpoint): Promise<void> => {
    const owner = one.session_id ?? session.session_id;
    const path = `api/checkpoints/${encodeURIComponent(owner)}/${encodeURIComponent(one.id)}/file`;
    const name = one.path?.split(/[/\\]/).at(-1) ?? `${one.id}.ckpt`;
    setProblem(await download(path, name));
  };
  if (list.length === 0) {
    return (
      <div class="dr-b">
        <p class="lead">No checkpoint yet. Pause saves one, and so does Save checkpoint.</p>
      </div>
    );
  }
  const offline = view.link.state !== "up";
  const rollback = controlsNow().find((one) => one.cmd === "rollback")?.state;
  const shut = rollback === undefined || rollback === "off" || rollback === "pending";
  return (
    <div class="dr-b">
      {problem !== null && <p class="lead bad" role="alert">{problem}</p>}
      <table>
        <thead>
          <tr><th>step</th><th>why kept</th><th class="num">val loss</th><th class="num">size</th><th>resume</th><th><span class="sr">actions</span></th></tr>
        </thead>
        <tbody>
          {list.map((one) => {
            const row = one.step === null ? -1 : (view.data?.columns.rowOf("val_loss", one.step) ?? -1);
            return (
              <tr key={one.id} title={one.path ?? undefined}>
                <td><b>{count(one.step)}</b></td>
                <td>{KINDS[one.kind ?? ""] ?? one.kind ?? "–"}</td>
                <td class="num">{row < 0 ? "–" : sig(view.data?.columns.at("val_loss", row))}</td>
                <td class="num">{bytes(one.bytes)}</td>
                <td>{one.exact === true ? <span class="ok">exact</span> : <span title="approximate">approx.</span>}</td>
                <td class="num acts">
                  <button
                    type="button" class="btn sm" aria-disabled={shut ? "true" : undefined}
                    aria-label={`Roll back to the checkpoint at step ${count(one.step)}`} title="Roll back…"
                    onClick={() => {
                      if (!shut) page.ask({ kind: "rollback", to: { checkpoint: one.id } });
                    }}
                  >
                    <Icon name="rollback" />
                  </button>
                  <button
                    type="button" class="btn sm" aria-disabled={offline ? "true" : undefined}
                    aria-label={`Download the checkpoint at step ${count(one.step)}`}
                    onClick={() => {
                      if (!offline) void fetchFile(one);
                    }}
                  >
                    <Icon name="download" />
                  </button>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

// ---------------------------------------------------------------- Log

const LINES = 400;

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
      return { level: "all", text: `${paramName(String(event["path"]))} ${setting(event["old"])} → ${setting(event["new"])} by ${String(event["by"] ?? "user")}` };
    case "state":
      return { level: event["state"] === "failed" ? "bad" : "all", text: `state ${String(event["previous"] ?? "–")} → ${String(event["state"])}${event["reason"] ? ` (${String(event["reason"])})` : ""}` };
    case "checkpoint_saved":
      return { level: "all", text: `checkpoint ${String(event["kind"] ?? "")} ${typeof event["bytes"] === "number" ? bytes(event["bytes"]) : ""} ${String(event["path"] ?? "")}`.replace(/ +/g, " ") };
    case "checkpoint_loaded":
      return { level: "all", text: `step ${setting(event.step)}${typeof event["from_step"] === "number" ? `, rolled back from ${count(event["from_step"])}` : ""} ${String(event["path"] ?? "")}`.trim() };
    case "exactness":
      return { level: event["exact"] === true ? "all" : "warn", text: [event["text"], ...(Array.isArray(event["reasons"]) ? event["reasons"] : [])].map(String).join("; ") };
    case "stall":
      return { level: event["over"] === true ? "all" : "bad", text: event["over"] === true ? "goes on again" : `no batch has ended for ${setting(event["seconds"])} s${event["where"] ? `, in ${String(event["where"])}` : ""}` };
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

const STAMPS = new Set(["type", "run_id", "run_gen", "ts", "session_id", "event_seq", "step", "replay"]);

function rest(event: OtfEvent): string {
  return Object.entries(event)
    .filter(([key, value]) => !STAMPS.has(key) && value !== null && value !== undefined && value !== "")
    .map(([key, value]) => `${key} ${setting(value)}`)
    .join(", ");
}

function Log({ view }: { view: View }): JSX.Element {
  const [filter, setFilter] = useState("");
  const [level, setLevel] = useState<Level>("all");
  const wanted = filter.toLowerCase();
  const lines: JSX.Element[] = [];
  const events = view.data?.events ?? [];
  for (let i = events.length - 1; i >= 0 && lines.length < LINES; i -= 1) {
    const event = events[i] as OtfEvent;
    const line = lineOf(event);
    if (level === "bad" ? line.level !== "bad" : level === "warn" && line.level === "all") continue;
    if (wanted !== "" && !`${event.type} ${line.text}`.toLowerCase().includes(wanted)) continue;
    const step = typeof event["applied_step"] === "number" ? event["applied_step"] : event.step;
    lines.push(
      <li key={`${String(event["session_id"] ?? "")} ${event.event_seq ?? `x${i}`}`} data-level={line.level} data-seq={event.event_seq} data-type={event.type}>
        <span class="t">{typeof event.ts === "number" ? clockSeconds(event.ts) : ""}</span>
        <span class="t num">{typeof step === "number" ? count(step) : ""}</span>
        <span class="x"><b>{event.type}</b> {line.text}</span>
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
      <div class="dr-b">
        {lines.length === 0 ? (
          <p class="lead">{events.length === 0 ? "No event yet." : "No line matches."}</p>
        ) : (
          <ol class="log">{lines}</ol>
        )}
      </div>
    </>
  );
}
