/** The menu at one step of one run: what its values were, and what can be done there. */

import "./spot.css";
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Box, Cli } from "./box";
import { count, plural, sig, span } from "./format";
import { Icon, Tag } from "./icons";
import { controlsNow, give, page } from "./page";
import type { Drawn, Scene } from "./scene";
import { closed, speedOf, stepOf, type View } from "./state";
import { runKey, store } from "./store";
import type { Checkpoint, Session } from "./types";
import { shared } from "./view";
import { linkTo } from "./where";

interface Act {
  name: string;
  icon: string;
  text: string;
  /** What it costs or means, or why it cannot be. */
  said: string;
  key: string;
  shut: boolean;
  act: () => void;
}

/** The newest checkpoint of a run at a step or before it. */
export function checkpointBelow(checkpoints: readonly Checkpoint[], step: number): Checkpoint | null {
  return checkpoints.filter((one) => one.step !== null && one.step <= step).reduce<Checkpoint | null>(
    (best, one) => (best === null || (one.step as number) > (best.step as number) ? one : best), null,
  );
}

/** "checkpoint 6,000 + 1,420 steps (93 s), bit-exact". */
export function costOf(found: Checkpoint, step: number, speed: number | null): string {
  const steps = step - (found.step as number);
  const exact = found.exact === true ? "bit-exact" : "approximate";
  if (steps === 0) return `checkpoint ${count(found.step)}, nothing to redo, ${exact}`;
  const time = speed === null ? "" : ` (${span(steps / speed)})`;
  return `checkpoint ${count(found.step)} + ${plural(steps, "step")}${time}, ${exact}`;
}

function actsOf(view: View, run: Drawn, step: number): Act[] {
  const session = view.session as Session;
  const own = run.key === runKey(session);
  const checkpoints = own ? view.checkpoints : (store.runOf(run.session)?.checkpoints ?? []);
  const found = checkpointBelow(checkpoints, step);
  const rollback = controlsNow().find((one) => one.cmd === "rollback");
  const why = !own ? (run.session.connected ? `press ${run.name} in the legend first` : `${run.name} is not training`)
    : found === null ? (checkpoints.length === 0 ? "no checkpoint is kept" : `no checkpoint at or below, first at step ${count(Math.min(...checkpoints.map((one) => one.step ?? Infinity)))}`)
      : rollback === undefined ? "no trainer" : rollback.state === "off" || rollback.state === "pending" ? rollback.line : null;
  const trainer = forker(run.session);
  const noFork = view.link.state !== "up" ? "offline" : trainer === null ? "no trainer of this project is attached" : null;
  const shut = own ? closed(view) : run.session.connected ? null : "no trainer";
  return [
    {
      name: "rollback", icon: "rollback", text: "Roll back here…", key: "R", shut: why !== null,
      said: why !== null ? `not possible: ${why}` : costOf(found as Checkpoint, step, speedOf(session)),
      act: () => page.ask({ kind: "rollback", to: { checkpoint: (found as Checkpoint).id } }),
    },
    {
      name: "fork", icon: "fork", text: "Fork from here…", key: "F", shut: noFork !== null,
      said: noFork !== null ? `not possible: ${noFork}` : found === null ? "a new run; from where it is now" : `a new run, from ${costOf(found, step, null)}`,
      act: () => page.ask({
        kind: "fork",
        from: { step, ...(run.session.run_id === null ? {} : { run_id: run.session.run_id }), ...(found === null ? {} : { checkpoint: found.id }) },
      }),
    },
    { name: "samples", icon: "samples", text: "Show the samples", key: "D", shut: false, said: "with their losses, as scanned last", act: () => page.open("samples") },
    {
      name: "note", icon: "note", text: "Add a note…", key: "N", shut: shut !== null || !own,
      said: shut !== null ? `not possible: ${shut}` : own ? "" : `not possible: press ${run.name} in the legend first`,
      act: () => page.ask({ kind: "note", step }),
    },
    { name: "link", icon: "link", text: "Copy link to this step", key: "L", shut: false, said: "", act: () => void copy(linkTo(run.key, step)) },
  ];
}

/** A session with a trainer that can fork a run: its own, else one of the project. */
function forker(session: Session): Session | null {
  const fits = (one: Session): boolean => one.connected && one.project === session.project && (one.capabilities.length === 0 || one.capabilities.includes("fork"));
  return [...store.sessions.values()].find(fits) ?? null;
}

async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not allowed, or a page without a secure context: it is in the address instead.
  }
  history.replaceState(history.state, "", text);
}

export function SpotMenu({ view, scene }: { view: View; scene: Scene }): JSX.Element | null {
  const { spot } = shared;
  const run = spot === null ? undefined : scene.runs.find((one) => one.key === spot.run);
  return spot === null || run === undefined ? null : <Open key={`${spot.run} ${spot.step}`} view={view} run={run} />;
}

