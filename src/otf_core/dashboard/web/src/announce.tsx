/** What screen readers are told: the sentence when the state changes and at most every 30 s; alarms at once. */

import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { band, silentOf, type View } from "./state";
import { store } from "./store";
import { why } from "./words";

const EVERY_MS = 30_000;
const ALARMS = new Set(["stalled", "failed"]);

export function Live({ view }: { view: View }): JSX.Element {
  const said = useRef({ state: "", at_ms: 0, text: "", alarm: "" });
  const { state: shown, sentence } = band(view);
  const state = [shown, ...silentOf(view).map((one) => one.rank)].join(" ");
  const now = Date.now();
  const last = said.current;
  if (state !== last.state || now - last.at_ms >= EVERY_MS) {
    const text = sentence.map((piece) => piece.text).join("");
    if (state !== last.state) last.alarm = ALARMS.has(shown) || state !== shown ? text : "";
    Object.assign(last, { state, at_ms: now, text });
  }
  const refused = view.session === null
    ? undefined
    : store.receiptsOf(view.session.session_id).find(
        (one) => one.mine && one.state === "refused" && !store.dismissed.has(one.id),
      );
  return (
    <>
      <div class="sr" role="status" aria-live="polite">{last.text}</div>
      <div class="sr" role="alert">{refused === undefined ? last.alarm : `Refused: ${why(refused)}`}</div>
    </>
  );
}
