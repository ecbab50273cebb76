"""The two iterators of a tapped DataLoader: torch's own, which also know how to go on.

Rule 1: a position is the RNG under which an iteration began and the number of indices drawn.
Going back draws the same indices again and loads none of the skipped samples.
Rule 2: making an iterator draws. Whoever restores one puts RNG, samplers and data set back
afterwards.
"""

# ruff: noqa: SLF001 -- the private names of torch are listed in PRIVATE

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import dataloader as torch_loader
from torch.utils.data._utils import worker

from otf_core.state.loader_parts import PositionError, around, replayed, set_around
from otf_core.state.plain_values import Decoder, Encoder, UnsupportedValueError
from otf_core.state.rng import get_rng, set_rng
from otf_core.state.worker_stamps import Begin, Stamp, Stamped, StampedEnd, Stand, merged

# What is used of torch 2.13's data loading beyond its documentation: owner -> names.
PRIVATE: Final = {
    "dataloader.DataLoader": ("_get_iterator", "_index_sampler"),  # and _iterator, of an instance
    "dataloader._BaseDataLoaderIter": ("_next_index", "_reset"),
    "dataloader._SingleProcessDataLoaderIter": ("_next_data",),
    "dataloader._MultiProcessingDataLoaderIter": (
        "_get_data",  # (task, batch) of a worker, as it arrives
        "_process_data",  # a batch is handed out
        "_reset",  # an iteration begins
        "_shutdown_workers",
        "_try_put_index",  # a task is given to the next worker
    ),
    "_utils.fetch": ("_IterableDatasetFetcher",),
    "_utils.worker": ("_IterableDatasetStopIteration",),
    "_utils.pin_memory": ("pin_memory",),
}
# Attributes of an iterator with workers.
INSTANCE: Final = (
    "_dataset_kind",
    "_index_sampler",
    "_num_workers",
    "_num_yielded",
    "_task_info",  # task -> (worker,), or (worker, batch) once it has arrived out of turn
    "_tasks_outstanding",
    "_worker_queue_idx_cycle",
    "_worker_result_queue",
    "_workers_status",  # whether a worker has more for this iteration
)

Position = dict[str, Any]
# Told the indices of each batch that is handed out.
Heard = Callable[[Any], None] | None


class Watch:
    """What draws from the training process's random numbers while a loader is read.

    Looked at in the first fetches, and then ever more rarely: a look takes some 50 µs.

    Attributes:
        reads: the data set does, after its first batch.
        indexes: the sampler does for every index, and something else draws in between.
    """

    def __init__(self) -> None:
        self.reads = self.indexes = False
        self._after: dict[str, Any] = {}

    @staticmethod
    def due(n: int) -> bool:
        """Whether the n-th, counted from 0, is looked at."""
        return n > 0 and (n < 8 or n & (n - 1) == 0)

    @staticmethod
    def _rng() -> dict[str, Any]:
        rng = get_rng()
        return {**rng, "torch": rng["torch"][0]}

    def read(self, fetch: Callable[[], Any]) -> Any:
        """Fetches a batch."""
        before = self._rng()
        batch = fetch()
        self.reads |= before != self._rng()
        return batch

    def index(self, n: int, draw: Callable[[], Any]) -> Any:
        """Draws the n-th index of an iteration; what is drawn at the first shuffles them all."""
        before = self._rng()
        drawn = draw()
        after = self._rng()
        if n > 0:
            moved = [k for k in after if after[k] != before[k]]
            self.indexes |= any(self._after.get(k, before[k]) != before[k] for k in moved)
        self._after = after
        return drawn


class _Skip:
    """A sampler whose first indices were drawn before.

    Args:
        drawn: how many.
        ahead: those of them that are still to be given out.
    """

    def __init__(self, sampler: Any, drawn: int, ahead: list[Any]) -> None:
        self._sampler, self._drawn, self._ahead = sampler, drawn, ahead

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self._sampler)
        for n in range(self._drawn):
            if next(indices, _END) is _END:
                raise PositionError(_too_short(n, self._drawn))
        return itertools.chain(self._ahead, indices)


_END: Final = object()


def _too_short(found: int, asked: int) -> str:
    return (
        f"batch {asked} of the loader was asked for, found {found} batches; "
        "allowed: the data set and the sampler that the position was taken from"
    )


