"""Every private name of Lightning that otf stands on is there, and is what otf takes it for.

A new Lightning that has moved one fails here, by name, before a user meets it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from otf_lightning import inside
from otf_lightning.digits import Digits, LitDigits

SOURCE = Path(inside.__file__).read_text()
NAMES = [(owner, name) for owner, names in inside.PRIVATE.items() for name in names]


class Look(L.Callback):
    """Looks at the trainer in the middle of an epoch, when a validation has been before."""

    def __init__(self, look: Callable[[L.Trainer], None]) -> None:
        self._look = look
        self.looked = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.looked = True
            self._look(trainer)


@pytest.fixture
def in_fit() -> Callable[[Callable[[L.Trainer], None]], None]:
    """Runs a look inside of a real fit."""

    def run(look: Callable[[L.Trainer], None]) -> None:
        torch.set_num_threads(1)
        callback = Look(look)
        trainer = L.Trainer(
            max_steps=4,
            accelerator="cpu",
            callbacks=[callback],
            val_check_interval=2,
            limit_val_batches=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(LitDigits(), datamodule=Digits())
        assert callback.looked

    return run


def test_every_name_is_there_in_a_fit(in_fit: Any) -> None:
    def look(trainer: L.Trainer) -> None:
        missing = []
        for owner, name in NAMES:
            holder = attrgetter(owner)(trainer) if owner else trainer
            # What an evaluation makes first is there once it has begun.
            made_later = (owner, name) in {("", "_last_val_time")}
            if not hasattr(holder, name) and not made_later:
                missing.append(f"trainer.{owner}.{name}".replace("..", "."))
        assert not missing, f"Lightning {L.__version__} has moved {missing}"

    in_fit(look)


def test_steps_batches_and_logged_values_are_what_they_say(in_fit: Any) -> None:
    def look(trainer: L.Trainer) -> None:
        # In the last hook of batch 3 neither is counted yet: the public hooks come too early.
        assert inside.batches_done(trainer) == 2
        assert inside.steps_done(trainer) == 2
        logged = inside.logged(trainer)
        assert {"train_loss", "val_loss"} <= logged.keys()
        assert inside.logged(trainer) is logged, "the live mapping, not a copy"
        assert trainer.callback_metrics["train_loss"] == logged["train_loss"]

    in_fit(look)


def test_a_checkpoint_is_the_one_that_lightning_saves(in_fit: Any, tmp_path: Path) -> None:
    def look(trainer: L.Trainer) -> None:
        ours = inside.dump_checkpoint(trainer)
        trainer.save_checkpoint(tmp_path / "theirs.ckpt")
        theirs = torch.load(tmp_path / "theirs.ckpt", weights_only=True)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][name], tensor)

    in_fit(look)


def test_loops_have_their_loaders_and_sources(in_fit: Any) -> None:
    def look(trainer: Any) -> None:
        train, val = inside.fit_loaders(trainer)
        assert (train.batch_size, val.batch_size) == (32, 90)
        for testing in (True, False):
            loop = inside.eval_loop(trainer, testing=testing)
            assert inside.source_is_defined(loop)
            before = inside.set_source(loop, None)
            assert before is trainer.datamodule
            assert inside.set_source(loop, before) is None

    in_fit(look)


def test_the_gate_is_reached_between_two_batches_and_taken_off_again() -> None:
    torch.set_num_threads(1)
    seen: list[tuple[str, int]] = []

    class Hooks(L.Callback):
        wraps = inside.Wraps()

        def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
            loop = trainer.fit_loop.epoch_loop
            advance = loop.advance

            def gated(data_fetcher: Any) -> None:
                seen.append(("gate", inside.batches_done(trainer)))
                advance(data_fetcher)

            self.wraps.put(loop, "advance", gated)

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(("batch", inside.batches_done(trainer)))

        def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.wraps.off()
            assert "advance" not in vars(trainer.fit_loop.epoch_loop)

    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[Hooks()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LitDigits(), datamodule=Digits())
    assert seen == [("gate", 0), ("batch", 0), ("gate", 1), ("batch", 1)]


# The modules that reach into Lightning; what they use is listed in the first.
REACHING = ("inside.py", "snapshot.py", "logged.py", "positions.py", "training_data.py")
# Not Lightning's: our own, and those of Python.
OWN = {"_undo", "_call_lightning_datamodule_hook", "_metadata"}


def _names_used(module: str) -> set[str]:
    body = (Path(inside.__file__).parent / module).read_text()
    if module == "inside.py":
        body = body.partition("class Wraps")[2]
    return set(re.findall(r"\.(_[a-z]\w+)", body)) | set(re.findall(r"result\.(_[A-Z]\w+)", body))


@pytest.mark.parametrize("module", REACHING)
def test_every_private_name_in_the_code_is_listed(module: str) -> None:
    listed = {name for _, name in NAMES} | {
        part for owner in inside.PRIVATE for part in owner.split(".") if part.startswith("_")
    }
    listed |= {name for names in inside.PRIVATE_CLASSES.values() for name in names}
    used = _names_used(module) - OWN
    assert used <= listed, f"not listed in PRIVATE: {sorted(used - listed)}"


@pytest.mark.parametrize("module", inside.PRIVATE_CLASSES)
def test_every_class_that_is_not_public_is_there(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in inside.PRIVATE_CLASSES[module] if not hasattr(found, name)]
    assert not missing, f"Lightning {L.__version__} has moved {missing}"


def test_nothing_else_reaches_in() -> None:
    """The rest of otf_lightning uses what Lightning makes public."""
    elsewhere = {
        f"{path.name}: {name}"
        for path in Path(inside.__file__).parent.glob("*.py")
        if path.name not in REACHING
        for name in re.findall(
            r"(?:trainer|loop|loop\.\w+|connector)\.(_[a-z]\w+)", path.read_text()
        )
        if not re.search(rf"self\.{name}\b", path.read_text())
    }
    assert not elsewhere
