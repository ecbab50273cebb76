/** The dialog Fork: from where, on which samples, with what changed, and for how long. */

import "./forks.css";
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Box, CheckpointOption, Cli } from "./box";
import { checkpointsOf, KINDS } from "./checkpoints";
import { choiceOf, countedOf, lookedAt, selectionOf, TIMES } from "./choosing";
import { selectionWords } from "./family";
import { age, brief, count, plural, span } from "./format";
import { command } from "./live";
import { page } from "./page";
import { barred, membersOf } from "./relatives";
import { nameOf, speedOf, stepOf, type View } from "./state";
import { store } from "./store";
import type { Checkpoint, Dict, Session } from "./types";
import { cli } from "./words";

export interface ForkFrom {
  checkpoint?: string;
  step?: number;
  run_id?: string;
}

interface Samples {
  label: string;
  hint: string;
  selection: Dict | null;
  weights?: number[];
}

type Budget = "parent" | "steps" | "epochs";

/** What is typed, as the number that it has to be; "bad" if it is none. */
function read(text: string, whole: boolean): number | null | "bad" {
  if (text.trim() === "") return null;
  const value = Number(text.trim().replaceAll(",", ""));
  return Number.isFinite(value) && value > 0 && (!whole || Number.isInteger(value)) ? value : "bad";
}

export function Fork({ view, session, from, selection, selected, weights }: {
  view: View; session: Session; from: ForkFrom; selection: Dict | null; selected: number | null; weights: number[] | null;
}): JSX.Element {
  const member = membersOf(session).find((one) => one.run_id === (from.run_id ?? view.session?.run_id));
  const isHere = member === undefined || member.run_id === session.run_id;
  const data = store.toldOf(session);
  const kept = isHere ? checkpointsOf(store.runOf(session), data.events) : checkpointsOf(member.run, []);
  const now = isHere ? stepOf(session, data) : member.step;
  const named = kept.find((one) => one.id === from.checkpoint)
    ?? (from.step === undefined || from.step === now ? undefined : kept.find((one) => (one.step ?? Infinity) <= (from.step as number)));
  const [start, setStart] = useState<string | null>(named?.id ?? null);
  const options = samplesOf(session, selection, selected, weights);
  const [which, setWhich] = useState(selection === null && weights === null ? 0 : options.length - 1);
  const [typed, type] = useState({ name: "", batch: "", lr: "", length: "" });
  const [budget, setBudget] = useState<Budget>("parent");
  const chosen = kept.find((one) => one.id === start);
  const on = options[which]?.selection ?? null;
  const read_ = { batch: read(typed.batch, true), lr: read(typed.lr, false), length: budget === "parent" ? null : read(typed.length, true) };
  const wrong = Object.values(read_).includes("bad") || (budget !== "parent" && read_.length === null);
  const payload: Dict = {
    ...(start === null ? {} : { checkpoint: start }),
    ...(isHere ? {} : { parent_run_id: member.run_id }),
    ...(on === null ? {} : { selection: on }),
    ...(options[which]?.weights === undefined ? {} : { weights: options[which].weights }),
    ...(read_.batch === null ? {} : { batch_size: read_.batch }),
    ...(read_.lr === null ? {} : { hparams: { lr: read_.lr } }),
    ...(budget === "parent" || read_.length === null ? {} : { [budget]: read_.length }),
    ...(typed.name.trim() === "" ? {} : { run_name: typed.name.trim() }),
  };
  const why = barred(view, "fork");
  const shut = why !== null || wrong;
  const lr = session.params.find((one) => one.path === "lr")?.value;
  const name = member?.name ?? nameOf(session);
  const input = (key: keyof typeof typed, label: string, hint: string, bad: boolean): JSX.Element => (
    <label class="fl">
      <span>{label}</span>
      <input
        class="inp num" type="text" inputMode="decimal" autocomplete="off" spellcheck={false} value={typed[key]} placeholder={hint}
        aria-invalid={bad ? "true" : undefined} onInput={(event) => type({ ...typed, [key]: event.currentTarget.value })}
      />
    </label>
  );
  return (
    <Box
      title={which === 0 ? `Fork ${name}` : `Fork ${name} on ${options[which]?.label.toLowerCase() ?? "samples"}`}
      foot={
        <>
          <Cli line={wrong ? "" : cli("fork", payload, nameOf(session))} />
          <button type="button" class="btn" onClick={() => page.ask(null)}>Cancel</button>
          <button
            type="button" class="btn pri" data-first aria-disabled={shut ? "true" : undefined}
            onClick={() => {
              if (shut) return;
              page.ask(null);
              command(session.session_id, "fork", payload);
            }}
          >
            Fork
          </button>
        </>
      }
    >
      <p class="lead">
        A new run begins here and trains in the place of {nameOf(session)}, which is saved first and left as it stands; Lineage
        switches back to it. The page follows the fork.
        {why !== null && <b> Not possible now: {why}.</b>}
      </p>
      <fieldset class="fs">
        <legend>Starting point</legend>
        <div class="opts">
          <label class="opt">
            <input type="radio" name="start" checked={start === null} onChange={() => setStart(null)} />
            <span class="grow">
              <b>{isHere ? `Where it stands${now === null ? "" : `, step ${count(now)}`}` : `Where it was left${now === null ? "" : `, step ${count(now)}`}`}</b>
              <span class="hint">{isHere ? "at the next step end; nothing is trained again" : "its newest checkpoint"}</span>
            </span>
          </label>
          {kept.map((one) => (
            <Kept key={one.id} one={one} asked={from.step ?? now} speed={speedOf(session)} now_s={view.now_s} checked={start === one.id} pick={() => setStart(one.id)} />
          ))}
        </div>
        {from.step !== undefined && chosen !== undefined && chosen.step !== from.step && (
          <p class="hint">No checkpoint lies at step {count(from.step)}: the nearest before it is at {count(chosen.step)}.</p>
        )}
        {from.step !== undefined && from.step !== now && named === undefined && (
          <p class="hint warn">No checkpoint lies at or below step {count(from.step)}.</p>
        )}
      </fieldset>
      <fieldset class="fs">
        <legend>Samples</legend>
        {options.map((one, i) => (
          <label class="opt" key={one.label}>
            <input type="radio" name="samples" checked={which === i} onChange={() => setWhich(i)} />
            <span class="grow"><b>{one.label}</b><span class="hint">{one.hint}</span></span>
          </label>
        ))}
      </fieldset>
      <fieldset class="fs fl-row">
        <legend>Change at the start</legend>
        {input("lr", "Learning rate", lr === undefined ? "as it is" : `${brief(lr)} now`, read_.lr === "bad")}
        {input("batch", "Batch size", "as it is", read_.batch === "bad")}
        {input("name", "Name", "fork1, fork2 …", false)}
      </fieldset>
      <fieldset class="fs fl-row">
        <legend>Held after</legend>
        <div class="seg" role="group" aria-label="Held after">
          {(["parent", "steps", "epochs"] as const).map((one) => (
            <button type="button" key={one} aria-pressed={budget === one} onClick={() => setBudget(one)}>
              {one === "parent" ? "as long as its parent" : one}
            </button>
          ))}
        </div>
        {budget !== "parent" && input("length", budget === "steps" ? "Steps of its own" : "Epochs of its own", "500", read_.length === "bad")}
      </fieldset>
    </Box>
  );
}

