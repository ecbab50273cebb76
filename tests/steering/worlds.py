"""Small runs to steer: an optimizer, its schedules, and the delegate that names them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from otf_core.steering.cadence import Cadence, Stepping
from otf_core.steering.knobs import Knob
from otf_core.steering.params import Ended, Overwritten, Steering

STEPS = 24


@dataclasses.dataclass
class Run:
    """A Tunable, and the loop around it."""

    made: Sequence[Optimizer]
    stepped: Sequence[Any] = ()
    knobs: Mapping[str, Knob] = dataclasses.field(default_factory=dict)
    done: int = 0

    def optimizers(self) -> Sequence[Optimizer]:
        return self.made

    def schedulers(self) -> Sequence[tuple[Any, Optimizer]]:
        return [(scheduler, scheduler.optimizer) for scheduler in self.stepped]

    def trainer_knobs(self) -> Mapping[str, Knob]:
        return self.knobs

    def cadence(self) -> Cadence | None:
        stepping = [
            Stepping(
                "step", 1, "val_loss" if isinstance(s, lr_scheduler.ReduceLROnPlateau) else None
            )
            for s in self.stepped
        ]
        return Cadence(self.done, self.done, 0, None, 1, stepping)

    def step(self, index: int) -> None:
        """One step: optimizers, then schedules, as Lightning does."""
        with warnings.catch_warnings():
            # torch's SequentialLR itself calls step(epoch), which torch has deprecated.
            warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
            for optimizer in self.made:
                optimizer.step()
            for scheduler in self.stepped:
                step_schedule(scheduler, index)
        self.done += 1

    def lrs(self) -> list[float]:
        return [float(group["lr"]) for optimizer in self.made for group in optimizer.param_groups]


def overwritten(steering: Steering, step: int) -> list[Overwritten]:
    """What the script has written over, and nothing has ended beside."""
    found = steering.watch(step)
    assert not any(isinstance(each, Ended) for each in found)
    return [each for each in found if isinstance(each, Overwritten)]


def step_schedule(scheduler: Any, index: int) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0 / (1 + index % 5))
    elif getattr(scheduler, "by_epoch", False):
        scheduler.step(index / 2)
    else:
        scheduler.step()


def parameters(count: int = 2) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(3)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.ones_like(parameter)
    return made


def sgd(**kwargs: Any) -> SGD:
    first, second = parameters()
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 0.02}]
    return SGD(groups, lr=0.1, **{"momentum": 0.9, **kwargs})


def adam(**kwargs: Any) -> Adam:
    first, second = parameters()
    groups = [{"params": [first]}, {"params": [second]}]
    return Adam(groups, **{"lr": 0.1, **kwargs})


def halved(step: int) -> float:
    return 0.5 if step % 4 == 0 else 1.0


def damped(step: int) -> float:
    return 1.0 / (1 + step)


class RestartsByEpoch(lr_scheduler.CosineAnnealingWarmRestarts):
    """Stepped with an epoch, as its documentation shows."""

    by_epoch = True


def _sequential(optimizer: Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    return lr_scheduler.SequentialLR(
        optimizer,
        [warm, lr_scheduler.CosineAnnealingLR(optimizer, 12)],
        milestones=[5],
    )


def _chained(optimizer: Optimizer) -> Any:
    return lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=6),
            lr_scheduler.ExponentialLR(optimizer, 0.9),
        ]
    )


def _nested(optimizer: Optimizer) -> Any:
    chained = _chained(optimizer)
    after = lr_scheduler.ExponentialLR(optimizer, 0.8)
    with warnings.catch_warnings():
        # torch's own construction steps the inner ones before the optimizer.
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        return lr_scheduler.SequentialLR(optimizer, [chained, after], milestones=[7])


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 15], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=11),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=13),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2),
    "RestartsByEpoch": lambda o: RestartsByEpoch(o, 5, 2, 1e-4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=STEPS + 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=4),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS, 0.8),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, damped),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, halved),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.5, patience=2, min_lr=0.004
    ),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "SequentialLR of ChainedScheduler": _nested,
    "SWALR": lambda o: SWALR(o, 0.05, anneal_epochs=8),
}
