"""Two ranks of DDP, plain and then as ``otf_ddp`` with us: ``-m tests.plugin.clocked FOLDER``.

Writes ``FOLDER/<strategy>.<rank>.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import lightning as L
import torch

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, Net, _train, _trainer, _val

STEPS = 14


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for strategy in ("ddp", "otf_ddp"):
        L.seed_everything(7, verbose=False)
        callbacks: list[L.Callback] = [Counting()]
        if strategy == "otf_ddp":
            callbacks.append(OnTheFlyCallback("p", "r", save_dir=folder / "runs", dashboard="off"))
        trainer = _trainer(callbacks, strategy=strategy, devices=2, max_epochs=-1, max_steps=STEPS)
        began_s = time.perf_counter()
        trainer.fit(Net(), _train(), _val())
        found = {
            "digest": digest.of(trainer),
            "seconds": time.perf_counter() - began_s,
            "clocks": trainer.strategy.clocks.totals() if strategy == "otf_ddp" else None,
            "kind": type(trainer.strategy).__name__,
        }
        (folder / f"{strategy}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
