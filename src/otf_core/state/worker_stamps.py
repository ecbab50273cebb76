"""How a worker of a DataLoader stands, told with every batch; runs in the worker process.

Rule 1: what a worker does ahead of time counts from the moment its batch is handed out; how it
stood therefore travels with the batch.
Rule 2: only what has changed travels: the stamps go through a pipe of 64 KiB, which is all that
the workers have together.
Rule 3: a worker whose run was killed ends. It would wait for ever to write what it still has into
that pipe, once it is full: it holds the other end itself.
"""

# ruff: noqa: SLF001 -- the private names of torch are listed in tapped_iterators.PRIVATE

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, Final

from torch.utils.data import get_worker_info
from torch.utils.data._utils import fetch, pin_memory, worker

from otf_core.state.loader_parts import Attributes, Look, Parts, put_parts, reading_parts, same
from otf_core.state.plain_values import Decoder
from otf_core.state.rng import get_rng, set_rng

# RNG as get_rng has it; "data": part -> attributes; "ended": its data set has no more.
Stand = dict[str, Any]
_RNG: Final = ("torch", "numpy", "python")


def _changed(now: dict[str, Attributes], said: dict[str, Attributes]) -> dict[str, Attributes]:
    news = {
        path: {
            k: v for k, v in values.items() if path not in said or not same(v, said[path].get(k))
        }
        for path, values in now.items()
    }
    return {path: values for path, values in news.items() if values or path not in said}


def _gone(now: dict[str, Attributes], said: dict[str, Attributes]) -> dict[str, list[str] | None]:
    lost = {
        path: sorted(values.keys() - now[path].keys()) if path in now else None
        for path, values in said.items()
    }
    return {path: names for path, names in lost.items() if names != []}


def merged(stand: Stand, news: dict[str, Any]) -> Stand:
    """How the worker stands after the news; the stand itself stays, since snapshots hold it."""
    data = dict(stand["data"])
    for path, names in news["gone"].items():
        old = data.pop(path)
        if names is not None:
            data[path] = {k: v for k, v in old.items() if k not in names}
    for path, values in news["data"].items():
        data[path] = {**data.get(path, {}), **values}
    rng: Stand = {k: news[k] for k in _RNG if k in news}
    return {**stand, **rng, "data": data, "ended": news["ended"]}


class Stamped:
    """A batch, and what has changed in its worker when it was made."""

    def __init__(self, batch: Any, news: dict[str, Any]) -> None:
        self.batch, self.news = batch, news

    def pin_memory(self) -> Stamped:
        """Called by torch's pinning thread, as for any batch of a type of its own."""
        return Stamped(pin_memory.pin_memory(self.batch), self.news)  # type: ignore[no-untyped-call]


class StampedEnd(worker._IterableDatasetStopIteration):
    """The end of a worker's iterable data set, and what has changed since its last batch."""

    def __init__(self, worker_id: int, news: dict[str, Any]) -> None:
        super().__init__(worker_id)
        object.__setattr__(self, "news", news)  # torch's is a frozen dataclass


class Stamp:
    """collate_fn in a worker: the user's, then the news.

    Args:
        collate_fn: the user's.
        data: how data set and collate_fn stood before the fork, which need not be told.
        full: samples in a batch of an iterable data set; one with fewer is its last.
    """

    def __init__(
        self, collate_fn: Callable[[Any], Any], data: dict[str, Attributes], full: int | None
    ) -> None:
        self._collate_fn, self._full = collate_fn, full
        self._said: Stand = {"data": data}
        self._look = Look()

    def __call__(self, samples: Any) -> Stamped:
        ended = self._full is not None and len(samples) < self._full
        return Stamped(self._collate_fn(samples), {**self.news(), "ended": ended})

    def parts(self) -> Parts:
        """The worker's copies of what makes samples and batches."""
        info: Any = get_worker_info()
        return reading_parts(info.dataset, self._collate_fn)

    def news(self) -> dict[str, Any]:
        """What has changed since it was asked last."""
        now = {**get_rng(), "data": self._look(self.parts())}
        said, self._said = self._said, now
        return {
            **{k: now[k] for k in _RNG if said.get(k) != now[k]},
            "data": _changed(now["data"], said["data"]),
            "gone": _gone(now["data"], said["data"]),
            "ended": False,
        }

    def put_back(self, stand: Stand) -> None:
        """Let this worker stand so."""
        put_parts(self.parts(), stand["data"], Decoder(small=True), own=True)
        set_rng(stand)
        self._said = stand


class Begin:
    """worker_init_fn: the user's, then how this worker stood.

    Args:
        stamp: the one that is this worker's collate_fn.
        init_fn: the user's.
        stands: worker -> how it stood; a worker that has handed out nothing is not in it.
    """

    def __init__(
        self, stamp: Stamp, init_fn: Callable[[int], None] | None, stands: dict[int, Stand]
    ) -> None:
        self._stamp, self._init_fn, self._stands = stamp, init_fn, stands
        self.results: Any = None  # the queue of the batches, as soon as there is one
        self._parent = 0

    def __call__(self, worker_id: int) -> None:
        self._parent = os.getppid()  # not the trainer where a fork server is between them
        Finalize(None, self._ends, exitpriority=0)  # before the queue waits for its thread
        if self._init_fn is not None:
            self._init_fn(worker_id)
        if worker_id in self._stands:
            self._stamp.put_back(self._stands[worker_id])
            if self._stands[worker_id]["ended"]:
                fetch._IterableDatasetFetcher = self._ended  # type: ignore[assignment, misc]
        # In this process only, as above: what a data set leaves behind at its end is told too.
        worker._IterableDatasetStopIteration = self._stamped_end  # type: ignore[assignment, misc]

    def _ends(self) -> None:
        # Only of a run that is dead: the thread that writes may still have the lock of the pipe,
        # though what it wrote was received, and the other workers would wait for it for ever.
        if os.getppid() != self._parent:
            self.results.cancel_join_thread()

    def _stamped_end(self, worker_id: int) -> StampedEnd:
        return StampedEnd(worker_id, self._stamp.news())

    def _ended(self, *args: Any) -> Any:
        """A fetcher that has read all, once; the next iteration has torch's own."""
        fetch._IterableDatasetFetcher = _FETCHER  # type: ignore[misc]
        return _EndedFetcher(*args)


_FETCHER: Final = fetch._IterableDatasetFetcher


class _EndedFetcher(fetch._BaseDatasetFetcher):
    def fetch(self, possibly_batched_index: Any) -> Any:  # noqa: ARG002 -- torch's signature
        raise StopIteration
