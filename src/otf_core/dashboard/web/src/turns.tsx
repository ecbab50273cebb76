/** The dialogs of exact state: roll back, extend, and what the run promises of its resume. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Box, CheckpointOption, Cli } from "./box";
import { KINDS } from "./checkpoints";
import { age, count, plural, span } from "./format";
import { controlsNow, give, page } from "./page";
import { nameOf, speedOf, stepOf, type View } from "./state";
import { store } from "./store";
import type { Checkpoint, Dict, Session } from "./types";
import { cli, target, totals } from "./words";

/** Whether a command can be given now, else why not. */
function barred(cmd: string): string | null {
  const control = controlsNow().find((one) => one.cmd === cmd);
  if (control === undefined) return "no run";
  return control.state === "off" || control.state === "pending" ? control.line : null;
}

/** Cancel and the button that does it. */
function Buttons({ cmd, payload, label, why }: {
  cmd: string; payload: Dict | null; label: string; why: string | null;
}): JSX.Element {
  const shut = payload === null || why !== null;
  return (
    <>
      <button type="button" class="btn" data-first onClick={() => page.ask(null)}>Cancel</button>
      <button
        type="button" class="btn pri" aria-disabled={shut ? "true" : undefined}
        onClick={() => {
          if (shut) return;
          page.ask(null);
          give(cmd, payload);
        }}
      >
        {label}
      </button>
    </>
  );
}

/** What is typed as a count of something, null if it is none. */
function whole(text: string): number | null {
  const value = Number(text.trim().replaceAll(",", ""));
  return text.trim() !== "" && Number.isInteger(value) && value >= 0 ? value : null;
}

export function RollBack({ view, session, to }: { view: View; session: Session; to: Dict | null }): JSX.Element {
  const now = stepOf(session, view.data);
  const kept = view.checkpoints;
  const first = kept.find((one) => now === null || (one.step ?? 0) < now) ?? kept[0];
  const asked = kept.find((one) => one.id === to?.["checkpoint"] || (to?.["step"] !== undefined && one.step === to["step"]));
  const [chosen, choose] = useState<string | null>(to === null ? (first?.id ?? null) : (asked?.id ?? null));
  const [typed, type] = useState(typeof to?.["step"] === "number" ? String(to["step"]) : "");
  const step = whole(typed);
  const still = kept.some((one) => one.id === chosen);
  const payload: Dict | null = chosen !== null ? (still ? { checkpoint: chosen } : null) : step === null ? null : { step };
  const why = barred("rollback");
  const goal = kept.find((one) => one.id === chosen)?.step ?? step;
  return (
    <Box
      title={`Roll back ${nameOf(session)}`}
      foot={
        <>
          <Cli line={payload === null ? "" : cli("rollback", payload, nameOf(session))} />
          <Buttons
            cmd="rollback" payload={payload} why={why}
            label={goal === null ? "Roll back" : `Roll back to ${target({ step: goal })}`}
          />
        </>
      }
    >
      <p class="lead">
        {now !== null && <>The run is at step <b>{count(now)}</b>. </>}
        It goes back in place: weights, optimizer, data and random numbers as they were. What came after
        stays in the journal; no checkpoint is deleted.
        {why !== null && <b> Not possible now: {why}.</b>}
      </p>
      <div class="opts" role="radiogroup" aria-label="Checkpoint">
        {kept.map((one) => (
          <Kept
            key={one.id} one={one} now={now} speed={speedOf(session)} now_s={view.now_s} checked={chosen === one.id}
            pick={() => choose(one.id)}
          />
        ))}
      </div>
      <label class="opt">
        <input type="radio" name="rollback" checked={chosen === null} onChange={() => choose(null)} />
        <span class="grow"><b>Another step</b><span class="hint">One that has a checkpoint.</span></span>
        <input
          class="inp num" type="text" inputMode="numeric" autocomplete="off" aria-label="Step" value={typed}
          aria-invalid={typed !== "" && step === null ? "true" : undefined}
          onInput={(event) => {
            type(event.currentTarget.value);
            choose(null);
          }}
        />
      </label>
    </Box>
  );
}

function Kept({ one, now, speed, now_s, checked, pick }: {
  one: Checkpoint; now: number | null; speed: number | null; now_s: number; checked: boolean; pick: () => void;
}): JSX.Element {
  const said = [KINDS[one.kind ?? ""] ?? one.kind, one.ts === null ? null : `${age(now_s - one.ts)} ago`, cost(one.step, now, speed)];
  return <CheckpointOption one={one} name="rollback" said={said} checked={checked} pick={pick} />;
}

