"""What a fit has logged so far, to plain values and back: an object with a state.

Metrics themselves are modules, and have their state there; here is under which name they log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otf_core.runner.logged import REDUCE, Entry, How, LogBook, Results

_NAMES: Final = {reduce: name for name, reduce in REDUCE.items()}  # mean last but one: avg
_VALUES: Final = ("latest", "computed", "has_reset", "samples")
_BOOK: Final = ("last_fx", "first_iteration", "callback", "logged", "progress")
_LOOPS: Final = ("train", "validate")


class LoggedState:
    """The log book of one fit; training thread, between two batches."""

    def __init__(self, book: LogBook) -> None:
        self._book = book

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        book = self._book
        names = {id(metric): name for name, metric in book.metrics().items()}
        return {
            "book": {name: _copied(getattr(book, name)) for name in _BOOK},
            "loops": {
                loop: [_row(key, entry, names) for key, entry in book.results[loop].items()]
                for loop in _LOOPS
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what state_dict returned."""
        book = self._book
        for name in _BOOK:
            setattr(book, name, _copied(state["book"][name]))
        metrics = book.metrics()
        for loop in _LOOPS:
            results: Results = book.results[loop]
            results.clear()
            for row in state["loops"][loop]:
                results[tuple(row["key"])] = _entry(row, metrics)


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _row(key: tuple[Any, ...], entry: Entry, names: Mapping[int, str]) -> dict[str, Any]:
    how = entry.how._asdict()
    return {
        "key": list(key),
        "fx": entry.fx,
        "name": key[1],
        "how": {**how, "reduce": _NAMES[entry.how.reduce]},
        "is_tensor": entry.is_tensor,
        "value": entry.value if entry.is_tensor else names[id(entry.value)],
        **{name: getattr(entry, name) for name in _VALUES},
    }


def _entry(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> Entry:
    how = How(**{**row["how"], "reduce": REDUCE[row["how"]["reduce"]]})
    entry = Entry(row["fx"], row["name"], how, is_tensor=row["is_tensor"])
    entry.value = row["value"] if row["is_tensor"] else metrics[row["value"]]
    for name in _VALUES:
        setattr(entry, name, row[name])
    return entry
