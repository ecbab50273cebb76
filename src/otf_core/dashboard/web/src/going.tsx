/** How far a long command is, with Cancel. */

import type { JSX } from "preact";
import { count, span } from "./format";
import { cancel, type Open } from "./pending";
import type { View } from "./state";
import { store } from "./store";
import { waits } from "./words";

export function Going({ view, open, what, unit }: { view: View; open: Open; what: string; unit: string }): JSX.Element {
  const { done, total } = open;
  const told = done !== null && total !== null && total > 0;
  const eta = open.eta_s === null ? "" : `, ${span(open.eta_s)} left`;
  return (
    <div class="going" role="group" aria-label={what}>
      <span class="spin" aria-hidden="true" />
      <span class="grow">
        <b>{what}</b>{" "}
        {told ? `${count(done)} of ${count(total)} ${unit}${eta}` : open.waits_for === null ? "sent, waiting for the trainer" : `waits for ${waits(open.waits_for)}`}
      </span>
      {told && <span class="bar" aria-hidden="true"><i style={{ width: `${((100 * done) / total).toFixed(1)}%` }} /></span>}
      <button
        type="button" class="btn sm" aria-disabled={view.link.state !== "up" ? "true" : undefined}
        onClick={() => {
          if (view.link.state !== "up") return;
          store.dismissed.add(open.id); // who cancels knows why it was not done
          cancel(view, open);
        }}
      >
        Cancel
      </button>
    </div>
  );
}
