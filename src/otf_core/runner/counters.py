"""Where a fit stands: every counter of its loops as a plain attribute."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Counters:
    """The counters of one fit; what each hook sees of them is what it sees in Lightning 2.6.

    Attributes:
        epoch: epochs that are completely over, ``current_epoch`` of the module.
        epochs_processed: as ``epoch``, but raised before the hooks of the epoch's end.
        in_epoch: an epoch has begun and its end has not.
        batches_begun: batches of this epoch that were fetched and moved to the device.
        batches_done: batches of this epoch that are completely through.
        total_batches: as ``batches_begun``, of all epochs.
        global_step: optimizer steps, over all optimizers.
        batches_that_stepped: batches after which an optimizer stepped.
        is_last_batch: the batch in hand, or the last one, is the epoch's last.
        fetched: batches taken from the loader's iterator in this epoch.
        exhausted: the loader has no more batches for this epoch.
        ahead: the batch that was fetched to see whether there is one, where the loader does not
            know its length; at a safe point it is in hand, and is the next to be trained on.
    """

    epoch: int = 0
    epochs_processed: int = 0
    in_epoch: bool = False
    batches_begun: int = 0
    batches_done: int = 0
    total_batches: int = 0
    global_step: int = 0
    batches_that_stepped: int = 0
    is_last_batch: bool = False
    fetched: int = 0
    exhausted: bool = False
    ahead: list[Any] = dataclasses.field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All of it; ``ahead`` has the batch itself."""
        return {**vars(self), "ahead": list(self.ahead)}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what state returned."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state[field.name])
        self.ahead = list(state["ahead"])
