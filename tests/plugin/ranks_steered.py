"""A DDP run of two ranks whose data and model are steered:
``python -m tests.plugin.ranks_steered FOLDER PORT``.

Port 0: without us, and the script itself does what the dashboard does in the other; -1: it goes on
from the checkpoint of step ``SAVE_AT``, as after a kill. Writes
``FOLDER/<bare, live or again>.<rank>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, WeightedRandomSampler

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, digits
from tests.plugin.ranks_live import OfRank
from tests.plugin.test_ema_rests import Scripted

SIZE, OTHER, STEPS = 8, 12, 26  # 8 steps an epoch, then 6
FREEZE_AT, THAW_AT, CHANGE_AT, SAVE_AT = 3, 14, 5, 11
REST_AT, WORK_AT = 7, 20
FROZEN, FACTOR = "net.0.*", 5.0


class Script(L.Callback):
    """As somebody would have written it who knows what DDP waits for."""

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, _: Any) -> None:
        if FREEZE_AT <= trainer.global_step < THAW_AT:
            for parameter in module.net[0].parameters():
                parameter.grad = None

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch != 1:
            return
        loader: Any = trainer.train_dataloader
        loader.batch_sampler.batch_size = OTHER
        labels = loader.dataset.tensors[1]
        weighted = loader.sampler.dataset._sampler
        weighted.weights[labels == 3] *= FACTOR
        fit: Any = trainer.fit_loop
        fit.max_batches = len(loader)
        fit._combined_loader.limits = [len(loader)]


def loader() -> DataLoader[Any]:
    data = digits(128)
    one_order = torch.Generator().manual_seed(5)  # on all ranks
    weights = (data.tensors[1].double() + 1).tolist()
    return DataLoader(data, SIZE, sampler=WeightedRandomSampler(weights, 128, generator=one_order))


def main(folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    callbacks: list[L.Callback] = [OfRank()]
    if port:
        ours = OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs", after_fit="return", pause_at_start=port > 0,
            dashboard=f"127.0.0.1:{port}" if port > 0 else "off",
            checkpoint_every=SAVE_AT,
            resume=next((folder / "runs").rglob(f"{SAVE_AT}-ring.ckpt")) if port < 0 else None,
        )  # fmt: skip
        callbacks += [ours, EMAWeightAveraging(decay=0.9)]
    else:
        callbacks += [Script(), Scripted(REST_AT, WORK_AT)]
    trainer = _trainer(
        callbacks, strategy="ddp", devices=2, max_epochs=-1, max_steps=STEPS, gradient_clip_val=0.5
    )
    trainer.fit(Net(), loader())
    found = digest.of(trainer)
    del found["callbacks"]  # by name; the average is what the weights are at the end
    name = {0: "bare", -1: "again"}.get(port, "live")
    (folder / f"{name}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    dist.destroy_process_group()  # else its threads may abort the process that exits
