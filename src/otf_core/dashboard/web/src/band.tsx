/** Band 1: the state sentence, facts, controls, receipts, progress. */

import type { ComponentChildren, JSX } from "preact";
import { resumeLine } from "./checkpoints";
import { Line } from "./copy";
import { age, count, plural } from "./format";
import { Glyph, Icon } from "./icons";
import { keyOf } from "./keys";
import { controlsNow, draftsOf, give, page, press } from "./page";
import { progressOf, share } from "./progress";
import { band, failedOf, stateOf, stepOf, switchState, totalSteps, type Control, type Piece, type View } from "./state";
import { isRead, store, type Held } from "./store";
import { Menu } from "./top";
import { reasonsOf } from "./turns";
import type { Session } from "./types";
import { nearest, nearestCheckpoints, outcome, paramName, unchanged, what, why } from "./words";

export function BandView({ view }: { view: View }): JSX.Element {
  const { state, tone, glyph, sentence, facts } = band(view);
  const { session } = view;
  const step = session === null ? null : stepOf(session, view.data);
  const all = controlsNow();
  return (
    <section
      class="state" aria-label="State of the run" data-tone={tone} data-state={state}
      data-step={step ?? undefined} data-empty={session === null ? "" : undefined}
    >
      <div class="s-line">
        <Glyph name={glyph} />
        <p class="sentence">{sentence.map(piece)}</p>
        {session?.exactness && <Exactness session={session} text={session.exactness} stale={view.link.state !== "up"} />}
      </div>
      <div class="f-row">
        <div class="facts">{facts.map((fact, i) => <span key={i}>{fact.map(piece)}</span>)}</div>
        {all.filter((one) => one.cmd === "park").map((control) => <ParkButton key="park" control={control} />)}
        {session !== null && <HoldSwitch view={view} session={session} />}
      </div>
      {session !== null && (
        <div class="s-row">
          <div class="ctls" role="group" aria-label="Controls">
            {all.filter((one) => one.cmd !== "park").map((control) => (
              <ControlView key={control.cmd === "resume" ? "pause" : control.cmd} control={control} />
            ))}
            <More controls={all} />
          </div>
          <Receipts view={view} />
        </div>
      )}
      {session !== null && <Refusal view={view} />}
      {session !== null && <Progress view={view} />}
    </section>
  );
}

function piece(one: Piece, i: number): ComponentChildren {
  switch (one.kind) {
    case "strong":
      return <b key={i}>{one.text}</b>;
    case "verb":
      return <span key={i} class="verb">{one.text}</span>;
    case "good":
      return <span key={i} class="good">{one.text}</span>;
    default:
      return one.text;
  }
}

/** "Resumes bit-exactly"; pressed, it says the rest. */
function Exactness({ session, text, stale }: { session: Session; text: string; stale: boolean }): JSX.Element {
  const exact = /^(bit-)?exact$/i.test(text.trim());
  const partly = /^(bit-)?exact/i.test(text);
  const reasons = reasonsOf(session);
  const many = reasons === 0 ? "" : `: ${plural(reasons, "reason")}`;
  const but = reasons === 0 ? "with exceptions" : plural(reasons, "exception");
  const said = exact ? "Resumes bit-exactly" : partly ? `Resumes exactly, ${but}` : `Resumes approximately${many}`;
  return (
    <button
      type="button" class="pill exact" data-tone={stale ? "mute" : exact ? "ok" : "warn"} title={text}
      aria-haspopup="dialog" aria-label={`Exactness: ${said}`} onClick={() => page.ask({ kind: "exactness" })}
    >
      <Icon name={exact ? "exact" : "inexact"} />
      {said}
    </button>
  );
}

/** Gives the GPU back while the run is held, or brings all of it back. */
function ParkButton({ control }: { control: Control }): JSX.Element {
  const { state, label, line } = control;
  return (
    <span class="hold" data-cmd="park" data-s={state}>
      <button
        type="button" class="btn sm" aria-describedby="line-park" aria-disabled={state === "off" ? "true" : undefined}
        aria-busy={state === "pending" ? "true" : undefined} onClick={() => press(control)}
      >
        {state === "pending" && <span class="spin" aria-hidden="true" />}{label}
      </button>
      <span class="ctl-n" id="line-park">{line}</span>
    </span>
  );
}

