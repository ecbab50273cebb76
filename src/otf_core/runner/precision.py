"""Precision: autocast around the steps, and the scaler around the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import torch

from otf_core.runner.refusals import refuse

NAMES: Final = {
    None: "32-true",
    32: "32-true",
    "32": "32-true",
    "32-true": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    16: "16-mixed",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
}
_DTYPES: Final = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def precision_name(asked: Any) -> str:
    """The name in full; refuses what the Runner has not got."""
    if asked not in NAMES:
        refuse("precision", f"found {asked!r}")
    return NAMES[asked]


class Precision:
    """One of the three; ``scaler`` is there with 16-mixed."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self._device, self._dtype = device.type, _DTYPES.get(name)
        self.scaler: Any = None
        if name == "16-mixed":
            self.scaler = torch.amp.GradScaler(device.type)

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """What a step of the module runs in."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype, cache_enabled=False)

    @property
    def plain(self) -> bool:
        """Steps run in nothing."""
        return self._dtype is None

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss that is propagated back."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(
        self,
        optimizer: Any,
        closure: Callable[[], Any],
        before: Callable[[Any], None],
        *,
        automatic: bool,
        **kwargs: Any,
    ) -> Any:
        """Step the optimizer; the closure runs within it, and ``before`` behind the closure.

        With a scaler the closure runs first, gradients are unscaled, and the step is skipped
        where one of them is not finite.
        """
        if self.scaler is None:

            def both() -> Any:
                loss = closure()
                before(optimizer)
                return loss

            return optimizer.step(closure=both, **kwargs)
        if isinstance(optimizer, torch.optim.LBFGS):
            refuse("LBFGS with 16-mixed")
        loss = closure()
        skipped = loss is None and automatic
        if not skipped and not unscales_itself(optimizer):
            self.scaler.unscale_(optimizer)
        before(optimizer)
        if skipped:
            return loss
        output = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return output

    def state(self) -> dict[str, Any]:
        """The scaler's, empty without one."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Put back what state returned."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def unscales_itself(optimizer: Any) -> bool:
    """A fused optimizer unscales inside its step."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
