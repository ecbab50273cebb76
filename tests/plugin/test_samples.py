"""A scan of a fit's own sets under Lightning finds each sample's loss, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.samples import Rule, Scan
from otf_core.runs.selection import Quantile, resolve
from otf_lightning import inside
from otf_lightning.samples import subject_of
from tests.exact import digest as exact
from tests.no_harm import digest
from tests.no_harm.configs import Augmented, Manual, Stream, Tape, TwoLoaders, _trainer, digits
from tests.plugin.test_evaluations_leave_no_trace import RUNS, Plain, Remembers, Splits, fit, seed

AT = (0, 3, 8)


class Between(L.Callback):
    """Asks between two batches, where the gate is."""

    is_otf = True

    def __init__(self, ask: Callable[[L.Trainer], Any], at: Container[int] = AT) -> None:
        self._ask, self._at, self.told = ask, at, list[Any]()
        self._wraps = inside.Wraps()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        advance = loop.advance

        def gated(fetcher: Any) -> None:
            if inside.steps_done(trainer) in self._at:
                self.told.append(self._ask(trainer))
            advance(fetcher)

        self._wraps.put(loop, "advance", gated)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._wraps.off()


def all_of(trainer: L.Trainer) -> dict[str, Any]:
    return {"exact": exact.of(trainer), "no harm": digest.of(trainer)}


def undisturbed(
    run: Any, tmp: Path, ask: Callable[[L.Trainer], Any], at: Container[int] = AT
) -> list[Any]:
    """What was told; the fit ends as it does when nobody asks."""
    seed()
    expected = all_of(run([], tmp / "a"))
    seed()
    between = Between(ask, at)
    found = all_of(run([between], tmp / "b"))
    assert exact.differences(expected, found) == []
    assert between.told
    return between.told


def scanned(trainer: L.Trainer, name: str = "train", **more: Any) -> Scan:
    scan = Scan(subject_of(trainer, name, **more))
    scan.work()
    return scan


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", RUNS)
def test_a_fit_that_was_scanned_is_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    def ask(trainer: L.Trainer) -> list[Scan]:
        scan = Scan(subject_of(trainer, "train"))
        list(scan.slices(0.0))
        return [scan, scanned(trainer, "val"), scanned(trainer, "test")]

    for scans in undisturbed(RUNS[name], tmp_path, ask):
        for scan in scans:
            assert len(scan.table()) == scan.data.size


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", RUNS)
def test_nor_where_the_slices_lie_between_its_batches(name: str, tmp_path: Path) -> None:
    scans: list[Scan] = []

    def ask(trainer: L.Trainer) -> int:
        if not scans:
            scans.append(Scan(subject_of(trainer, "train")))
        return scans[0].work(0.0).done

    told = undisturbed(RUNS[name], tmp_path, ask, range(1, 10**6))
    assert told[0] < told[-1]


def run_of(module: Any, *data: Any, **options: Any) -> Any:
    def run(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
        made = [make() for make in data]
        return fit(callbacks, module(), *made, **options)

    return run


class Counting(Plain):
    """Draws, counts, logs to the logger itself, and asks to stop while it is scanned."""

    scanning: Any = False

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        torch.rand(2), np.random.rand()
        logger: Any = self.logger
        logger.log_metrics({"own": float(self.steps)}, step=self.steps)
        logger.experiment  # noqa: B018 -- a user's step reaches for it
        if self.scanning:
            self.trainer.should_stop = True
        if self.scanning == "raises" and batch_idx == 2:
            raise KeyError("of the user's")
        return super().training_step(batch, batch_idx)


class WithExperiment(Tape):
    experiment = None


@pytest.mark.parametrize("how", ["whole", "cancelled", "raises"])
def test_nor_where_it_is_cancelled_or_the_users_code_raises(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.no_harm.configs.Tape", WithExperiment)

    def ask(trainer: L.Trainer) -> Scan:
        scan = Scan(subject_of(trainer, "train"))
        asked = iter([False] * 2 + [True] * 2)
        Counting.scanning = how
        try:
            if how == "raises":
                with pytest.raises(KeyError):
                    scan.work()
            else:
                scan.work(None, (lambda: next(asked)) if how == "cancelled" else lambda: False)
        finally:
            Counting.scanning = False
        return scan

    data = lambda: DataLoader(Remembers(), 16, shuffle=True)  # noqa: E731
    val = lambda: DataLoader(digits(32), 16)  # noqa: E731
    for scan in undisturbed(run_of(Counting, data, val), tmp_path, ask):
        assert len(scan.table()) == (96 if how == "whole" else 32)


def test_losses_and_ids_are_those_of_the_data_set(tmp_path: Path) -> None:
    def ask(trainer: L.Trainer) -> None:
        scan = scanned(trainer)
        table = scan.table()
        assert scan.told == "by training_step of Plain, its cross_entropy for each sample"
        module: Any = trainer.lightning_module
        x, y = digits(192).tensors
        module.eval()
        with torch.no_grad():
            expected = cross_entropy(module.net(x), y, reduction="none").numpy()
        module.train()
        assert np.allclose(table.losses, expected, atol=1e-6)  # type: ignore[arg-type]
        assert table.labels is not None
        assert table.labels.tolist() == y.tolist()
        worst = resolve(Quantile(0.9, 1.0), table, scan.subject.dataset)
        assert set(worst.tolist()) == set(np.argsort(expected)[173:].tolist())

    fit([Between(ask)], Plain())


def test_precision_and_transfer_hooks_are_those_of_the_fit() -> None:
    seen: list[Any] = []

    class Model(Plain):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 2, batch[1]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] + 1, batch[1]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append((self.net(batch[0]).dtype, float(batch[0].max())))
            return super().training_step(batch, batch_idx)

    told = Between(scanned)
    fit([told], Model(), precision="bf16-mixed", max_epochs=1)
    assert set(seen) == {(torch.bfloat16, 3.0)}
    assert {scan.rule for scan in told.told} == {Rule.STEP}


def test_sets_that_fit_has_not_asked_for_yet_are_asked_for_apart(tmp_path: Path) -> None:
    def run(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
        trainer = _trainer(callbacks, num_sanity_val_steps=0)
        trainer.fit(Plain(), datamodule=Splits())
        return trainer

    def ask(trainer: L.Trainer) -> list[int]:
        return [scanned(trainer, name).data.size for name in ("train", "val", "test")]

    assert undisturbed(run, tmp_path, ask)[0] == [160, 64, 32]


class ManualHooked(Manual):
    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1], reduction="none")


def test_steps_by_hand_are_not_called(tmp_path: Path) -> None:
    loaders = (
        lambda: DataLoader(digits(64), 16, shuffle=True),
        lambda: DataLoader(digits(32), 16),
    )
    told = undisturbed(run_of(ManualHooked, *loaders), tmp_path, scanned)
    assert {scan.told for scan in told} == {"by the module's per_sample_loss"}


def both() -> Any:
    return {"a": DataLoader(Augmented(32), 16), "b": DataLoader(Augmented(32), 16)}


@pytest.mark.parametrize(
    ("module", "data", "name", "said"),
    [
        (Manual, lambda: DataLoader(digits(32), 16), "train", "returned NoneType"),
        (Plain, lambda: DataLoader(Stream(32), 16), "train", "Stream is an iterable data set"),
        (TwoLoaders, both, "train", "trains with 2 loaders at a time"),
        (TwoLoaders, both, "test", "there is no loader for it; allowed: test_dataloader"),
        (Plain, lambda: DataLoader(digits(32), 16), "other", "allowed: train, val, test"),
    ],
)
def test_what_cannot_be_scanned_is_refused(module: Any, data: Any, name: str, said: str) -> None:
    def ask(trainer: L.Trainer) -> CommandError:
        with pytest.raises(CommandError) as error:
            scanned(trainer, name)
        return error.value

    between = Between(ask)
    fit([between], module(), data(), DataLoader(digits(32), 16), max_epochs=1)
    assert between.told
    for error in between.told:
        assert error.code in (ErrorCode.UNSUPPORTED, ErrorCode.BAD_PAYLOAD)
        assert said in error.detail