/** The parameter after_fit as a switch: on is "hold", off is "auto". It shows what was read back. */
function HoldSwitch({ view, session }: { view: View; session: Session }): JSX.Element | null {
  const param = session.params.find((one) => one.path === "after_fit");
  if (param === undefined || !(param.choices ?? []).includes("hold")) return null;
  const on = param.value === "hold";
  const { state, line } = switchState(view, param, store.receiptsOf(session.session_id), Date.now());
  return (
    <span class="hold" data-cmd="after_fit" data-s={state}>
      <button
        type="button" class="sw" role="switch" aria-checked={on} aria-describedby="line-after_fit"
        aria-disabled={state === "off" ? "true" : undefined} aria-busy={state === "pending" ? "true" : undefined}
        onClick={() => {
          if (state !== "off" && state !== "pending") give("set_param", { path: "after_fit", value: on ? "auto" : "hold" });
        }}
      >
        <i class="track" aria-hidden="true" />
        Hold at the end
      </button>
      <span class="ctl-n" id="line-after_fit">{line}</span>
    </span>
  );
}

/** Those that a phone keeps in its "⋯" menu, and those that a narrow window keeps there too. */
const FAR = new Set(["validate_now", "test_now", "fork", "merge", "rollback", "undo", "extend", "stop"]);
const FARTHER = new Set(["undo", "extend"]);
/** Between the two. */
const MID = new Set(["rollback"]);

function ControlView({ control }: { control: Control }): JSX.Element {
  const { cmd, label, state, line, hint = line } = control;
  const key = keyOf(cmd);
  const note = `line-${cmd}`;
  return (
    <div class={`ctl${FAR.has(cmd) ? " far" : ""}${FARTHER.has(cmd) ? " farther" : MID.has(cmd) ? " mid" : ""}`} data-cmd={cmd} data-s={state}>
      <button
        type="button"
        class={`btn${control.primary ? " pri" : ""}${cmd === "stop" ? " dan" : ""}`}
        aria-disabled={state === "off" ? "true" : undefined}
        aria-busy={state === "pending" ? "true" : undefined}
        aria-describedby={note}
        aria-keyshortcuts={key}
        onClick={() => press(control)}
      >
        {state === "pending" ? <span class="spin" aria-hidden="true" /> : <Icon name={cmd} />}
        {cmd === "save_ckpt" ? <span>{label.split(" ")[0]}<span class="hide-s"> {label.split(" ").slice(1).join(" ")}</span></span> : label}
        {key !== undefined && state !== "off" && <kbd aria-hidden="true">{key}</kbd>}
      </button>
      <span class="ctl-n" id={note} title={hint}>{line}</span>
    </div>
  );
}

/** What does not fit beside the others: on phones all but two, in narrow windows the rarest. */
function More({ controls }: { controls: Control[] }): JSX.Element {
  const open = page.menu === "verbs";
  return (
    <div class="ctl more menu-at">
      <button
        type="button" class="btn" data-menu="verbs" aria-label="More commands" aria-haspopup="true"
        aria-expanded={open} onClick={() => page.showMenu("verbs")}
      >
        <Icon name="more" />
      </button>
      {open && (
        <Menu label="More commands">
          {controls.filter((one) => FAR.has(one.cmd)).map((control) => (
            <button
              type="button" class={`item${FARTHER.has(control.cmd) ? "" : MID.has(control.cmd) ? " mid" : " near"}`} key={control.cmd} data-s={control.state}
              aria-disabled={control.state === "off" ? "true" : undefined}
              onClick={() => {
                page.menu = null;
                press(control);
                store.changed();
              }}
            >
              <Icon name={control.cmd} />
              <span>{control.label}</span>
              <span class="hint clip">{control.line}</span>
            </button>
          ))}
        </Menu>
      )}
    </div>
  );
}

/** The process is gone: only a command in a terminal lets it go on. */
const ENDED = new Set(["failed", "interrupted", "journal"]);

const MARK: Record<string, string> = { applied: "ok", refused: "no", unknown: "unknown" };

