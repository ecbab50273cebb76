/** The drawer Checkpoints. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { KINDS } from "./checkpoints";
import { bytes, count, sig } from "./format";
import { Icon } from "./icons";
import { download } from "./live";
import { controlsNow, page } from "./page";
import type { View } from "./state";
import type { Checkpoint, Session } from "./types";

export function Checkpoints({ view }: { view: View }): JSX.Element {
  const session = view.session as Session;
  const list = view.checkpoints;
  const [problem, setProblem] = useState<string | null>(null);
  const fetchFile = async (one: Checkpoint): Promise<void> => {
    const owner = one.session_id ?? session.session_id;
    const path = `api/checkpoints/${encodeURIComponent(owner)}/${encodeURIComponent(one.id)}/file`;
    const name = one.path?.split(/[/\\]/).at(-1) ?? `${one.id}.ckpt`;
    setProblem(await download(path, name));
  };
  if (list.length === 0) {
    return (
      <div class="dr-b">
        <p class="lead">No checkpoint yet. Pause saves one, and so does Save checkpoint.</p>
      </div>
    );
  }
  const offline = view.link.state !== "up";
  const rollback = controlsNow().find((one) => one.cmd === "rollback")?.state;
  const shut = rollback === undefined || rollback === "off" || rollback === "pending";
  return (
    <div class="dr-b">
      {problem !== null && <p class="lead bad" role="alert">{problem}</p>}
      <table>
        <thead>
          <tr><th>step</th><th>why kept</th><th class="num">val loss</th><th class="num">size</th><th>resume</th><th><span class="sr">actions</span></th></tr>
        </thead>
        <tbody>
          {list.map((one) => {
            const row = one.step === null ? -1 : (view.data?.columns.rowOf("val_loss", one.step) ?? -1);
            return (
              <tr key={one.id} title={one.path ?? undefined}>
                <td><b>{count(one.step)}</b></td>
                <td>{KINDS[one.kind ?? ""] ?? one.kind ?? "–"}</td>
                <td class="num">{row < 0 ? "–" : sig(view.data?.columns.at("val_loss", row))}</td>
                <td class="num">{bytes(one.bytes)}</td>
                <td>{one.exact === true ? <span class="ok">exact</span> : <span title="approximate">approx.</span>}</td>
                <td class="num acts">
                  <button
                    type="button" class="btn sm" aria-disabled={shut ? "true" : undefined}
                    aria-label={`Roll back to the checkpoint at step ${count(one.step)}`} title="Roll back…"
                    onClick={() => {
                      if (!shut) page.ask({ kind: "rollback", to: { checkpoint: one.id } });
                    }}
                  >
                    <Icon name="rollback" />
                  </button>
                  <button
                    type="button" class="btn sm" aria-disabled={offline ? "true" : undefined}
                    aria-label={`Download the checkpoint at step ${count(one.step)}`}
                    onClick={() => {
                      if (!offline) void fetchFile(one);
                    }}
                  >
                    <Icon name="download" />
                  </button>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
