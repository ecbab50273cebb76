"""The training batches of a loop that the user owns; training thread.

The loop holds a ``Handed``, whose inner iterator can be exchanged while the ``for`` is under way.
A DataLoader hands one out by itself, to whoever iterates it; what is no DataLoader has to be read
through ``session.batches()``.

Rule: what the loop's head does in a resumed process leaves no trace: the state is put back once
more before the first batch is fetched.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch.utils.data import DataLoader

from otf_core.state.data_tap import tapped
from otf_core.state.reading import Reading


class Handed:
    """The iterator that a ``for`` of the user's holds.

    Attributes:
        inner: the one it reads at the moment.
        n: batches that it has handed out.
        over: it has no more.
    """

    def __init__(self, batches: Batches, inner: Iterator[Any], n: int = 0) -> None:
        self._batches, self.inner, self.n, self.over = batches, inner, n, False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._batches.fetches(self)
        try:
            batch = next(self.inner)
        except StopIteration:
            self.over = True
            raise
        self.n += 1
        self._batches.fetched(batch)
        return batch

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]  # raises what that raises

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["inner"], name)


class Batches:
    """What is read of the training loader, by whichever iterator.

    Args:
        before_first: called before the first batch of what was put back is fetched.
        fetched: called with each batch.

    Attributes:
        reading: the loader, with the iterator that was advanced last once ``note`` was called.
        current: whoever was advanced last; None between two epochs.
        ours: an iterator is being made by us.
        read: a batch was asked for.
    """

    def __init__(
        self, loader: Any, before_first: Callable[[], None], fetched: Callable[[Any], None]
    ) -> None:
        self.reading = Reading(loader)
        self._before_first, self.fetched = before_first, fetched
        self.current: Handed | None = None
        self._ready: Handed | None = None  # put back, and not yet asked for
        self._first: Handed | None = None  # put back, and nothing fetched of it
        self.ours = self.read = False
        self._class: Any = None

    @property
    def hands(self) -> bool:
        """Whether the loader hands its iterators out by itself."""
        return self._class is not None

    def attach(self) -> None:
        """Have the loader hand out iterators that can be exchanged."""
        loader = self.reading.loader
        if not (isinstance(loader, DataLoader) and tapped(loader)):
            return
        if hasattr(type(loader), "otf_batches"):
            msg = "train_loader was asked to be read by two sessions at a time; allowed: one"
            raise ValueError(msg)
        self._class = type(loader)
        object.__setattr__(loader, "__class__", _handing_class(self._class, self))

    def detach(self) -> None:
        """Leave the loader as it was; the tap stays, and is not in the way."""
        if self._class is not None:
            object.__setattr__(self.reading.loader, "__class__", self._class)
            self._class = None

    @property
    def waits(self) -> bool:
        """Whether something was put back that no ``for`` has asked for yet."""
        return self._ready is not None

    def hand(self) -> Handed:
        """An iterator for the loop: a new epoch's, or the one that was put back."""
        if self._ready is not None:
            handed, self._ready = self._ready, None
            return handed
        with self.making():
            return Handed(self, iter(self.reading.loader))

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """The iterators that are made inside are ours, not a loop's."""
        self.ours = True
        try:
            yield
        finally:
            self.ours = False

    def fetches(self, handed: Handed) -> None:
        """It is about to be advanced."""
        if self._first is not None and handed is self._first:
            self._first = None
            self._before_first()
        self.current, self.read = handed, True

    def note(self) -> None:
        """Tell the reading where the loop is; before it is captured."""
        if self._ready is not None:
            return  # nothing was read since it was put there
        self.reading.iterator = self.current.inner if self.current is not None else None
        self.reading.n = self.current.n if self.current is not None else 0

    def go_on(self, *, within: bool) -> None:
        """The reading was put elsewhere: let the loop go on from there.

        Args:
            within: the loop stands in its ``for``, whose iterator is exchanged.
        """
        inner, n = self.reading.iterator, self.reading.n
        self._ready = self._first = None
        if within and self.current is not None:
            if inner is None:  # at an epoch's beginning, where the loop would make one
                with self.making():
                    inner = iter(self.reading.loader)
            self.current.inner, self.current.n, self.current.over = inner, n, False
        elif inner is None:
            self.current = None
        else:
            self._ready = self._first = self.current = Handed(self, inner, n)

    def end_epoch(self) -> None:
        """The loop has left its ``for``, for good."""
        self.current = self._ready = self._first = None


def _handing_class(cls: Any, batches: Batches) -> Any:
    class HandingLoader(cls):  # type: ignore[misc]  # one base only, as for the tap
        otf_batches = batches

        @functools.wraps(cls.__iter__)
        def __iter__(self) -> Any:
            return super().__iter__() if batches.ours else batches.hand()

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(HandingLoader, name, getattr(cls, name))
    return HandingLoader
