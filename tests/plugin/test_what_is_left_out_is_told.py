"""The exactness report names what no checkpoint has, and does not cry wolf."""

from __future__ import annotations

import enum
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from otf_core.cli.doctor import examine_run
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val


class Opaque:
    """Of a type that no checkpoint has."""

    def __init__(self) -> None:
        self.n = 0


class Steps(Net):
    """Does something with what it holds in every step."""

    def __init__(self, held: Any, each_step: Callable[[Any], Any] = lambda held: None) -> None:
        super().__init__()
        self.held = held
        self.each_step = each_step

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.each_step(self.held)
        return super().training_step(batch, batch_idx)


def count(held: Any) -> None:
    held.n += 1


def ours(save_dir: Path, **options: Any) -> OnTheFlyCallback:
    return OnTheFlyCallback(
        "p", "r", save_dir=save_dir, dashboard="off", checkpoint_every=3, **options
    )


def told(save_dir: Path) -> dict[str, Any]:
    record = json.loads((save_dir / "p" / "r" / "run.json").read_bytes())
    report: dict[str, Any] = record["exactness"]
    return report


EXACT = {"exact": True, "text": "exact", "reasons": []}


def endless() -> Iterator[int]:
    while True:
        yield 1


def test_what_never_changes_is_not_worth_a_word(tmp_path: Path) -> None:
    held: list[Any] = [
        Opaque(),
        logging.getLogger("mine"),
        threading.Lock(),
        threading.Event(),
        CSVLogger(tmp_path / "logs"),
        torch.device("cpu"),
        lambda: None,
    ]
    module = Steps(None)
    for place, value in enumerate(held):
        setattr(module, f"held_{place}", value)
    _fit([ours(tmp_path)], module)

    assert told(tmp_path) == EXACT


def test_what_changes_makes_a_resume_inexact(tmp_path: Path) -> None:
    _fit([ours(tmp_path)], Steps(Opaque(), count))

    reason = "module itself.held (Opaque) changes, and cannot be stored"
    assert told(tmp_path) == {
        "exact": False,
        "text": f"not exact because {reason}",
        "reasons": [reason],
    }
    checkpoints = tmp_path / "p" / "r" / "checkpoints"
    exact = {p.stem: json.loads(p.read_bytes())["exact"] for p in checkpoints.glob("*.json")}
    assert exact.pop("0-auto")
    assert exact
    assert not any(exact.values())


def test_what_cannot_be_looked_at_is_an_exception(tmp_path: Path) -> None:
    _fit([ours(tmp_path)], Steps(endless(), next))

    what = "module itself.held (generator)"
    assert told(tmp_path) == {"exact": True, "text": f"exact except {what}", "reasons": [what]}
    finding = examine_run(tmp_path / "p" / "r" / "checkpoints" / "0-auto.ckpt")
    assert (finding.state, finding.said) == ("ok", f"exact except {what}")
    assert finding.reasons == (what,)


class Keeps(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"n": 1, "held": Opaque()}


def test_what_a_callback_saves_and_no_checkpoint_has_is_told_with_the_first(tmp_path: Path) -> None:
    texts: list[str] = []

    class Looks(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            texts.append(told(tmp_path)["text"])

    _fit([ours(tmp_path), Keeps(), Looks()], Net())

    assert set(texts) == {"exact except checkpoint.callbacks.Keeps.held: Opaque"}


def test_what_no_resume_reads_is_not_worth_a_word(tmp_path: Path) -> None:
    class Configured(Net):
        def __init__(self, config: Opaque) -> None:
            super().__init__()
            self.save_hyperparameters()

    _fit([ours(tmp_path)], Configured(Opaque()))
    assert told(tmp_path) == EXACT


class Data(L.LightningDataModule):
    def __init__(self, each_epoch: Callable[[Any], Any] = lambda held: None) -> None:
        super().__init__()
        self.held, self.each_epoch = Opaque(), each_epoch
        self.rows = torch.ones(3)
        self.names = ["x"] * 20_000
        self.stream = endless()

    def train_dataloader(self) -> Any:
        self.each_epoch(self.held)
        return _train()

    def val_dataloader(self) -> Any:
        return _val()


@pytest.mark.parametrize("each_epoch", [lambda held: None, count])
def test_of_a_data_module_what_changes_is_told(
    each_epoch: Callable[[Any], Any], tmp_path: Path
) -> None:
    trainer = _trainer([ours(tmp_path)], reload_dataloaders_every_n_epochs=1)
    trainer.fit(Net(), datamodule=Data(each_epoch))

    reason = "data module.held (Opaque) changes, and cannot be stored"
    assert told(tmp_path)["reasons"] == ([reason] if each_epoch is count else [])


class Phase(enum.Enum):
    MAIN = 1


def test_what_could_not_be_put_back_is_a_reason(tmp_path: Path) -> None:
    _fit([ours(tmp_path)], Steps(Phase.MAIN))
    assert told(tmp_path) == EXACT
    _fit([ours(tmp_path, resume="auto")], Steps(None), max_epochs=3)

    assert told(tmp_path)["reasons"] == ["Steps.held: Phase could not be put back"]


class Shadow(L.Callback):
    """Holds a network of its own; what it does with it is told by the flags."""

    def __init__(self, *, moves: bool) -> None:
        self.net, self.moves = torch.nn.Linear(4, 4), moves

    def on_train_batch_end(self, *_: Any) -> None:
        if self.moves:
            with torch.no_grad():
                self.net.weight.mul_(0.9)


class SavedShadow(Shadow):
    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.net.load_state_dict(state_dict)


@pytest.mark.parametrize(
    ("callback", "reasons"),
    [
        (lambda: Shadow(moves=False), []),
        (lambda: SavedShadow(moves=True), []),
        (
            lambda: Shadow(moves=True),
            ["callback Shadow.net (Linear) changes, and cannot be stored"],
        ),
    ],
)
def test_a_network_that_is_none_of_the_models(
    callback: Callable[[], L.Callback], reasons: list[str], tmp_path: Path
) -> None:
    _fit([ours(tmp_path), callback()], Net())
    assert told(tmp_path)["reasons"] == reasons


class Lazy(L.Callback):
    def __init__(self) -> None:
        self.helper: Any = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            self.helper = Opaque()
            self.found = Opaque()


def test_what_was_none_and_cannot_be_stored_by_now_has_changed(tmp_path: Path) -> None:
    _fit([ours(tmp_path), Lazy()], Net())
    report = told(tmp_path)
    assert report["reasons"] == ["callback Lazy.helper (Opaque) changes, and cannot be stored"]


class Views(L.Callback):
    def __init__(self) -> None:
        self.history = torch.zeros(6)
        self.window = self.history[:3]
        self.alone, self.none = torch.zeros(2), torch.zeros(0)
        self.same = self.alone


def test_tensors_that_share_memory_are_an_exception(tmp_path: Path) -> None:
    _fit([ours(tmp_path), Views()], Net())
    [what] = told(tmp_path)["reasons"]
    assert what == "Views.window, which shares memory with another tensor and comes back alone"


def test_a_run_that_goes_on_from_what_is_not_exact_is_not(tmp_path: Path) -> None:
    _fit([ours(tmp_path)], Steps(Opaque(), count), max_epochs=1)
    before = told(tmp_path)
    assert not before["exact"]
    _fit([ours(tmp_path, resume="auto")], Steps(Opaque()), max_epochs=2)
    assert told(tmp_path) == before
