"""A framework of one's own under control: a trainer as people write it, and what otf needs of it.

docs/frameworks.md says what each part is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from otf_core.control.delegate import Applied, Evaluation, OnBatch, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.opening import RunOptions, tell_epoch
from otf_core.session import Session
from otf_core.state.data_tap import position, reasons, set_around, tap
from otf_core.state.host_copy import host_copy, sizes_of
from otf_core.state.rng import get_rng, parked_rng, set_rng
from otf_core.steering.cadence import Cadence, Stepping
from otf_core.steering.params import Knob, Steering


class Trainer:
    """Trains. It knows nothing of otf, and has the places where somebody may look in."""

    def __init__(
        self, model: nn.Module, train: DataLoader[Any], val: DataLoader[Any], *, epochs: int
    ) -> None:
        self.model, self.train, self.val, self.epochs = model, train, val, epochs
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)
        self.step = self.epoch = self.batch_idx = 0
        self.batches: Iterator[Any] | None = None
        self.logged: dict[str, Any] = {}
        self.between_batches: Callable[[], bool] = lambda: False  # True: end here
        self.at_end: Callable[[], None] = lambda: None
        self.on: Callable[..., None] = lambda _event, *_: None

    def fit(self) -> None:
        while self.epoch < self.epochs:
            if self.batches is None:
                self.batches = iter(self.train)
            if self.between_batches():
                return
            if self.batches is None:
                continue
            batch = next(self.batches, None)
            if batch is not None:
                self.train_on(batch)
                if self.batch_idx == len(self.train):
                    self.logged = {**self.logged, "val_loss": self.validate()}
                continue
            self.epoch, self.batch_idx, self.batches = self.epoch + 1, 0, None
            self.on("epoch_end", self.epoch - 1)
            if self.epoch >= self.epochs:
                self.at_end()

    def train_on(self, batch: Any) -> None:
        self.on("batch_start", batch)
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.on("before_step")
        self.optimizer.step()
        self.schedule.step()
        self.step, self.batch_idx = self.step + 1, self.batch_idx + 1
        self.logged = {**self.logged, "train_loss": loss.detach()}
        self.on("batch_end", batch, loss)

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.model(inputs), labels)

    @torch.no_grad()
    def validate(self, limit: int | None = None) -> torch.Tensor:
        self.model.eval()
        losses = [self.loss(b) for i, b in enumerate(self.val) if limit is None or i < limit]
        self.model.train()
        return torch.stack(losses).mean()


class Delegate:
    """What otf asks of the trainer; every method runs on the training thread."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def attach(self) -> None:
        t = self.trainer
        tap(t.train)  # from now on the loader knows where it stands
        self._found = t.between_batches, t.at_end, t.on

    def install_batch_boundary_hook(
        self, tick: Callable[[], bool], at_end: Callable[[], None] = lambda: None
    ) -> None:
        self.trainer.between_batches, self.trainer.at_end = tick, at_end

    def detach(self) -> None:
        t = self.trainer
        t.between_batches, t.at_end, t.on = self._found

    def position(self) -> Position:
        t = self.trainer
        return Position(
            step=t.step,
            global_step=t.step,
            epoch=t.epoch,
            batch_idx=t.batch_idx,
            max_epochs=t.epochs,
            epochs_done=t.epoch,
        )

    def capture(self, pool: Any = None, *, in_batch: bool = False) -> dict[str, Any]:
        t = self.trainer
        # An exception has left the batch half done; it counts as done, so that none comes twice.
        place = {"step": t.step, "epoch": t.epoch, "batch_idx": t.batch_idx + in_batch}
        state = {
            "state_dict": t.model.state_dict(),
            "optimizer": t.optimizer.state_dict(),
            "schedule": t.schedule.state_dict(),
            "place": {**place, "epochs": t.epochs},
            "loader": position(t.train, t.batches) if t.batches is not None else None,
            "rng": get_rng(),
            "otf": {},  # the session's own part
        }
        copy: dict[str, Any] = host_copy(state, pool)
        return copy

    def sizes(self) -> Sequence[tuple[int, bool]]:
        return sizes_of([self.trainer.model.state_dict(), self.trainer.optimizer.state_dict()])

    def check(self, state: Mapping[str, Any]) -> None:
        here = {name: list(value.shape) for name, value in self.trainer.model.state_dict().items()}
        model = state.get("state_dict", {})
        there = {name: list(value.shape) for name, value in model.items()}
        names = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        if names or not model:
            first = names[0]
            told = f"{first} {there.get(first, 'none')} (here {here.get(first, 'none')})"
            detail = f"The checkpoint is of another model: {told}; the run is as it was."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)

    def apply(self, state: dict[str, Any]) -> Applied:
        self.check(state)
        t = self.trainer
        t.model.load_state_dict(state["state_dict"])
        t.optimizer.load_state_dict(state["optimizer"])
        t.schedule.load_state_dict(state["schedule"])
        place, loader = state["place"], state["loader"]
        t.step, t.epoch, t.batch_idx = place["step"], place["epoch"], place["batch_idx"]
        t.epochs = max(t.epochs, place["epochs"])  # an extension stays one
        t.batches = None
        if loader is not None:
            t.train.otf_load(loader)  # type: ignore[attr-defined]
            t.batches = iter(t.train)
            set_around(t.train, loader["around"], own=False)
        set_rng(state["rng"])  # last: what comes before draws
        return Applied()

    def environment(self) -> dict[str, Any]:
        return {"data": len(self.trainer.train)}

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        return reasons(self.trainer.train), []

    def extend(self, asked: Mapping[str, int]) -> None:
        if asked.get("max_epochs", -1) < 0:
            detail = f"extend was asked with {dict(asked)}; allowed: a number of epochs."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        self.trainer.epochs = asked["max_epochs"]

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        begun_s = time.monotonic()
        with parked_rng():
            loss = float(self.trainer.validate(limit_batches))
        return Evaluation({"val_loss": loss}, loss, time.monotonic() - begun_s)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        raise CommandError(ErrorCode.UNSUPPORTED, NO_TEST)

    def leaving(self) -> bool:
        return False

    def request_stop(self) -> None:
        """The boundary's True ends the loop."""

    # What can be steered.

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return [self.trainer.optimizer]

    def schedulers(self) -> Sequence[tuple[Any, torch.optim.Optimizer]]:
        return [(self.trainer.schedule, self.trainer.optimizer)]

    def cadence(self) -> Cadence:
        t = self.trainer
        return Cadence(t.step, t.batch_idx, t.epoch, len(t.train), 1, [Stepping("step")])

    def trainer_knobs(self) -> Mapping[str, Knob]:
        return {}