function Receipts({ view }: { view: View }): JSX.Element {
  const { session } = view;
  const up = view.link.state === "up";
  const shown = session === null ? [] : store.receiptsOf(session.session_id).slice(0, 2);
  const now = Date.now();
  const others = session === null ? [] : session.pending
    .filter((one) => !isRead(one.cmd) && !store.receipts.get(session.session_id)?.has(one.request_id))
    .map(waiting);
  const ended = ENDED.has(stateOf(view)) ? view.checkpoints.find((one) => one.path !== null) : undefined;
  const resume = failedOf(view.data).find((one) => one.resume !== null)?.resume ?? null;
  const running = progressOf(view.data);
  const list = [...others, ...shown].slice(0, ended === undefined ? 2 : 0);
  return (
    <div class="receipts" role="group" aria-label="Last commands">
      {ended !== undefined && (
        resume !== null ? <Line text={resume} hint="lets the run go on" /> : <Line text={ended.path === null ? "" : resumeLine(ended.path)} hint={`goes on from step ${count(ended.step)}, ${ended.exact === true ? "exactly" : "approximately"}: put it before the command that started the run`} />
      )}
      {list.length === 0 && ended === undefined && <p class="hint">No command yet. What is asked from anywhere shows here.</p>}
      {list.map((receipt) => (
        <button
          type="button" class="rc" key={receipt.id} data-id={receipt.id}
          data-s={up || receipt.settled_ms !== null ? receipt.state : "unsure"}
          onClick={() => page.ask({ kind: "receipt", id: receipt.id })}
        >
          {MARK[receipt.state] === undefined ? <span class="spin" aria-hidden="true" /> : <Icon name={MARK[receipt.state] ?? "ok"} />}
          <span class="what clip">{what(receipt, session?.params ?? [])}</span>
          <span class="out clip">{up && receipt.settled_ms === null && running?.request_id === receipt.id ? `running, ${share(running)}` : outcome(receipt, up, now)}</span>
          <span class="age">{age((now - (receipt.settled_ms ?? receipt.first_ms)) / 1000)}</span>
        </button>
      ))}
    </div>
  );

  /** A command that the trainer has pending and that this page has no receipt of: after a reload. */
  function waiting(one: { request_id: string; cmd: string; since_ts: number | null; waits_for: string | null }): Held {
    const first = one.since_ts === null ? now : (one.since_ts - store.skew_s) * 1000;
    return {
      id: one.request_id, cmd: one.cmd, payload: null, by: "elsewhere", sent_ts: one.since_ts,
      accepted_ts: one.since_ts, waits_for: one.waits_for, answered_ts: null, reply: null,
      state: "accepted", first_ms: first, settled_ms: null, mine: false,
    };
  }
}

function Refusal({ view }: { view: View }): JSX.Element | null {
  const { session } = view;
  if (session === null) return null;
  const receipt = store.receiptsOf(session.session_id).find(
    (one) => one.mine && one.state === "refused" && !store.dismissed.has(one.id),
  );
  if (receipt === undefined) return null;
  const fits = nearest(receipt);
  const path = String(receipt.payload?.["path"] ?? "");
  const param = session.params.find((one) => one.path === path);
  const kept = nearestCheckpoints(receipt);
  return (
    <div class="refusal">
      <Icon name="no" />
      <div class="grow">
        <p>
          <b>{what(receipt, session.params)} was refused.</b> {why(receipt)} {unchanged(receipt, session.params)}
        </p>
        {receipt.reply?.retry_after_s !== undefined && <p>It may work in {receipt.reply.retry_after_s} s.</p>}
      </div>
      <div class="acts">
        {kept.map(({ label, payload }) => (
          <button type="button" class="btn sm" key={label} onClick={() => page.ask({ kind: "rollback", to: payload })}>
            Roll back to {label}…
          </button>
        ))}
        {fits !== null && param !== undefined && (
          <button
            type="button" class="btn sm"
            onClick={() => {
              draftsOf(session.session_id).set(path, { text: String(fits) });
              page.open("steer");
            }}
          >
            Set {paramName(path).toLowerCase()} {fits}…
          </button>
        )}
        <button
          type="button" class="icb sm" aria-label="Dismiss"
          onClick={() => {
            store.dismissed.add(receipt.id);
            store.changed();
          }}
        >
          <Icon name="close" />
        </button>
      </div>
    </div>
  );
}

function Progress({ view }: { view: View }): JSX.Element {
  const { session, data } = view;
  const total = session === null ? null : totalSteps(session, data);
  const step = session === null ? null : stepOf(session, data);
  if (total === null || step === null) return <div class="prog" data-unknown="" />;
  const share = Math.min(1, step / total.steps);
  const starts = [...(data?.columns.epochStarts ?? [])].filter(([epoch]) => epoch > 0);
  // More ticks than pixels to hold them apart say nothing.
  const every = Math.max(1, Math.ceil((starts.length * total.steps) / Math.max(1, step) / 120));
  return (
    <div
      class="prog" role="progressbar" aria-label="Training progress" aria-valuemin={0}
      aria-valuemax={total.steps} aria-valuenow={Math.min(step, total.steps)}
    >
      <i style={{ width: `${(share * 100).toFixed(2)}%` }} />
      {starts.filter(([epoch]) => epoch % every === 0).map(([epoch, start]) => (
        <u key={epoch} style={{ left: `${((100 * (start - 1)) / total.steps).toFixed(2)}%` }} />
      ))}
    </div>
  );
}

