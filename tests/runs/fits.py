"""The same small fit on Lightning and on the Runner, held where a test wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from otf_lightning import OnTheFlyCallback
from tests.exact import digest as exact
from tests.no_harm import digest as plain
from tests.no_harm.configs import Net, _trainer, digits
from tests.plugin import rig as lightning
from tests.plugin.rig import Fit, Turnstile
from tests.runner import rig as runner

BATCHES = 12  # of an epoch; there are two
SAMPLES = 192


class Augmented(Dataset[Any]):
    """Draws from every generator, and counts what was fetched."""

    def __init__(self) -> None:
        self.data, self.fetched = digits(SAMPLES), 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        x, y = self.data[index]
        return x + 0.1 * torch.randn(64) + 0.01 * float(np.random.rand()), y


def train_loader() -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=16, shuffle=True)


def val_loader(samples: int = 64) -> DataLoader[Any]:
    return DataLoader(digits(samples), batch_size=16)


class Side(NamedTuple):
    """One framework.

    Attributes:
        bare: what a run is which nobody touched, of a module.
        fitting: ``(save_dir, module, *batches)``: a fit that is held in these batches.
        digest: of what a fit has returned.
    """

    bare: Callable[[Any], Any]
    fitting: Callable[..., contextlib.AbstractContextManager[tuple[Fit, Turnstile]]]
    digest: Callable[[Any], Any]


def _lightning(callbacks: Any, module: Any) -> Any:
    torch.manual_seed(3)
    np.random.seed(3)
    trainer = _trainer(callbacks)
    trainer.fit(module, train_loader(), val_loader())
    return trainer


def _pieces() -> dict[str, Any]:
    np.random.seed(3)
    return {
        "train_loader": train_loader(), "val_loader": val_loader(), "test_loader": val_loader(48)
    }  # fmt: skip


@contextlib.contextmanager
def _fitting_lightning(
    save_dir: Path, module: Any, *at: int, **options: Any
) -> Iterator[tuple[Fit, Turnstile]]:
    barrier = lightning.Barrier(*at)
    options = {"run_name": "r", "test_dataloaders": val_loader(48), **options}
    with lightning.fitting(
        lambda callbacks: _lightning(callbacks, module), save_dir, barrier, **options
    ) as fit:
        yield fit, barrier


@contextlib.contextmanager
def _fitting_runner(
    save_dir: Path, module: Any, *at: int, **options: Any
) -> Iterator[tuple[Fit, Turnstile]]:
    barrier = runner.Barrier(*at)
    given = {"model": module, "pieces": _pieces(), "run_name": "r", **options}
    with runner.fitting(save_dir, barrier, **given) as fit:
        yield fit, barrier


def legacy_fit(side: str, save_dir: Path, *at: int) -> tuple[Fit, Turnstile]:
    """A fit that looks for the VS Code extension, not started yet, and what holds it."""
    options: dict[str, Any] = {
        "save_dir": save_dir, "project": "vscode", "run_name": "r", "after_fit": "return"
    }  # fmt: skip
    if side == "Runner":
        held = runner.Barrier(*at)
        given = {"model": fresh(), "pieces": _pieces(), **options}
        return Fit(lambda: runner.fitted(held, **given)), held
    barrier = lightning.Barrier(*at)
    callback = OnTheFlyCallback(test_dataloaders=val_loader(48), **options)
    return Fit(lambda: _lightning([callback, barrier], fresh())), barrier


def fresh(kind: type[Net] = Net) -> Net:
    torch.manual_seed(7)
    return kind(schedule=None)


SIDES = {
    "Lightning": Side(
        lambda module: plain.of(_lightning([], module)), _fitting_lightning, plain.of
    ),
    "Runner": Side(
        lambda module: runner.bare(model=module, pieces=_pieces()),
        _fitting_runner,
        exact.of_run,
    ),
}
