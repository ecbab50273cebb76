/** The rules that watch the run, in the drawer Health: what each does, whether it is on, what it has left. */

import type { JSX } from "preact";
import { useAsked } from "./asked";
import { isDict } from "./columns";
import { count, plural, setting, sig } from "./format";
import { give } from "./page";
import type { View } from "./state";
import { receiptOpen } from "./steering";
import { store } from "./store";
import type { Dict, Session } from "./types";

const DOES: Record<string, string> = { notify: "tells", pause: "pauses the run", rollback: "rolls back and lowers the rate" };

export function Guards({ view, session, shut }: { view: View; session: Session; shut: string | null }): JSX.Element | null {
  const able = session.capabilities.includes("list_guards");
  const data = useAsked(session, "list_guards", able && shut === null, ["guard", "checkpoint_loaded"], view.data);
  const rows = Array.isArray(data?.["guards"]) ? data["guards"].filter(isDict) as Dict[] : [];
  if (!able) return null;
  const busy = receiptOpen(store.receiptsOf(session.session_id), "set_guard");
  return (
    <section class="blk guards">
      <h3>Guards</h3>
      {rows.length === 0 && <p class="lead">{data === null ? (shut ?? "Asking the trainer…") : "No rule watches this run. guards= in the script or otf guard makes one."}</p>}
      {rows.map((row) => {
        const rule = String(row["rule"]);
        const last = isDict(row["last"]) ? row["last"] : null;
        const left = row["budget_left"];
        const settings = isDict(row["params"]) ? Object.entries(row["params"]).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${setting(value)}`) : [];
        const said = [
          `${DOES[String(row["action"])] ?? String(row["action"])}`, ...settings,
          typeof left === "number" ? `${plural(left, "time")} left` : "", Number(row["cool_down_steps"]) > 0 ? `rests ${plural(Number(row["cool_down_steps"]), "step")}` : "",
          last === null ? "has seen nothing" : `last at step ${count(Number(last["step"]))}${typeof last["value"] === "number" ? ` with ${sig(last["value"])}` : ""}`,
        ];
        return (
          <label class="opt" key={rule} data-rule={rule}>
            <input
              type="checkbox" checked={row["enabled"] !== false} disabled={shut !== null || busy || !session.capabilities.includes("set_guard")}
              onChange={(event) => {
                event.currentTarget.checked = row["enabled"] !== false; // as the trainer has it until it answers
                give("set_guard", { rule, enabled: row["enabled"] === false });
              }}
            />
            <span class="grow"><b>{rule} on {String(row["metric"])}</b><span class="hint">{said.filter(Boolean).join(", ")}</span></span>
          </label>
        );
      })}
    </section>
  );
}