/** "undoes 220 steps (14 s)". */
function cost(step: number | null, now: number | null, speed: number | null): string | null {
  if (step === null || now === null) return null;
  const steps = now - step;
  if (steps === 0) return "where it is now";
  const time = speed === null ? "" : ` (${span(Math.abs(steps) / speed)})`;
  return steps > 0 ? `undoes ${plural(steps, "step")}${time}` : `${plural(-steps, "step")} ahead${time}`;
}

type Unit = "max_epochs" | "max_steps";
const UNITS: readonly [Unit, string][] = [["max_epochs", "Epochs"], ["max_steps", "Steps"]];

export function Extend({ view, session }: { view: View; session: Session }): JSX.Element {
  const limits: Record<Unit, number | null> = { max_epochs: limit(session.max_epochs), max_steps: limit(session.max_steps) };
  const [unit, choose] = useState<Unit>(limits.max_epochs === null && limits.max_steps !== null ? "max_steps" : "max_epochs");
  const [typed, type] = useState<Record<Unit, string>>({
    max_epochs: limits.max_epochs === null ? "" : String(limits.max_epochs + 1),
    max_steps: limits.max_steps === null ? "" : String(limits.max_steps + Math.max(1, Math.round(limits.max_steps / 10))),
  });
  const total = whole(typed[unit]);
  const step = stepOf(session, view.data) ?? 0;
  const least = unit === "max_steps" ? step + 1 : (session.epoch ?? 0) + 1;
  const payload: Dict | null = total === null || total < least ? null : { [unit]: total };
  const why = barred("extend");
  return (
    <Box
      title={`Extend ${nameOf(session)}`}
      foot={
        <>
          <Cli line={payload === null ? "" : cli("extend", payload, nameOf(session))} />
          <Buttons cmd="extend" payload={payload} why={why} label={payload === null ? "Extend" : `Extend to ${totals(payload) ?? ""}`} />
        </>
      }
    >
      <p class="lead">
        The new total, of all that is trained. It is as if the run had always been meant to be that long, unless
        something in its code has read the limit; a schedule of fixed length is refused.
        {why !== null && <b> Not possible now: {why}.</b>}
      </p>
      {UNITS.map(([key, label]) => (
        <label class="opt" key={key}>
          <input type="radio" name="extend" checked={unit === key} onChange={() => choose(key)} />
          <span class="grow">
            <b>{label}</b>
            <span class="hint">
              {limits[key] === null ? "no limit now" : `now ${count(limits[key])}`}
              {unit === key && payload === null && `; a whole number from ${count(least)} on is needed`}
            </span>
          </span>
          <input
            class="inp num" type="text" inputMode="numeric" autocomplete="off" aria-label={`Total of ${label.toLowerCase()}`}
            value={typed[key]} aria-invalid={unit === key && payload === null ? "true" : undefined}
            onInput={(event) => {
              type({ ...typed, [key]: event.currentTarget.value });
              choose(key);
            }}
          />
        </label>
      ))}
    </Box>
  );
}

function limit(value: number | null): number | null {
  return value !== null && value > 0 ? value : null;
}

/** What the run promises: "exact", "exact except …", "not exact because …", and the reasons one by one. */
export function Exactness({ view, session }: { view: View; session: Session }): JSX.Element {
  const told = view.data?.events.findLast((event) => event.type === "exactness");
  const reasons = Array.isArray(told?.["reasons"]) ? told["reasons"].map(String) : [];
  const text = session.exactness ?? "";
  return (
    <Box
      title="Exactness"
      foot={<><Cli line="otf doctor" /><button type="button" class="btn" data-first onClick={() => page.ask(null)}>Close</button></>}
    >
      <p class="lead">What a resume, a rollback or a fork of {nameOf(session)} brings back:</p>
      <p class="said"><b>{text}</b></p>
      {reasons.length > 0 && <ul class="reasons">{reasons.map((reason) => <li key={reason}>{reason}</li>)}</ul>}
      <p class="hint">
        {reasons.length === 0
          ? "Exact means bit for bit: weights, optimizer, random numbers, data and logged values of every step."
          : "What is not on this list comes back bit for bit."}
      </p>
    </Box>
  );
}

/** How many things are not repeatable. */
export function reasonsOf(session: Session): number {
  const told = store.toldOf(session).events.findLast((event) => event.type === "exactness");
  return Array.isArray(told?.["reasons"]) ? told["reasons"].length : 0;
}
