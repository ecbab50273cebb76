"""A loader as a training reads it: where it stands, to plain values and back; training thread.

Rule: making an iterator draws random numbers, and so does bringing one to its position. Whoever
calls ``go_to`` calls ``settle`` of every loader after the last, and puts the RNG back then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from otf_core.state.data_tap import position, settled, tap, tapped, with_given
from otf_core.state.given import Settled
from otf_core.state.loader_parts import has_own_state, set_around
from otf_core.state.plain_values import Decoder, Encoder

_OVER: Final = object()


class Reading:
    """One training loader, and the iterator that is under way, which may be exchanged.

    Attributes:
        loader: tapped where it can be; any iterable.
        iterator: None between two epochs.
        n: batches that it has handed out.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = tap(loader)
        self.iterator: Iterator[Any] | None = None
        self.n = 0

    def begin(self) -> None:
        """A new epoch; what has been put back and not been read goes on instead."""
        self.read_by(iter(self.loader))

    def read_by(self, iterator: Iterator[Any]) -> None:
        """A new epoch, with an iterator of this loader that somebody else has made."""
        self.iterator, self.n = iterator, 0

    def fetch(self) -> Any:
        """The next batch. Raises StopIteration at the epoch's end."""
        assert self.iterator is not None, "fetch before begin"
        batch = next(self.iterator)
        self.n += 1
        return batch

    def end(self) -> None:
        """The epoch is over."""
        self.iterator, self.n = None, 0

    def capture(self, enc: Encoder) -> dict[str, Any]:
        """Where it stands, or between two epochs how its workers do."""
        return {
            "n": self.n,
            "live": self.iterator is not None,
            "position": self._position(enc),
        }

    def _position(self, enc: Encoder) -> Any:
        if self.iterator is None:
            return between(self.loader)
        state = position(self.loader, self.iterator)
        return with_given(self.loader, state) if tapped(self.loader) else enc(state)

    def go_to(self, saved: dict[str, Any], dec: Decoder) -> list[Settled]:
        """Bring the loader there; the position in ``saved`` becomes the one for this process.

        Returns:
            Where what the script gives differs from what it gave to the run that was saved.
        """
        differ = _load(self.loader, saved, dec)
        self.iterator = None
        if saved["live"]:
            self.iterator = iter(self.loader)
            if not tapped(self.loader) and not has_own_state(self.loader):
                for _ in range(saved["n"]):
                    next(self.iterator, _OVER)
        self.n = saved["n"]
        return differ

    def settle(self, saved: dict[str, Any]) -> None:
        """Samplers and data set as they were, after every iterator is made."""
        settle(self.loader, saved["position"])


def between(loader: Any) -> Any:
    """How a loader stands between two iterations: one of the validation, or of an epoch to come."""
    return with_given(loader, loader.otf_state(iterating=False)) if tapped(loader) else None


def go_between(loader: Any, saved: dict[str, Any]) -> list[Settled]:
    """Put back what ``between`` returned, which lies under ``position``."""
    return _load(loader, saved, Decoder())


def settle(loader: Any, state: Any) -> None:
    """See Reading.settle."""
    if tapped(loader) and state is not None:
        set_around(loader, state["around"], own=False)


def _load(loader: Any, saved: dict[str, Any], dec: Decoder) -> list[Settled]:
    state = saved["position"]
    if state is None:
        return []
    if tapped(loader):
        saved["position"], differ = settled(loader, state)
        loader.otf_load(saved["position"])
        return [differ]
    loader.load_state_dict(dec(state))
    return []
