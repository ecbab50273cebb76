/** The drawer Steer: each value as the trainer read it back, what is typed, and what became of it. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Changes } from "./changes";
import { isDict } from "./columns";
import { useComing } from "./coming";
import { brief, count, plural, setting } from "./format";
import { applyDrafts, draftedChanges, draftsOf, give, giveBack, page } from "./page";
import { Plan } from "./plan";
import type { Coming } from "./plans";
import { closed, parkedOf, stateOf, stepOf, type View } from "./state";
import { answerFor, asked, changesOf, readDraft, receiptFor, sections, whole, type Draft } from "./steering";
import { store, type Held } from "./store";
import type { Param, Session } from "./types";
import { nearest, onRanks, paramName, waits, why } from "./words";

export function SteerTools(): JSX.Element {
  return (
    <div class="seg" role="group" aria-label="What is shown">
      {(["values", "changes"] as const).map((one) => (
        <button
          type="button" key={one} aria-pressed={page.steer === one}
          onClick={() => {
            page.steer = one;
            store.changed();
          }}
        >
          {one === "values" ? "Values" : "Changes"}
        </button>
      ))}
    </div>
  );
}

export function Steer({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const shut = closed(view) ?? (stateOf(view) === "stalled" ? "no step end" : null);
  const parked = shut ?? (parkedOf(session) === null ? null : "parked");
  if (page.steer === "changes") return <Changes view={view} session={session} shut={shut} fixed={parked} />;
  return <Values view={view} session={session} shut={parked} />;
}

function Values({ view, session, shut }: { view: View; session: Session; shut: string | null }): JSX.Element {
  const typed = draftsOf(session.session_id);
  /** What is typed as the step to apply at; null is the next one. */
  const [when, setWhen] = useState<string | null>(null);
  const [filter, setFilter] = useState("");
  const { params } = session;
  const step = stepOf(session, view.data) ?? 0;
  const chosen = when === null ? undefined : later(when, step);
  const ready = draftedChanges(session, step);
  const coming = useComing(session, ready, chosen ?? undefined, shut !== null);
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
  const apply = (): void => {
    if (chosen !== null) applyDrafts(chosen);
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      apply();
    }
  };
  const wanted = filter.trim().toLowerCase();
  const fits = (param: Param): boolean => `${param.path} ${paramName(param.path)}`.toLowerCase().includes(wanted);
  const receipts = store.receiptsOf(session.session_id);
  const row = (param: Param): JSX.Element => (
    <ParamRow
      key={param.path} param={param} typed={typed} view={view} step={step} coming={coming}
      receipt={receiptFor(receipts, param.path)} shut={shut} apply={apply}
    />
  );
  return (
    <>
      {params.length > MANY && (
        <div class="dr-t"><input class="inp grow" type="search" placeholder="Filter" aria-label="Filter the values" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} /></div>
      )}
      <div class="dr-b" onKeyDown={onKey}>
        {shut !== null && <p class="lead warn">{SHUT[shut] ?? `Not possible now: ${shut}.`}</p>}
        {sections(params.filter(fits)).map(([name, rows]) => (
          name === "" ? rows.map(row) : (
            <details class="prs" key={name} open={wanted !== "" || rows.length <= FEW || rows.some(({ path }) => typed.has(path))}>
              <summary>{name} <span class="hint">{count(rows.length)}</span></summary>
              {rows.map(row)}
            </details>
          )
        ))}
      </div>
      <div class="dr-f">
        {coming?.refused != null && <p class={`coming ${ready.length > 0 ? "bad" : "hint"}`}>{coming.refused}</p>}
        <span class="grow">
          {typed.size === 0 ? <span class="hint">No change. Values are as the trainer read them back.</span> : <><b>{plural(typed.size, "change")}</b> not sent</>}
          {shut !== null && typed.size > 0 && <span class="hint"> — {shut}</span>}
        </span>
        {typed.size > 0 && shut === null && session.protocol !== "legacy" && (
          <span class="at">
            <label>
              apply at{" "}
              <select class="inp" value={when === null ? "next" : "step"} onChange={(event) => setWhen(event.currentTarget.value === "next" ? null : String(step + 100))}>
                <option value="next">next step</option>
                <option value="step">step…</option>
              </select>
            </label>
            {when !== null && <Steps label="Step to apply at" value={when} bad={chosen === null} type={setWhen} />}
          </span>
        )}
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
          type="button" class="btn pri" aria-disabled={ready.length === 0 || shut !== null || chosen === null ? "true" : undefined}
          onClick={apply}
        >
          Apply{ready.length > 0 ? ` ${plural(ready.length, "change")}` : ""}
          <kbd aria-hidden="true">Ctrl ↵</kbd>
        </button>
      </div>
    </>
  );
}

/** More values than this can be filtered; a section of more is closed at first. */
const MANY = 12;
const FEW = 8;

