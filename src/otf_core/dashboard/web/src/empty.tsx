/** What stands there without a run: how to start one. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Copy } from "./copy";
import "./empty.css";
import { clock } from "./format";

const WAYS: readonly { name: string; lead: string; code: string }[] = [
  {
    name: "Lightning", lead: "Add one line. The callback finds this dashboard by itself.",
    code: "from otf_lightning import OnTheFlyCallback\n\ntrainer = Trainer(callbacks=[OnTheFlyCallback()])\ntrainer.fit(model, data)",
  },
  {
    name: "Plain PyTorch", lead: "A loop of your own, in a block that says where a step ends.",
    code: "import otf_core\n\nwith otf_core.attach(model=net, optimizer=optimizer, train_loader=loader) as session:\n    for epoch in session.epochs(3):\n        for x, y in loader:\n            …  # forward, backward, optimizer.step()\n            if session.tick(loss=loss):\n                break",
  },
  { name: "otf-fit", lead: "Not one line of the script is changed.", code: "otf-fit train.py --lr 3e-4" },
];

export function Empty({ state, since_s }: { state: string; since_s: number }): JSX.Element {
  const [at, setAt] = useState(0);
  if (state !== "empty") return <div class="empty" />;
  const way = WAYS[at] as (typeof WAYS)[number];
  const onKey = (event: KeyboardEvent): void => {
    const move = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (move === 0) return;
    event.preventDefault();
    const next = (at + move + WAYS.length) % WAYS.length;
    setAt(next);
    document.getElementById(`way-${next}`)?.focus();
  };
  return (
    <div class="empty" id="charts" tabIndex={-1}>
      <h2>Start a run to see it here</h2>
      <p>Nothing in the training changes until you ask for it, and it goes on as before if this page is closed.</p>
      <div class="seg" role="tablist" aria-label="How you train" onKeyDown={onKey}>
        {WAYS.map(({ name }, i) => (
          <button
            type="button" role="tab" key={name} id={`way-${i}`} aria-selected={i === at} aria-controls="way" tabIndex={i === at ? 0 : -1}
            onClick={() => setAt(i)}
          >
            {name}
          </button>
        ))}
      </div>
      <div role="tabpanel" id="way" aria-labelledby={`way-${at}`}>
        <p class="hint">{way.lead}</p>
        <div class="code"><pre tabIndex={0}>{way.code}</pre><Copy text={way.code} key={at} /></div>
      </div>
      <p class="listen"><span class="spin" aria-hidden="true" /> Listening since {clock(since_s)}. No trainer has called yet.</p>
      <p class="hint">Runs of before are shown by <code>otf dashboard --dir otf_runs</code>, with no trainer.</p>
    </div>
  );
}