NO_TEST = "This trainer has no test loop."


def fit(trainer: Trainer, options: RunOptions, delegate: Delegate | None = None) -> None:
    """``trainer.fit()`` with a session around it."""
    delegate = delegate or Delegate(trainer)
    name = type(trainer.model).__name__
    delegate.attach()
    session = Session(
        delegate,
        options.session_options(name, options.origin(name)),
        steering=Steering(delegate),
        unsupported={"test_now": NO_TEST, "test": NO_TEST},
    )
    epoch = 0

    def told() -> dict[str, Any]:
        return {
            "lrs": lambda: [group["lr"] for group in trainer.optimizer.param_groups],
            "logged": lambda: trainer.logged,
            "epoch": epoch,
        }

    def on(event: str, *args: Any) -> None:
        nonlocal epoch
        recorder, parameters = session.recorder, trainer.model.parameters
        if event == "batch_start":
            epoch = trainer.epoch
            recorder.batch_started(trainer.model)
        elif event == "before_step":
            recorder.before_optimizer_step(parameters)
        elif event == "batch_end":
            recorder.batch_ended(args[1], args[0], parameters)
        elif event == "epoch_end":
            session.tell_step(**told())
            tell_epoch(session, args[0])

    trainer.on = on
    delegate.install_batch_boundary_hook(
        lambda: session.tick(**told()), lambda: session.at_end(**told())
    )
    try:
        session.start(meta={"model": name})
        session.begin()
        trainer.fit()
        session.tell_step(**told())
        session.finish("finished")
    except (KeyboardInterrupt, SystemExit):
        session.finish("interrupted")
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        session.finish("failed", error=said, left_by=type(error).__name__)
        raise
    finally:
        delegate.detach()
        session.close()
