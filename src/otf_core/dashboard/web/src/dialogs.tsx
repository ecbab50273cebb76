/** The dialogs: stop, keys, the trace of a command. All show the command line. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Box, Cli } from "./box";
import { isDict } from "./columns";
import { clockSeconds, count, plural, setting, span } from "./format";
import { Fork } from "./forks";
import { listed } from "./keys";
import { Merge } from "./merges";
import { controlsNow, give, page } from "./page";
import { Palette } from "./palette";
import { trainerOf } from "./relatives";
import { nameOf, stepOf, totalSteps, type View } from "./state";
import { NoteAt } from "./spot";
import { isSettled, store, type Held } from "./store";
import { Exactness, Extend, RollBack } from "./turns";
import { answerFor, changesOf } from "./steering";
import type { Dict, Session } from "./types";
import { cli, onRanks, waits, what, why } from "./words";

export function Dialogs({ view }: { view: View }): JSX.Element | null {
  const { dialog } = page;
  if (dialog === null) return null;
  if (dialog.kind === "keys") return <Keys />;
  if (dialog.kind === "palette") return <Palette view={view} />;
  if (view.session === null) return null;
  switch (dialog.kind) {
    case "stop":
      return <Stop view={view} session={view.session} />;
    case "rollback":
      return <RollBack view={view} session={view.session} to={dialog.to ?? null} />;
    case "extend":
      return <Extend view={view} session={view.session} />;
    case "fork":
      return <Fork view={view} session={trainerOf(view.session)} from={dialog.from ?? {}} selection={dialog.selection ?? null} selected={dialog.selected ?? null} weights={dialog.weights ?? null} />;
    case "merge":
      return <Merge view={view} session={trainerOf(view.session)} parents={dialog.parents ?? []} />;
    case "exactness":
      return <Exactness view={view} session={view.session} />;
    case "note":
      return <NoteAt session={view.session} step={dialog.step} />;
    case "receipt":
      return <Trace id={dialog.id} session={view.session} />;
  }
}

function Stop({ view, session }: { view: View; session: Session }): JSX.Element {
  const [save, setSave] = useState(true);
  const step = stepOf(session, view.data);
  const total = totalSteps(session, view.data);
  const kept = view.checkpointStep;
  const lost = step !== null && kept !== null ? step - kept : null;
  const payload = { save };
  const stop = controlsNow().find((one) => one.cmd === "stop");
  const shut = stop === undefined || stop.state === "off" || stop.state === "pending";
  return (
    <Box
      title={`Stop ${nameOf(session)}?`}
      foot={
        <>
          <Cli line={cli("stop", payload, nameOf(session))} />
          <button type="button" class="btn" data-first onClick={() => page.ask(null)}>Keep training</button>
          <button
            type="button" class="btn pri dan" aria-disabled={shut ? "true" : undefined}
            onClick={() => {
              if (shut) return;
              page.ask(null);
              give("stop", payload);
            }}
          >
            {save ? "Stop and save" : "Stop without saving"}
          </button>
        </>
      }
    >
      <p class="lead">
        {step === null ? "No step is done yet." : `Step ${count(step)}${total === null ? "" : ` of ${total.exact ? "" : "about "}${count(total.steps)}`}.`} This
        ends the training; it can be started again from a checkpoint.
        {shut && ` Not possible now: ${stop?.line ?? "no run"}.`}
      </p>
      <label class="opt">
        <input type="radio" name="stop" checked={save} onChange={() => setSave(true)} />
        <span><b>Finish this step, save a checkpoint, stop</b><span class="hint">Nothing that was trained is lost.</span></span>
      </label>
      <label class="opt">
        <input type="radio" name="stop" checked={!save} onChange={() => setSave(false)} />
        <span>
          <b>Stop without saving</b>
          <span class="hint">
            {kept === null
              ? "No checkpoint has been saved: all that was trained is lost."
              : lost !== null && lost > 0
                ? `Loses ${plural(lost, "step")} since the checkpoint at step ${count(kept)}.`
                : `The checkpoint at step ${count(kept)} stays.`}
          </span>
        </span>
      </label>
    </Box>
  );
}

function Keys(): JSX.Element {
  return (
    <Box title="Keyboard" foot={<><span class="grow" /><button type="button" class="btn" data-first onClick={() => page.ask(null)}>Close</button></>}>
      <div class="keys">{listed().map(({ text, shown }) => <div key={text}><span>{text}</span><kbd>{shown}</kbd></div>)}</div>
      <label class="opt">
        <input type="checkbox" checked={page.singleKeys} onChange={(event) => page.setSingleKeys(event.currentTarget.checked)} />
        <span><b>Single keys act</b><span class="hint">They never act while you type or a dialog is open.</span></span>
      </label>
    </Box>
  );
}

function Trace({ id, session }: { id: string; session: Session }): JSX.Element {
  const receipt = store.receipts.get(session.session_id)?.get(id);
  const pending = session.pending.find((one) => one.request_id === id);
  const cmd = receipt?.cmd ?? pending?.cmd ?? "";
  const payload = receipt?.payload ?? {};
  const line = cli(cmd, payload, nameOf(session));
  const rest = `POST api/sessions/${session.session_id}/commands ${JSON.stringify({ cmd, payload })}`;
  const lead = receipt?.state === "applied"
    ? "Applied means: the trainer made the change at a step boundary and answered for it."
    : receipt?.state === "refused"
      ? "Refused: nothing changed."
      : "Still on its way. What was before holds until the trainer answers.";
  return (
    <Box
      title={receipt === undefined ? cmd : what(receipt, session.params)}
      foot={<><Cli line={line} /><button type="button" class="btn" data-first onClick={() => page.ask(null)}>Close</button></>}
    >
      <p class="lead">{lead}</p>
      <div class="trace">
        {receipt === undefined
          ? <Row time="" text={`waiting for ${waits(pending?.waits_for ?? null)}`} />
          : <Steps receipt={receipt} />}
        <Row time="id" text={id} />
        <Row time="REST" text={rest} />
      </div>
    </Box>
  );
}

function Steps({ receipt }: { receipt: Held }): JSX.Element {
  const sent = receipt.sent_ts ?? receipt.first_ms / 1000;
  const after = (ts: number | null): string => (ts === null ? "" : `+${Math.max(0, ts - sent).toFixed(3)} s`);
  const data = receipt.reply?.data;
  const step = isDict(data) ? (data["applied_step"] ?? data["step"]) : undefined;
  return (
    <>
      <Row time={clockSeconds(sent)} text={`sent from ${receipt.mine ? "this page" : SOURCES[receipt.by] ?? receipt.by}${receipt.mine || !receipt.client ? "" : `, ${receipt.client}`}`} />
      {receipt.accepted_ts !== null && (
        <Row time={after(receipt.accepted_ts)} text={`received by the trainer, waiting for ${waits(receipt.waits_for)}`} />
      )}
      {receipt.state === "applied" && (
        <>
          <Row time={after(receipt.answered_ts)} text={typeof step === "number" ? `applied at step ${count(step)}${onRanks(data as Dict)}` : "answered"} />
          {changesOf(receipt).map(({ path }) => answerFor(receipt, String(path))).map((one) => one !== null && "new" in one && (
            <Row key={String(one["path"])} time="" tone="ok" text={`read back: ${String(one["path"])} = ${setting(one["new"])}`} />
          ))}
        </>
      )}
      {receipt.state === "refused" && <Row time={after(receipt.answered_ts)} tone="bad" text={`refused (${receipt.reply?.code ?? "error"}): ${why(receipt)}`} />}
      {!isSettled(receipt.state) && <Row time="…" tone="warn" text={`no answer yet, ${span((Date.now() - receipt.first_ms) / 1000)}`} />}
    </>
  );
}

const SOURCES: Record<string, string> = { page: "another page", cli: "the command line", rest: "the REST API" };

function Row({ time, text, tone }: { time: string; text: string; tone?: string }): JSX.Element {
  return <div><span class="t">{time}</span><span class={tone}>{text}</span></div>;
}