/** All samples, the presets, and last what was chosen in Samples. */
function samplesOf(session: Session, asked: Dict | null, selected: number | null, weights: number[] | null): Samples[] {
  const looked = lookedAt(session, "train");
  const known = looked?.figures != null;
  const fresh = known && looked.run_id === session.run_id && looked.first_step === looked.last_step && looked.last_step === session.step && session.state === "paused";
  const by = fresh ? "by the scan of this very state" : "the losses are found first, the run stands meanwhile";
  const options: Samples[] = [
    { label: "The same samples", hint: "as its parent trains on; its place in the data goes on, bit for bit", selection: null },
    { label: "The worst tenth by loss", hint: by, selection: { kind: "quantile", from: 0.9, to: 1 } },
    { label: "All but doubtful labels", hint: by, selection: { kind: "complement", of: { kind: "label_noise" } } },
  ];
  const choice = asked ?? (known ? selectionOf(choiceOf(session, "train")) : null);
  const n = selected ?? countedOf(session, "train")?.count ?? null;
  if (choice !== null && n !== null) {
    const words = selectionWords(choice);
    options.push({
      label: plural(n, "sample"),
      hint: fresh
        ? `${words}, by the scan of this very state; a fixed list, not chosen again later`
        : `${words}, counted at step ${count(looked?.last_step ?? null)}; the losses are found anew first, so it may be a few more or less`,
      selection: choice,
    });
  }
  if (weights !== null) {
    options.push({
      label: `All, ${plural(selected ?? 0, "sample")} ${TIMES} times as often`,
      hint: `by the losses of step ${count(looked?.last_step ?? null)}; a fixed list, not weighed again later`, selection: null, weights,
    });
  }
  return options;
}

function Kept({ one, asked, speed, now_s, checked, pick }: {
  one: Checkpoint; asked: number | null; speed: number | null; now_s: number; checked: boolean; pick: () => void;
}): JSX.Element {
  const steps = one.step === null || asked === null ? null : asked - one.step;
  const time = speed === null || steps === null || steps <= 0 ? "" : ` (${span(steps / speed)} of training)`;
  const said = [
    KINDS[one.kind ?? ""] ?? one.kind,
    one.ts === null ? null : `${age(now_s - one.ts)} ago`,
    steps === null || steps < 0 ? null : steps === 0 ? "nothing to train again" : `${plural(steps, "step")} before${time}`,
  ];
  return <CheckpointOption one={one} name="start" said={said} checked={checked} pick={pick} />;
}
