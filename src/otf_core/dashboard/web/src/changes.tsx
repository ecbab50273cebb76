/** Every change that was made to the run, by whom, and Undo for each. */

import type { JSX } from "preact";
import { useAsked } from "./asked";
import { isDict } from "./columns";
import { age, count } from "./format";
import { Icon } from "./icons";
import { give } from "./page";
import { type View } from "./state";
import { receiptOpen } from "./steering";
import { store } from "./store";
import type { Dict, Session } from "./types";
import { byWhom, changeText } from "./words";

/** `shut`: why nothing can be asked; `fixed`: why nothing can be taken back. */
export function Changes({ view, session, shut, fixed }: { view: View; session: Session; shut: string | null; fixed: string | null }): JSX.Element {
  const able = session.capabilities.includes("list_changes");
  const data = useAsked(session, "list_changes", able && shut === null, NEWS, view.data);
  const rows = !Array.isArray(data?.["changes"]) ? null
    : (data["changes"].filter(isDict) as Dict[]).sort((a, b) => Number(b["id"]) - Number(a["id"]));
  if (!able || rows === null || rows.length === 0) {
    return (
      <div class="dr-b">
        <p class="lead">
          {!able ? "This trainer keeps no list of changes; the log has what it has told." : rows === null ? (shut === null ? "Asking the trainer…" : `Not possible now: ${shut}.`)
            : "Nothing was changed in this run yet. Whatever is, from anywhere, stands here with who did it, and can be taken back."}
        </p>
      </div>
    );
  }
  return (
    <div class="dr-b">
      <p class="lead">{count(Number(data?.["total"] ?? rows.length))} made, the newest first. Undo puts the old value back from now on; the list is part of every checkpoint.</p>
      <ol class="changes">
        {rows.map((row) => {
          const { id, undone_by: gone, ts } = row;
          const can = row["can_undo"] === true && typeof id === "number";
          const off = fixed ?? (receiptOpen(store.receiptsOf(session.session_id), "undo") ? "one is on its way" : null);
          return (
            <li key={String(id)} data-id={String(id)} data-undone={gone === null || gone === undefined ? undefined : ""} data-by={String(row["by"])}>
              <span class="num">{count(Number(row["step"]))}</span>
              <span class="grow">
                <b>{changeText(row)}</b>
                <span class="hint">{byWhom(row)}{typeof ts === "number" && `, ${age(view.now_s - ts)} ago`}{gone === null || gone === undefined ? "" : `, taken back by change ${String(gone)}`}</span>
              </span>
              {can && (
                <button
                  type="button" class="btn sm" aria-label={`Undo ${changeText(row)}`} aria-disabled={off === null ? undefined : "true"} title={off ?? undefined}
                  onClick={() => {
                    if (off === null) give("undo", { change: Number(id) });
                  }}
                >
                  <Icon name="undo" />Undo
                </button>
              )}
            </li>
          );
        })}
      </ol>
    </div>
  );
}

/** What may have made the list another one. */
const NEWS = ["param_changed", "checkpoint_loaded", "guard", "newRun"];