function Steps({ label, value, bad, type, off = false }: { label: string; value: string; bad: boolean; type: (text: string) => void; off?: boolean }): JSX.Element {
  return (
    <input
      class="inp num" type="text" inputMode="numeric" autocomplete="off" aria-label={label} value={value} disabled={off}
      aria-invalid={bad ? "true" : undefined} onInput={(event) => type(event.currentTarget.value)}
    />
  );
}

const SHUT: Record<string, string> = {
  "no step end": "The run is stalled: changes would wait for a step that does not come.",
  offline: "No connection: nothing can be changed, and nothing that is pressed is kept.",
  "watching only": "This link watches only.",
  parked: "The run is parked: bring it back to change its values.",
};

/** A step that is still to come; null where none is typed. */
function later(text: string, now: number): number | null {
  const step = whole(text);
  return step !== null && step > now ? step : null;
}

interface RowState {
  s: "idle" | "edited" | "pending" | "applied" | "refused";
  text: string;
}

/** As it was read back; of what a schedule writes anew at every step four figures are enough. */
function current(param: Param): string {
  return param.owner === "scheduler" && param.script === undefined ? brief(param.value) : setting(param.value);
}

/** The same as it would be typed. */
function written(param: Param): string {
  return Array.isArray(param.value) || param.owner === "scheduler" ? current(param) : String(param.value ?? "");
}

function rowState(param: Param, draft: Draft | undefined, receipt: Held | undefined, view: View, step: number): RowState {
  const now = current(param);
  if (draft !== undefined) {
    const reading = readDraft(param, draft, step);
    if (!reading.ok) return { s: "refused", text: `${now} → ${draft.text || "nothing"}, not possible: ${reading.reason}` };
    return { s: "edited", text: `${now} → ${asked(reading.value)}, not sent` };
  }
  if (receipt !== undefined && (receipt.state === "sent" || receipt.state === "accepted")) {
    const change = changesOf(receipt).find((one) => one["path"] === param.path) ?? {};
    const wait = view.link.state === "up" ? `sent, waiting for ${waits(receipt.waits_for)}` : "sent, no answer — unknown until reconnected";
    return { s: "pending", text: `${now} → ${asked(change)}, ${wait}` };
  }
  if (param.pending) {
    const at = param.pending.at_step === null ? (param.takes_effect ?? "the trainer") : `step ${count(param.pending.at_step)}`;
    return { s: "pending", text: `${now} → ${setting(param.pending.value)}, waiting for ${at}` };
  }
  if (receipt?.state === "refused") return { s: "refused", text: `refused: ${why(receipt)}` };
  if (receipt?.state === "unknown") return { s: "refused", text: "no answer, and the dashboard has no record of it" };
  const data = receipt?.reply?.data;
  if (receipt?.state === "applied" && isDict(data)) {
    const own = answerFor(receipt, param.path) ?? data;
    // Set anew since, or put back: then it is history. The session's values come a moment after the answer.
    const other = param.owner !== "scheduler" && setting(param.value) !== setting(own["new"]);
    if ((other || Number(data["applied_step"]) > step) && Date.now() - (receipt.settled_ms ?? 0) > 6_000) return { s: "idle", text: "" };
    const at = typeof data["applied_step"] === "number" ? ` at step ${count(data["applied_step"])}` : "";
    const until = typeof own["until"] === "number" ? `, until step ${count(own["until"])}` : "";
    return { s: "applied", text: `applied${at}${onRanks(data)}, read back ${setting(own["new"])}${until}` };
  }
  return { s: "idle", text: "" };
}

