/** The drawer Checkpoints. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { KINDS, resumeLine } from "./checkpoints";
import { Line } from "./copy";
import { age, bytes, count, plural, sig } from "./format";
import { Icon } from "./icons";
import "./kept.css";
import { download } from "./live";
import { controlsNow, page } from "./page";
import { closed, stateOf, type View } from "./state";
import { store } from "./store";
import type { Checkpoint, Session } from "./types";

export function Checkpoints({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const list = view.checkpoints;
  const [problem, setProblem] = useState<string | null>(null);
  const [open, setOpen] = useState<string | null>(null);
  const fetchFile = async (one: Checkpoint): Promise<void> => {
    const owner = one.session_id ?? session.session_id;
    const path = `api/checkpoints/${encodeURIComponent(owner)}/${encodeURIComponent(one.id)}/file`;
    const name = one.path?.split(/[/\\]/).at(-1) ?? `${one.id}.ckpt`;
    setProblem(await download(path, name));
  };
  const save = controlsNow().find((one) => one.cmd === "save_ckpt");
  if (list.length === 0) {
    return (
      <div class="dr-b">
        <p class="lead">No checkpoint yet. Pause saves one, and so does Save checkpoint{save?.state === "off" ? ` (not possible now: ${save.line})` : ""}.</p>
      </div>
    );
  }
  const rollback = controlsNow().find((one) => one.cmd === "rollback");
  const backOff = rollback === undefined ? "no run" : rollback.state === "off" || rollback.state === "pending" ? rollback.line : null;
  const forkOff = closed(view) ?? (session.capabilities.length > 0 && !session.capabilities.includes("fork") ? "not in this run"
    : stateOf(view) === "stalled" ? "no step end" : null);
  const fileOff = view.link.state !== "up" ? "offline" : view.watching ? "watching only" : null;
  const size = list.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  const exact = list.filter((one) => one.exact === true).length;
  return (
    <div class="dr-b kept">
      <p class="lead">
        {plural(list.length, "checkpoint")}{size > 0 && `, ${bytes(size)}`}{session.host !== null && ` on ${session.host}`}; {count(exact)} exact.
        Pauses, the ring and automatic ones make room for newer ones; those that were asked for stay.
      </p>
      {problem !== null && <p class="lead bad" role="alert">{problem}</p>}
      <table>
        <thead>
          <tr><th>step</th><th>why kept</th><th class="num">val loss</th><th class="num size">size</th><th>resume</th><th><span class="sr">actions</span></th></tr>
        </thead>
        <tbody>
          {list.map((one) => {
            const at = `the checkpoint at step ${count(one.step)}`;
            const shown = open === one.id;
            return [
              <tr key={one.id} data-id={one.id} title={one.path ?? undefined}>
                <td><b>{count(one.step)}</b></td>
                <td>{KINDS[one.kind ?? ""] ?? one.kind ?? "–"}{one.ts !== null && <small>{age(view.now_s - one.ts)} ago</small>}</td>
                <td class="num">{lossAt(view, session, one.step)}</td>
                <td class="num size">{bytes(one.bytes)}</td>
                <td>{one.exact === true ? <span class="ok">exact</span> : <span class="warn" title="approximate">approx.</span>}</td>
                <td class="num acts">
                  <Act icon="rollback" name={`Roll back to ${at}`} title="Roll back…" off={backOff} act={() => page.ask({ kind: "rollback", to: { checkpoint: one.id } })} />
                  <Act icon="fork" name={`Fork from ${at}`} title="Fork…" off={forkOff} act={() => page.ask({ kind: "fork", from: { checkpoint: one.id } })} />
                  <Act icon="download" name={`Download ${at}`} title="Download" off={fileOff} act={() => void fetchFile(one)} />
                  <Act icon="down" name={`More of ${at}`} title="More" off={null} expanded={shown} act={() => setOpen(shown ? null : one.id)} />
                </td>
              </tr>,
              shown && <tr key={`${one.id} more`} class="more"><td colSpan={6}><More one={one} view={view} /></td></tr>,
            ];
          })}
        </tbody>
      </table>
    </div>
  );
}

function lossAt(view: View, session: Session, step: number | null): string {
  if (step === null || view.data === null) return "–";
  const { columns } = store.toldOf(session);
  const row = columns.rowOf("val_loss", step);
  return row < 0 ? "–" : sig(columns.at("val_loss", row));
}

function Act({ icon, name, title, off, expanded, act }: {
  icon: string; name: string; title: string; off: string | null; expanded?: boolean; act: () => void;
}): JSX.Element {
  return (
    <button
      type="button" class="icb sm" aria-label={name} title={off === null ? title : `${title} not possible: ${off}`}
      aria-disabled={off === null ? undefined : "true"} aria-expanded={expanded}
      onClick={() => {
        if (off === null) act();
      }}
    >
      <Icon name={icon} />
    </button>
  );
}

/** Where the file is, what lets a process go on from it, and why it is not exact. */
function More({ one, view }: { one: Checkpoint; view: View }): JSX.Element {
  const told = view.data?.events.findLast((event) => event.type === "exactness" && (event.ts ?? 0) <= (one.ts ?? Infinity));
  const reasons = Array.isArray(told?.["reasons"]) ? told["reasons"].map(String) : [];
  return (
    <>
      {one.path !== null && (
        <>
          <p class="path">{one.path}</p>
          <Line text={resumeLine(one.path)} hint="before the command that started the run: it goes on from here in a new process" />
        </>
      )}
      {reasons.length > 0 && (
        <>
          <p class="hint">{one.exact === true ? "Exact, but for:" : "Approximate, because:"}</p>
          <ul class="reasons">{reasons.map((reason) => <li key={reason}>{reason}</li>)}</ul>
        </>
      )}
    </>
  );
}
