"""What modules log, under the names that every screen knows; no torch here.

A rule is a row of ``RULES``; a name that no row knows is left alone (the wire's ``metrics`` field
carries all that was logged under its own name).

Precedence, where several logged names mean the same:

1. Training metrics: the step's value (``train_loss_step``), then the plain name (``train_loss``),
   then the epoch's mean (``train_loss_epoch``). Validation and test: the plain name, the epoch's
   mean, then the step's value, since a single validation batch is not the validation loss.
2. Then the spelling that stands further left in the row; then what was logged first.
3. ``accuracy`` is the training accuracy; where only a validation accuracy is logged, it is that.

Case, and the separators ``/``, ``.``, ``-``, ``:`` and space, make no difference; ``valLoss`` is
``val_loss``. Of several loaders (``/dataloader_idx_N``) the first one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple


class Rule(NamedTuple):
    """One canonical name and what means the same."""

    name: str
    spellings: tuple[str, ...]  # normalised; the one further left wins
    suffixes: tuple[str, ...]  # endings in order of precedence


_STEP_FIRST: Final = ("_step", "", "_epoch")
_EPOCH_FIRST: Final = ("", "_epoch", "_step")
_LOSS: Final = ("loss",)
_ACCURACY: Final = ("accuracy", "acc", "multiclass_accuracy", "binary_accuracy")


def _spelled(phases: Iterable[str], words: Iterable[str]) -> tuple[str, ...]:
    words = tuple(words)
    before = tuple(f"{phase}_{word}" for phase in phases for word in words)
    return before + tuple(f"{word}_{phase}" for phase in phases for word in words)


_TRAIN: Final = ("train", "training")
_VAL: Final = ("val", "valid", "validation")
_TEST: Final = ("test", "testing")

RULES: Final[tuple[Rule, ...]] = (
    Rule("loss", _LOSS + _spelled(_TRAIN, _LOSS), _STEP_FIRST),
    Rule("val_loss", _spelled(_VAL, _LOSS), _EPOCH_FIRST),
    Rule("accuracy", _ACCURACY + _spelled(_TRAIN, _ACCURACY), _STEP_FIRST),
    Rule("val_accuracy", _spelled(_VAL, _ACCURACY), _EPOCH_FIRST),
    Rule("test_loss", _spelled(_TEST, _LOSS), _EPOCH_FIRST),
    Rule("test_accuracy", _spelled(_TEST, _ACCURACY), _EPOCH_FIRST),
)

# Where a canonical name has no source of its own, it takes that of another.
FALLBACKS: Final[tuple[tuple[str, str], ...]] = (("accuracy", "val_accuracy"),)

# A script that makes up a name every step must not fill the memory.
MAX_CACHED: Final = 256

_LOADER: Final = re.compile(r"/dataloader_idx_(\d+)$")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS: Final = re.compile(r"[\s/.:\-_]+")


def _table() -> dict[str, tuple[str, tuple[int, int]]]:
    """Normalised name -> (canonical name, rank); a lower rank wins."""
    return {
        spelling + suffix: (rule.name, (order, place))
        for rule in RULES
        for order, suffix in enumerate(rule.suffixes)
        for place, spelling in enumerate(rule.spellings)
    }


_TABLE: Final = _table()


def normalise(name: str) -> str | None:
    """``Train/Loss_step`` as ``train_loss_step``; None for a loader that is not the first."""
    loader = _LOADER.search(name)
    if loader is not None:
        if int(loader[1]) != 0:
            return None
        name = name[: loader.start()]
    return _SEPARATORS.sub("_", _CAMEL.sub("_", name)).strip("_").lower()


def resolve(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (canonical name, logged name) for these names; any thread."""
    best: dict[str, tuple[tuple[int, int], str]] = {}
    for logged in names:
        # str: the keys are the user's, who may have logged a number as a name.
        known = _TABLE.get(normalise(str(logged)) or "")
        if known is None:
            continue
        canonical, rank = known
        if canonical not in best or rank < best[canonical][0]:
            best[canonical] = (rank, logged)
    for canonical, other in FALLBACKS:
        if canonical not in best and other in best:
            best[canonical] = best[other]
    return tuple((rule.name, best[rule.name][1]) for rule in RULES if rule.name in best)


class Canonical:
    """A resolver that remembers; one thread. A step costs a dict lookup."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}

    def pairs(self, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """See resolve."""
        key = tuple(names)
        pairs = self._known.get(key)
        if pairs is None:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            pairs = self._known[key] = resolve(key)
        return pairs

    def pick(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The canonical names with the values as they are: nothing is converted or waited for."""
        return {canonical: metrics[logged] for canonical, logged in self.pairs(metrics)}


def canonicalize_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Canonical name -> number, of all that was logged; any thread.

    Only the canonical names are returned. A value that is no single number is None. A tensor on a
    device is waited for: on the step path use ``Canonical.pick`` on what ``LateReader`` has read.
    """
    return {canonical: _number(metrics[logged]) for canonical, logged in resolve(metrics)}


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    item = getattr(value, "item", None)  # a torch or NumPy scalar
    if not callable(item):
        return None
    try:
        plain = item()
    except (RuntimeError, TypeError, ValueError):  # more than one element, or none at all
        return None
    return float(plain) if isinstance(plain, int | float) else None
