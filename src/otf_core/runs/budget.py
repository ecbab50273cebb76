"""How long a fork trains: it is held when that is over; training thread."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from otf_core.control.delegate import Position


@dataclasses.dataclass
class Budget:
    """Of one run.

    Attributes:
        until_step: held when so many steps are done.
        until_epoch: held when so many epochs are done.
        patience: held after so many validations without a better ``monitor``.
    """

    until_step: int | None = None
    until_epoch: int | None = None
    patience: int | None = None
    monitor: str = "val_loss"
    best: float = math.inf
    worse: int = 0
    _last: Any = dataclasses.field(default=None, repr=False)

    def __bool__(self) -> bool:
        """Whether there is a limit at all."""
        return (  # at every step
            self.until_step is not None or self.until_epoch is not None or self.patience is not None
        )

    def over(self, now: Position, logged: Mapping[str, Any]) -> str | None:
        """Why the run is to be held here; None: it trains on."""
        if (why := self.counted(now)) is not None:
            return why
        if self.patience is not None and self._is_stuck(logged.get(self.monitor)):
            return f"{self.monitor} was not below {self.best:.4g} for {self.worse} validations"
        return None

    def counted(self, now: Position) -> str | None:
        """``over`` as far as every rank of a run finds it by counting."""
        if self.until_step is not None and now.step >= self.until_step:
            return f"its {self.until_step:,} steps are done"
        if self.until_epoch is not None and now.epochs_done >= self.until_epoch:
            return f"its {self.until_epoch} epochs are done"
        return None

    def _is_stuck(self, value: Any) -> bool:
        """A new object is a new validation; only then is it read, which waits for a device."""
        if value is None or value is self._last:
            return False
        self._last = value
        found = float(value)
        if found < self.best:
            self.best, self.worse = found, 0
        else:
            self.worse += 1
        assert self.patience is not None
        return self.worse >= self.patience

    def to_state(self) -> dict[str, Any]:
        """As it lies in a checkpoint."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