function ParamRow({ param, typed, receipt, view, shut, step, coming, apply }: {
  param: Param; typed: Map<string, Draft>; receipt: Held | undefined; view: View; shut: string | null; step: number; coming: Coming | null; apply: () => void;
}): JSX.Element {
  const row = useRef<HTMLDivElement>(null);
  const refused = receipt?.state === "refused" ? receipt.id : null;
  useEffect(() => {
    if (refused !== null) row.current?.scrollIntoView({ block: "nearest" });
  }, [refused]);
  const session = view.session as Session;
  const draft = typed.get(param.path);
  const state = rowState(param, draft, receipt, view, step);
  const id = `param-${param.path}`;
  const name = paramName(param.path);
  const off = shut !== null || state.s === "pending";
  const fits = draft === undefined && receipt?.state === "refused" ? nearest(receipt) : null;
  const put = (more: Partial<Draft>): void => {
    const next = { ...draft, text: draft?.text ?? written(param), ...more };
    if (next.text === written(param) && !next.until && !next.over) typed.delete(param.path);
    else typed.set(param.path, next);
    store.changed();
  };
  const type = (text: string): void => put({ text });
  const effect = param.takes_effect ?? "next step";
  const open = receipt?.state === "accepted" && receipt.waits_for?.startsWith("step ") === true;
  return (
    <div class="pr" data-s={state.s} data-path={param.path} ref={row}>
      <div class="pr-1">
        <label for={id} title={param.path}>{name}</label>
        <span class="cur">
          <b data-current={JSON.stringify(param.value)}>{current(param) || "none"}</b>
          {param.unit ? ` ${param.unit}` : ""}
          {param.in_use !== undefined && param.in_use !== param.value && ` from the ${effect}, ${setting(param.in_use)} until then`}
          {param.script !== undefined
            ? ` set, ${setting(param.script)} by the script`
            : param.owner === "scheduler" ? " on the schedule" : ""}
        </span>
      </div>
      <Editor id={id} name={name} param={param} draft={draft?.text} off={off} type={type} apply={apply} invalid={draft !== undefined && !readDraft(param, draft, step).ok} />
      {draft !== undefined && !off && session.protocol !== "legacy" && typeof param.value !== "boolean" && <Lasting param={param} draft={draft} put={put} step={step} />}
      <div class="pr-3">
        <span>{[boundsOf(param), effect === "next step" ? "" : `takes effect ${effect.startsWith("next") ? `at the ${effect}` : effect}`].filter(Boolean).join(", ")}</span>
        <span class="st" id={`${id}-st`}>{state.text}</span>
      </div>
      {coming !== null && (param.path === "lr" || draft !== undefined) && <Plan path={param.path} coming={coming} lines={store.linesOf(session)} />}
      {fits !== null && (
        <button type="button" class="btn sm" onClick={() => type(String(fits))}>Use {fits}</button>
      )}
      {open && shut === null && <button type="button" class="btn sm" onClick={() => give("undo", { request_id: receipt.id })}>Withdraw</button>}
      {param.script !== undefined && !off && draft === undefined && (
        <button type="button" class="btn sm" onClick={() => giveBack(session.session_id, param.path)}>Give back to the script</button>
      )}
    </div>
  );
}

/** How a change comes and how long it lasts: over so many steps, until a step, on the schedule or held. */
function Lasting({ param, draft, put, step }: { param: Param; draft: Draft; put: (more: Partial<Draft>) => void; step: number }): JSX.Element | null {
  const ramps = param.kind === "float" && ["optimizer", "scheduler"].includes(param.owner ?? "");
  const { over = "", until = "" } = draft;
  if (!ramps) return null;
  return (
    <div class="pr-2 lasts">
      <span><label>over <Steps label={`Steps over which ${param.path} goes there`} value={over} bad={over !== "" && (whole(over) ?? 0) < 1} type={(text) => put({ over: text })} /> steps</label></span>
      <span><label>until step <Steps label={`Step until which ${param.path} holds`} value={until} bad={until !== "" && later(until, step) === null} type={(text) => put({ until: text })} /></label></span>
      {over !== "" ? (
        <select class="inp" aria-label={`Shape of the way of ${param.path}`} value={draft.shape ?? "linear"} onChange={(event) => put({ shape: event.currentTarget.value })}>
          <option value="linear">linear</option><option value="cosine">cosine</option>
        </select>
      ) : param.owner === "scheduler" && (
        <select class="inp" aria-label={`What the schedule does with ${param.path}`} value={draft.mode ?? "scale"} onChange={(event) => put({ mode: event.currentTarget.value })}>
          <option value="scale">scales it</option><option value="override">holds</option>
        </select>
      )}
    </div>
  );
}

function Editor({ id, name, param, draft, off, type, apply, invalid }: {
  id: string; name: string; param: Param; draft: string | undefined; off: boolean; invalid: boolean; apply: () => void;
  type: (text: string) => void;
}): JSX.Element {
  const choices = param.kind === "bool" ? [true, false] : (param.choices ?? []);
  if (choices.length > 0) {
    return (
      <div class="pr-2 one">
        <select
          id={id} class="inp" disabled={off} value={draft ?? String(param.value)} aria-describedby={`${id}-st`}
          onChange={(event) => type(event.currentTarget.value)}
        >
          {choices.map((choice) => <option key={String(choice)} value={String(choice)}>{choice === true ? "on" : choice === false ? "off" : setting(choice)}</option>)}
        </select>
      </div>
    );
  }
  const words = param.kind === "str";
  const numbers = Array.isArray(param.value) ? param.value : [param.value];
  const first = numbers.find((value): value is number => typeof value === "number") ?? 0;
  const shown = draft === undefined ? first : Number(draft);
  const slide = words ? null : slider(param, first);
  return (
    <div class={`pr-2${words ? " all" : slide === null ? " one" : ""}`}>
      {slide !== null && (
        <input
          type="range" min="0" max="1000" step="1" disabled={off} aria-label={`${name}, slider`}
          aria-valuetext={setting(shown)} value={slide.place(Number.isFinite(shown) ? shown : first)}
          onInput={(event) => type(String(slide.value(Number(event.currentTarget.value))))}
        />
      )}
      <input
        id={id} class={`inp${words ? "" : " num"}`} type="text" inputMode={words ? "text" : "decimal"} autocomplete="off" spellcheck={false} disabled={off}
        aria-invalid={invalid ? "true" : undefined} aria-describedby={`${id}-st`}
        value={draft ?? written(param)}
        onInput={(event) => type(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) apply();
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
