"""One training, four ways: by Lightning, by the Runner, by a script under otf-fit, by a loop of
one's own. The script is tests/script/small/train.py; the others train the same."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any
from unittest import mock

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

import otf_core
from otf_core.opening import RunOptions
from otf_core.runner import Runner
from otf_core.steering.preview import NEEDS_CADENCE
from otf_core.testing.conformance import Framework, Outcome, Probe
from otf_lightning import OnTheFlyCallback
from tests.plugin import test_conformance as by_lightning
from tests.runner import test_conformance as by_runner
from tests.script.small_script import Script
from tests.testing.own import Net, data


class Lit(L.LightningModule):
    """The training of the script as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(data(48, 1), batch_size=8, shuffle=True), DataLoader(
        data(16, 2), batch_size=8
    )


def given(otf: RunOptions | None) -> dict[str, Any]:
    fields = dataclasses.fields(otf) if otf is not None else ()
    return {field.name: getattr(otf, field.name) for field in fields}


class ByLightning(Framework):
    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        train, val = loaders()
        ours = [] if otf is None else [OnTheFlyCallback(**given(otf), test_dataloaders=val)]
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            callbacks=[*ours, by_lightning.InBatch(probe)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        module = Lit()
        trainer.fit(module, train, val)
        return Outcome(module.net.state_dict(), None, [])


class ByRunner(Framework):
    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        train, val = loaders()
        runner = Runner(
            callbacks=[by_runner.InBatch(probe)],
            max_epochs=epochs,
            progress=False,
            num_sanity_val_steps=0,
            **given(otf),
        )
        module = Lit()
        alone = mock.patch("otf_core.runner.runner.controlled", by_runner.without_a_session)
        with alone if otf is None else contextlib.nullcontext():
            runner.fit(module, train_loader=train, val_loader=val, test_loader=val)
        return Outcome(module.net.state_dict(), None, [])


class ByTick(Framework):
    cannot = NEEDS_CADENCE

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        model, (train, val) = Net(), loaders()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

        def loss_of(batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        @torch.no_grad()
        def validate() -> dict[str, float]:
            model.eval()
            found = [loss_of(batch) for batch in val]
            model.train()
            return {"val_loss": float(torch.stack(found).mean())}

        with otf_core.attach(
            model=model,
            optimizer=optimizer,
            scheduler=schedule,
            train_loader=train,
            val_loader=val,
            validate=validate,
            test=validate,
            state={},
            max_epochs=epochs,
            **(given(otf) if otf is not None else {"dashboard": "off", "telemetry": "off"}),
        ) as session:
            for _ in session.epochs():
                for batch in train:
                    optimizer.zero_grad()
                    loss = loss_of(batch)
                    loss.backward()  # type: ignore[no-untyped-call]
                    probe.batch(optimizer)
                    optimizer.step()
                    schedule.step()
                    if session.tick(loss=loss, train_loss=loss.detach()):
                        break
                if session.stopping:
                    break
                session.log(**validate())
        return Outcome(model.state_dict(), None, [])


FRAMEWORKS: dict[str, Framework] = {
    "Lightning": ByLightning(),
    "Runner": ByRunner(),
    "tick": ByTick(),
    "script": Script(),
}