function close(back: boolean): void {
  const opener = shared.spot?.opener;
  shared.openSpot(null);
  if (back && (opener instanceof HTMLElement || opener instanceof SVGElement)) opener.focus();
  else shared.setCursor(null);
}

function Open({ view, run }: { view: View; run: Drawn }): JSX.Element {
  const spot = shared.spot as NonNullable<typeof shared.spot>;
  const box = useRef<HTMLDivElement>(null);
  const acts = actsOf(view, run, spot.step);
  useLayoutEffect(() => {
    const menu = box.current;
    if (menu === null) return;
    const { width, height } = menu.getBoundingClientRect();
    const right = spot.x + 12 + width > innerWidth - 8 ? spot.x - width - 12 : spot.x + 12;
    menu.style.left = `${Math.max(8, Math.min(right, innerWidth - width - 8))}px`;
    menu.style.top = `${Math.max(8, Math.min(spot.y - 24, innerHeight - height - 8))}px`;
  }, [spot]);
  useEffect(() => {
    box.current?.querySelector<HTMLElement>("[role=menuitem]")?.focus({ preventScroll: true });
    const outside = (event: PointerEvent): void => {
      if (event.target instanceof Node && box.current?.contains(event.target)) return;
      close(false);
    };
    addEventListener("pointerdown", outside, true);
    return () => removeEventListener("pointerdown", outside, true);
  }, []);
  const onKey = (event: KeyboardEvent): void => {
    const items = [...(box.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    const at = items.indexOf(document.activeElement as HTMLElement);
    const stride = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    event.stopPropagation();
    if (stride !== 0) items[(at + stride + items.length) % items.length]?.focus();
    else if (event.key === "Home" || event.key === "End") items.at(event.key === "Home" ? 0 : -1)?.focus();
    else if (event.key === "Escape" || event.key === "Tab") close(true);
    else {
      const act = acts.find((one) => one.key.toLowerCase() === event.key.toLowerCase());
      if (act === undefined || event.ctrlKey || event.metaKey) return;
      take(act);
    }
    event.preventDefault();
  };
  const value = (key: string): string => {
    const found = run.lines.within(key, spot.step);
    return found === null ? "not yet" : sig(found.value);
  };
  const epoch = [...run.lines.epochs()].filter(([, at]) => at <= spot.step).map(([one]) => one);
  return (
    <div class="spot" role="menu" aria-label={`Step ${count(spot.step)} of ${run.name}`} ref={box} onKeyDown={onKey}>
      <div class="spot-h">
        <p><Tag letter={run.letter} /> <b>{run.name}, step {count(spot.step)}</b></p>
        <p>train loss {value("loss")} · val loss {value("val_loss")}{epoch.length > 0 && ` · epoch ${count(Math.max(...epoch))}`}</p>
        {spot.told.map((line) => <p key={line} class="told">{line}</p>)}
      </div>
      {acts.map((one) => (
        <button
          type="button" class="mi" role="menuitem" tabIndex={-1} key={one.name} data-act={one.name}
          aria-disabled={one.shut ? "true" : undefined} onClick={() => take(one)}
        >
          <Icon name={one.icon} />
          <b>{one.text}</b>
          <kbd aria-hidden="true">{one.key}</kbd>
          {one.said !== "" && <small>{one.said}</small>}
        </button>
      ))}
    </div>
  );
}

function take(act: Act): void {
  if (act.shut) return;
  close(true);
  act.act();
}

const MOST_CHARS = 4_096;

/** The dialog of a note at a step. */
export function NoteAt({ session, step }: { session: Session; step: number }): JSX.Element {
  const [text, type] = useState("");
  const shut = text.trim() === "" || text.length > MOST_CHARS;
  const add = (): void => {
    if (shut) return;
    page.ask(null);
    give("note", { text: text.trim(), step });
  };
  return (
    <Box
      title={`Note at step ${count(step)}`}
      foot={
        <>
          <Cli line={`otf note ${JSON.stringify(text.trim() || "…")} --step ${step} --run ${session.run_name || session.run_id || ""}`} />
          <button type="button" class="btn" onClick={() => page.ask(null)}>Cancel</button>
          <button type="button" class="btn pri" aria-disabled={shut ? "true" : undefined} onClick={add}>Add note</button>
        </>
      }
    >
      <textarea
        class="inp note" data-first aria-label="Note" value={text} onInput={(event) => type(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) add();
        }}
      />
      <p class="hint">Shown on the timeline and kept in the journal.{text.length > MOST_CHARS && ` ${count(text.length - MOST_CHARS)} characters too many.`}</p>
    </Box>
  );
}

/** N: a note at the cursor, else at the step that is done. */
export function noteHere(view: View): void {
  if (view.session === null || closed(view) !== null) return;
  const step = shared.cursor ?? stepOf(view.session, view.data);
  if (step !== null) page.ask({ kind: "note", step });
}