class SingleIter(torch_loader._SingleProcessDataLoaderIter):
    """No workers: remembers the RNG at its making and at the first index, where shuffling begins.

    Args:
        loader: a tapped one.
        back: the position to go on from, with ``around`` as it was then.
        heard: see Heard.
    """

    def __init__(
        self, loader: DataLoader[Any], back: Position | None, watch: Watch, heard: Heard = None
    ) -> None:
        self._watch, self._drawn, self._replayed = watch, 0, replayed(loader)
        self._ended, self._heard = False, heard
        began: dict[str, Any] = {}
        if back is not None:
            data = back["began" if self._replayed else "around"]["data"]
            began = {**back["began"], "data": data}
            set_around(loader, began)
            set_rng(back["rng"])
        self._rng = get_rng()
        self._began = around(loader) if back is None else back["began"]
        self._rng_start: dict[str, Any] | None = None
        super().__init__(loader)
        if back is not None and back["rng_start"] is not None:
            self._go_on(back)
        if back is not None and back["ended"]:
            self._ended = self._dataset_fetcher.ended = True
            if not self._replayed:
                set_around(loader, began)  # for the next iteration: this one has read to the end

    def _go_on(self, back: Position) -> None:
        set_rng(back["rng_start"])
        again: Callable[[], Any] = super()._next_data if self._replayed else super()._next_index
        for n in range(back["n"] if self._replayed else back["drawn"]):
            try:
                again()
            except StopIteration:
                raise PositionError(_too_short(n, back["drawn"])) from None
        self._rng_start = back["rng_start"]
        self._num_yielded, self._drawn = back["n"], back["drawn"]

    def _next_index(self) -> Any:
        n = self._drawn
        self._drawn = n + 1
        if n == 0 and self._rng_start is None:
            self._rng_start = get_rng()
        draw: Callable[[], Any] = super()._next_index
        index = self._watch.index(n, draw) if n < 8 and not self._replayed else draw()
        if self._heard is not None:
            self._heard(index)
        return index

    def _next_data(self) -> Any:
        fetch: Callable[[], Any] = super()._next_data
        try:
            if self._replayed and Watch.due(self._num_yielded):
                return self._watch.read(fetch)
            return fetch()
        except StopIteration:
            self._ended = True
            raise

    def otf_state(self) -> Position:
        """Where it stands, as plain values."""
        return {
            "num_workers": 0,
            "rng": self._rng,
            "began": self._began,
            "rng_start": self._rng_start,
            "n": self._num_yielded,
            "drawn": self._drawn,
            # A data set may end while its last, smaller batch is read.
            "ended": self._ended or getattr(self._dataset_fetcher, "ended", False),
        }


