/** The drawer Steer: each value as the trainer read it back, what is typed, and what became of it. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { isDict } from "./columns";
import { count, plural, setting } from "./format";
import { applyDrafts, draftsOf, giveBack, readDraft, receiptFor } from "./page";
import { LrPlan } from "./plan";
import { closed, stateOf, stepOf, type View } from "./state";
import { store, type Held } from "./store";
import type { Param, Session } from "./types";
import { nearest, paramName, waits, why } from "./words";

/** The learning rate first, the rest in the trainer's order, single groups last. */
function inOrder(params: Param[]): Param[] {
  const rank = (param: Param): number => (param.path === "lr" ? 0 : param.path.startsWith("optim.") ? 2 : 1);
  return [...params].sort((a, b) => rank(a) - rank(b));
}

export function Steer({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const typed = draftsOf(session.session_id);
  /** What is typed as the step to apply at; null is the next one. */
  const [when, setWhen] = useState<string | null>(null);
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
  const step = stepOf(session, view.data);
  const chosen = when === null ? undefined : wholeStep(when, step);
  const apply = (): void => {
    if (chosen !== null) applyDrafts(chosen);
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      apply();
    }
  };
  return (
    <>
      <div class="dr-b" onKeyDown={onKey}>
        {shut !== null && <p class="lead warn">{SHUT[shut] ?? `Not possible now: ${shut}.`}</p>}
        {params.map((param) => (
          <ParamRow
            key={param.path} param={param} typed={typed} view={view}
            receipt={receiptFor(receipts, param.path)} shut={shut} apply={apply}
          />
        ))}
      </div>
      <div class="dr-f">
        <span class="grow">
          {typed.size === 0 ? <span class="hint">No change. Values are as the trainer read them back.</span> : <><b>{plural(typed.size, "change")}</b> not sent</>}
          {shut !== null && typed.size > 0 && <span class="hint"> — {shut}</span>}
        </span>
        {typed.size > 0 && shut === null && session.protocol !== "legacy" && (
          <span class="at">
            <label>
              apply at{" "}
              <select class="inp" value={when === null ? "next" : "step"} onChange={(event) => setWhen(event.currentTarget.value === "next" ? null : String((step ?? 0) + 100))}>
                <option value="next">next step</option>
                <option value="step">step…</option>
              </select>
            </label>
            {when !== null && (
              <input
                class="inp num" type="text" inputMode="numeric" autocomplete="off" aria-label="Step to apply at" value={when}
                aria-invalid={chosen === null ? "true" : undefined} onInput={(event) => setWhen(event.currentTarget.value)}
              />
            )}
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

const SHUT: Record<string, string> = {
  "no step end": "The run is stalled: changes would wait for a step that does not come.",
  offline: "No connection: nothing can be changed, and nothing that is pressed is kept.",
  "watching only": "This link watches only.",
};

/** A step that is still to come; null where none is typed. */
function wholeStep(text: string, now: number | null): number | null {
  const step = Number(text.trim().replaceAll(",", ""));
  return text.trim() !== "" && Number.isInteger(step) && step > (now ?? 0) ? step : null;
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

function ParamRow({ param, typed, receipt, view, shut, apply }: {
  param: Param; typed: Map<string, string>; receipt: Held | undefined; view: View; shut: string | null; apply: () => void;
}): JSX.Element {
  const row = useRef<HTMLDivElement>(null);
  const refused = receipt?.state === "refused" ? receipt.id : null;
  useEffect(() => {
    if (refused !== null) row.current?.scrollIntoView({ block: "nearest" });
  }, [refused]);
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
    <div class="pr" data-s={state.s} data-path={param.path} ref={row}>
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
      <Editor id={id} name={name} param={param} draft={draft} off={off} type={type} apply={apply} invalid={draft !== undefined && !readDraft(param, draft).ok} />
      <div class="pr-3">
        <span>{boundsOf(param)}</span>
        <span class="st" id={`${id}-st`}>{state.text}</span>
      </div>
      {param.path === "lr" && <LrPlan view={view} session={view.session as Session} param={param} proposed={proposedOf(param, draft, receipt)} />}
      {fits !== null && (
        <button type="button" class="btn sm" onClick={() => type(String(fits))}>Use {fits}</button>
      )}
      {param.script !== undefined && !off && draft === undefined && (
        <button type="button" class="btn sm" onClick={() => giveBack((view.session as Session).session_id, param.path)}>Give back to the script</button>
      )}
    </div>
  );
}

/** The number that is typed, or sent and not answered yet. */
function proposedOf(param: Param, draft: string | undefined, receipt: Held | undefined): number | null {
  if (draft !== undefined) {
    const reading = readDraft(param, draft);
    return reading.ok && typeof reading.value === "number" ? reading.value : null;
  }
  const sent = receipt?.state === "sent" || receipt?.state === "accepted" ? receipt.payload?.["value"] : null;
  return typeof sent === "number" ? sent : null;
}

function Editor({ id, name, param, draft, off, type, apply, invalid }: {
  id: string; name: string; param: Param; draft: string | undefined; off: boolean; invalid: boolean; apply: () => void;
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
