"""What of the training data can be set while an epoch runs: the size of a batch, and how much a
class weighs in a ``WeightedRandomSampler``.

Rule 1: an epoch is read to its end as it was begun. What is set is used from the next one on, and
is put in place before its iterator is made; or at once, and then the epoch begins anew.
Rule 2: each rank does it by itself, by counting; rank 0 tells nobody.
Rule 3: what is set for the next epoch holds for the choice of samples that it was set for: whoever
chooses others (a fork, a rollback) says all of it.

All of it is for the training thread, between two batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Literal

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.data import ChosenData, DataChoice, TrainingData

When = Literal["next epoch", "now"]
WHENS: Final = ("next epoch", "now")
MAX_CLASSES: Final = 100  # each is a row of ``list_params``
MAX_FACTOR: Final = 1000.0  # of classes more apart than that one is as good as left out


class DataValues:
    """Of one fit.

    Args:
        data: this rank's.
        tell: one line for whoever looks at the run.
    """

    def __init__(self, data: TrainingData, tell: Callable[[str], object] = lambda _: None) -> None:
        self._data, self.tell = data, tell
        self.when: When = "next epoch"
        self._wanted: DataChoice | None = None  # from the next epoch on
        self._of: DataChoice | None = None  # what was trained on when it was wanted

    def why_not(self) -> str | None:
        """A sentence why batches cannot be of another size; None where they can."""
        return self._data.why_no_other_batches()

    def batch_size(self) -> int | None:
        """From the next epoch on; None where it cannot be set."""
        chosen = self._data.usable()
        return chosen.batch_size(self._next(chosen)) if chosen is not None else None

    def check_batch_size(self, size: int) -> None:
        """Raises CommandError where it cannot be that."""
        chosen = self._needed()
        now = chosen.batch_size(chosen.choice)
        self._data.check_here(self._sized(chosen, size))
        if now is not None and size < now and self._data.ends_with_its_schedule():
            detail = (
                f"A batch size of {size} was asked, it is {now}; an epoch would have more steps, "
                f"and its schedule (OneCycleLR) raises behind its last; allowed: {now} or more."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="value", allowed={"min": now})

    def set_batch_size(self, size: int) -> None:
        """See ``when``."""
        self._set(self._sized(self._needed(), size))

    def batch_size_in_use(self) -> int | None:
        """Of the epoch that runs."""
        chosen = self._data.usable()
        return chosen.batch_size(chosen.choice) if chosen is not None else None

    def classes(self) -> list[str]:
        """Whose weight can be set; none where it cannot."""
        chosen = self._data.usable()
        if chosen is None or len(chosen.classes()) > MAX_CLASSES:
            return []
        now = self._next(chosen)
        return chosen.classes() if now.ids is None and now.weights is None else []

    def factor(self, label: str) -> float:
        """Of a class, from the next epoch on."""
        chosen = self._data.usable()
        now = self._next(chosen) if chosen is not None else DataChoice()
        return (now.factors or {}).get(label, 1.0)

    def factor_in_use(self, label: str) -> float:
        """Of the epoch that runs."""
        return (self._data.choice.factors or {}).get(label, 1.0)

    def check_factor(self, label: str, factor: float) -> None:
        """Raises CommandError where it cannot be that."""
        self._data.check_here(self._weighed(self._needed(), label, factor))

    def set_factor(self, label: str, factor: float) -> None:
        """See ``when``."""
        self._set(self._weighed(self._needed(), label, factor))

    def set_when(self, when: When) -> None:
        """When what is set is used; what waits for the next epoch is used at once by "now"."""
        self.when = when
        if when == "now":
            self._now()

    def begin_epoch(self) -> None:
        """An epoch begins, and its iterator is not made yet."""
        self._use("from this epoch on")

    # Inside.

    def _needed(self) -> ChosenData:
        chosen = self._data.usable()
        if chosen is None:
            detail = "Other batches were asked; the run has no loader that can make them."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return chosen

    def _next(self, chosen: ChosenData) -> DataChoice:
        if self._wanted is not None and self._of is not chosen.choice:
            self._wanted = None  # see rule 3
        return chosen.choice if self._wanted is None else self._wanted

    def _sized(self, chosen: ChosenData, size: int) -> DataChoice:
        own = chosen.batch_size(DataChoice())
        return dataclasses.replace(self._next(chosen), batch_size=None if size == own else size)

    def _weighed(self, chosen: ChosenData, label: str, factor: float) -> DataChoice:
        now = self._next(chosen)
        factors = {k: v for k, v in {**(now.factors or {}), label: factor}.items() if v != 1.0}
        return dataclasses.replace(now, factors=factors or None)

    def _set(self, wanted: DataChoice) -> None:
        chosen = self._needed()
        self._data.check_here(wanted)
        self._of = chosen.choice
        same = (wanted.batch_size, wanted.factors) == (self._of.batch_size, self._of.factors)
        self._wanted = None if same else wanted
        if self.when == "now":
            self._now()

    def _now(self) -> None:
        if self._data.within_epoch() and self._use("at once, the epoch begins anew"):
            self._data.begin_pass_here()

    def _use(self, said: str) -> bool:
        """Put in place what is wanted; whether anything was."""
        chosen = self._data.usable()
        if chosen is None:
            return False
        wanted = self._next(chosen) if self._wanted is not None else None
        if wanted is None or wanted is chosen.choice:
            return False
        self._wanted = None
        for text in (f"{_described(wanted, chosen)}, {said}", *self._data.change_here(wanted)):
            self.tell(text)
        return True


def _described(choice: DataChoice, chosen: ChosenData) -> str:
    weighs = "".join(f", class {k} weighs {v:g} times" for k, v in (choice.factors or {}).items())
    return f"batches of {chosen.batch_size(choice)}{weighs}"
