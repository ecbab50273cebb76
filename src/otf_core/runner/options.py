"""The arguments of a Runner, checked before anything begins."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from otf_core.runner.precision import precision_name
from otf_core.runner.refusals import RunnerError


@dataclasses.dataclass
class Options:
    """As those of Lightning's Trainer where they have its names.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a torch.device.
        progress: a bar on stderr; None: where stderr is a terminal.
    """

    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    # Both are said: of a command line 1 is a batch, and 1.0 all of them.
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    val_check_interval: int | float = 1.0
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | float = 2
    log_every_n_steps: int = 50
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    precision: Any = None
    device: Any = "auto"
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            RunnerError: a value out of its range.
        """
        self.precision = precision_name(self.precision)
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            setattr(self, name, _share_or_number(name, getattr(self, name)))
        self.val_check_interval = _share_or_number("val_check_interval", self.val_check_interval)
        if self.num_sanity_val_steps == -1:
            self.num_sanity_val_steps = math.inf
        for name in ("max_epochs", "max_steps"):
            self._at_least(name, -1)
        for name in ("min_epochs", "min_steps", "num_sanity_val_steps", "log_every_n_steps"):
            self._at_least(name, 0)
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            self._at_least(name, 1)
        if self.check_val_every_n_epoch is None and isinstance(self.val_check_interval, float):
            msg = (
                f"val_check_interval={self.val_check_interval} with check_val_every_n_epoch=None; "
                "allowed: an int, of training batches"
            )
            raise RunnerError(msg)
        if self.gradient_clip_algorithm is not None:
            self.gradient_clip_algorithm = self.gradient_clip_algorithm.lower()
        if self.gradient_clip_algorithm not in (None, "norm", "value"):
            msg = (
                f"gradient_clip_algorithm={self.gradient_clip_algorithm!r}; "
                'allowed: "norm", "value"'
            )
            raise RunnerError(msg)

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and (isinstance(value, bool) or value < least):
            msg = f"{name}={value!r}; allowed: {least} or more"
            raise RunnerError(msg)

    def epoch_limits(self) -> tuple[int, int | None]:
        """max_epochs, -1 for none, and min_epochs; 1000 epochs where nothing is said."""
        most, least = self.max_epochs, self.min_epochs
        if most is None:
            most = 1000 if self.max_steps == -1 else -1
        if least is None and self.min_steps is not None:
            least = 1
        return most, least

    def torch_device(self) -> torch.device:
        """The device that is meant."""
        if self.device != "auto":
            return torch.device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _share_or_number(name: str, value: Any) -> float:
    """An int counts batches, a float up to 1.0 is a share of them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        msg = f"{name}={value!r}; allowed: an int, or a float from 0.0 to 1.0"
        raise RunnerError(msg)
    if value <= 1:
        return value
    if value % 1:
        msg = f"{name}={value!r}; allowed: an int, or a float from 0.0 to 1.0"
        raise RunnerError(msg)
    return int(value)