class _View:
    """The loader as torch's iterator is to see it while it is made.

    The loader itself stays as it is: Lightning looks at its worker_init_fn, and a class of the
    user's may forbid to set attributes.
    """

    def __init__(self, loader: DataLoader[Any], **other: Any) -> None:
        self._loader = loader
        vars(self).update(other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class WorkersIter(torch_loader._MultiProcessingDataLoaderIter):
    """Workers: remembers the RNG of the pool and of the iteration, and how each worker stands.

    The pool takes its seeds when it is made, the order is drawn when an iteration begins; with
    ``persistent_workers`` the two are epochs apart.

    Args:
        loader: a tapped one.
        back: the position to go on from; ``rng`` is None when it stood between two iterations.
    """

    def __init__(
        self, loader: DataLoader[Any], back: Position | None, watch: Watch, heard: Heard = None
    ) -> None:
        self._watch, self._replayed, self._back = watch, replayed(loader), back
        self._heard = heard
        self._here = get_rng(), around(loader) if back is not None else {}
        self._stands: dict[int, Stand] = {}
        self._ends: dict[int, dict[str, Any]] = {}
        replay = back is not None and back["rng"] is not None and self._replayed
        if back is not None:
            self._stands = dict(back["workers_began" if replay else "workers"])
            set_around(loader, back["began_pool"])
            set_rng(back["rng_pool"])
        self._rng_pool = get_rng()
        self._began_pool = around(loader) if back is None else back["began_pool"]
        full = loader.batch_size if isinstance(loader.dataset, IterableDataset) else None
        stamp = Stamp(loader.collate_fn, self._began_pool["data"], full)
        self._workers_status = [
            True
        ] * loader.num_workers  # __del__ asks, if the position is refused
        self._begin = Begin(stamp, loader.worker_init_fn, dict(self._stands))
        super().__init__(_View(loader, collate_fn=stamp, worker_init_fn=self._begin))
        if replay and back is not None:
            for n in range(back["n"]):
                if next(self, _END) is _END:
                    raise PositionError(_too_short(n, back["n"]))

    @property
    def _worker_result_queue(self) -> Any:
        return self._begin.results

    @_worker_result_queue.setter
    def _worker_result_queue(self, queue: Any) -> None:
        self._begin.results = queue  # before the workers are started

    def _reset(self, loader: Any, first_iter: bool = False) -> None:  # noqa: FBT001, FBT002 -- torch's
        back, self._back = self._back, None
        ahead: list[Any] = []
        self._drawn = self._turn = n = 0
        if back is not None and back["rng"] is None:
            rng, parts = self._here
            set_around(loader, parts)
            set_rng(rng)
        elif back is not None:
            set_around(loader, back["began"])
            set_rng(back["rng"])
            if not self._replayed:
                n, self._drawn, self._turn = back["n"], back["drawn"], back["turn"]
                ahead = Decoder()(back["ahead"])
        if not first_iter:
            self.settle()
            self._heard = loader._otf.heard  # persistent workers: somebody else may listen by now
            self._stands, self._ends = self._after_the_end(), {}
        self._rng = get_rng()
        self._began = around(loader)
        self._workers_began = dict(self._stands)
        self._rotate = self._turn
        self._ahead: collections.deque[Any] = collections.deque()
        skip = 0 if self._dataset_kind == torch_loader._DatasetKind.Iterable else self._drawn
        self._drawn -= len(ahead)  # they are drawn again, from _Skip
        self._index_sampler = _Skip(loader._index_sampler, skip, ahead)
        super()._reset(loader, first_iter)
        self._num_yielded = n

    def _after_the_end(self) -> dict[int, Stand]:
        """How the workers stand once those that were exhausted have begun anew."""
        ends = {w: merged(self._stand(w), news) for w, news in self._ends.items()}
        return {w: {**stand, "ended": False} for w, stand in {**self._stands, **ends}.items()}

    def _stand(self, worker_id: int) -> Stand:
        return self._stands.get(worker_id) or {"data": self._began_pool["data"]}

    def settle(self) -> None:
        """Wait for what an iteration that was cut short left to the workers: it moved their RNG.

        A worker that is exhausted drops the tasks it still has, and is not waited for. Neither is
        a pool of which one has died: it may have held the lock of the pipe, and it cannot go on
        anyhow, as torch says to whoever fetches.
        """
        while not any(process.exitcode for process in self._workers) and any(
            len(t) == 1 and self._workers_status[t[0]] for t in self._task_info.values()
        ):
            idx, batch = self._get_data()
            self._tasks_outstanding -= 1
            if isinstance(batch, worker._IterableDatasetStopIteration):
                self._workers_status[batch.worker_id] = False
            else:
                self._task_info[idx] += (batch,)
        for _, (worker_id, *batches) in sorted(self._task_info.items()):
            if batches and isinstance(batches[0], Stamped):
                self._hear(worker_id, batches[0])

    def _hear(self, worker_id: int, stamped: Stamped) -> Any:
        self._stands[worker_id] = merged(self._stand(worker_id), stamped.news)
        return stamped.batch

    def _get_data(self) -> Any:
        idx, batch = super()._get_data()  # type: ignore[no-untyped-call]
        if isinstance(batch, StampedEnd):
            self._ends[batch.worker_id] = vars(batch)["news"]
        return idx, batch

    def _next_index(self) -> Any:
        n = self._drawn
        draw: Callable[[], Any] = super()._next_index
        index = self._watch.index(n, draw) if n < 8 else draw()
        self._drawn = n + 1
        if self._dataset_kind == torch_loader._DatasetKind.Map:
            self._ahead.append(index)
        return index

    def _try_put_index(self) -> None:
        for _ in range(self._rotate):
            next(self._worker_queue_idx_cycle)
        self._rotate = 0
        super()._try_put_index()

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        self._turn = (worker_idx + 1) % self._num_workers
        if self._ahead:
            index = self._ahead.popleft()
            if self._heard is not None:
                self._heard(index)
        data = super()._process_data(data, worker_idx)  # type: ignore[no-untyped-call]
        return self._hear(worker_idx, data) if isinstance(data, Stamped) else data

    def otf_state(self, *, iterating: bool = True) -> Position:
        """Where it stands, as plain values; or how the pool stands between two iterations."""
        if not iterating:
            self.settle()
        try:
            ahead, drawn = [Encoder()(index) for index in self._ahead], self._drawn
        except UnsupportedValueError:  # indices of a type of their own are drawn again
            ahead, drawn = [], self._drawn - len(self._ahead)
        return {
            "num_workers": self._num_workers,
            "rng_pool": self._rng_pool,
            "began_pool": self._began_pool,
            "rng": self._rng if iterating else None,
            "began": self._began,
            "workers_began": self._workers_began,
            "workers": dict(self._stands) if iterating else self._after_the_end(),
            "n": self._num_yielded,
            "drawn": drawn,
            "ahead": ahead,
            "turn": self._turn,
        }
