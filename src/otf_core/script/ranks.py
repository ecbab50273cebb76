"""Several ranks of one script, and what they agree on; training thread.

They meet in the store of their process group: a script may be within collectives of its own.

Rule 1: no collective of ours is begun before every rank has said that it is there.
Rule 2: what is agreed is written once, by whoever finds it first, and is the same for all.
Rule 3: nobody waits for a rank that is not coming: for one that has ended not at all, else
``PATIENCE_S``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch.distributed as dist

from otf_core.errors import OtfError
from otf_core.state.keeper import Every, Origin, ResumeError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# What is used beyond the documentation: owner -> names.
PRIVATE: Final = {"torch.distributed.distributed_c10d": ("_get_default_store",)}
# A script with a rank that is later than this is ended by NCCL itself.
PATIENCE_S: Final = 600.0
STEP: Final = "step "
_OFTEN_S, _SELDOM_S = 0.001, 0.05


class Ranks:
    """The ranks of a process group, seen from one of them.

    Args:
        store: which all of them reach; None where there is one.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size, self._store = rank, size, store

    @classmethod
    def here(cls) -> Ranks:
        """Those of the default process group as it is now; one rank without a group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        c10d: Any = dist.distributed_c10d
        store = c10d.PrefixStore("otf", c10d._get_default_store())  # noqa: SLF001 -- see PRIVATE
        return cls(dist.get_rank(), dist.get_world_size(), store)

    def meet(self, place: str, why: str = "") -> str:
        """Be at a place, once, and wait for the others.

        Args:
            why: this rank cannot go on from there; nobody waits then.

        Returns:
            Why nobody goes on, the same on every rank; empty: all are there.
        """
        if self._store is None:
            return why
        try:
            self._store.set(f"{place}/{self.rank}", f"={why}")
            return self._agreed(self._store, place)
        except dist.DistError as error:
            return f"the ranks do not reach one another any more ({type(error).__name__})"

    def _agreed(self, store: Store, place: str) -> str:
        until_s, pause_s = time.monotonic() + PATIENCE_S, _OFTEN_S
        while not store.check([f"{place}/agreed"]):
            found = self._found(store, place, late=time.monotonic() > until_s)
            if found is not None:
                store.compare_set(f"{place}/agreed", "", f"={found}")
                continue
            _pause(pause_s)
            pause_s = min(2 * pause_s, _SELDOM_S)
        return _get(store, f"{place}/agreed")

    def _found(self, store: Store, place: str, *, late: bool) -> str | None:
        """What can be agreed on by now; None: nothing yet."""
        there = [rank for rank in range(self.size) if store.check([f"{place}/{rank}"])]
        for rank in there:
            if why := _get(store, f"{place}/{rank}"):
                return f"rank {rank}: {why}"
        if len(there) == self.size:
            return ""
        # Where a run goes on, and whether its ranks keep checkpoints, are two things.
        for key in ("ended", "apart") if place.startswith(STEP) else ("ended",):
            if store.check([key]):
                return _get(store, key)
        missing = next(rank for rank in range(self.size) if rank not in there)
        return f"rank {missing} did not come there within {PATIENCE_S:.0f} s" if late else None

    def wait(self, place: str, for_s: float) -> None:
        """Until all were at a place, or not."""
        self._come([f"{place}/{rank}" for rank in range(self.size)], for_s)

    def _come(self, keys: list[str], for_s: float) -> bool:
        """Whether they are there in time."""
        if self._store is None:
            return True
        until_s = time.monotonic() + for_s
        try:
            while not self._store.check(keys):
                if time.monotonic() > until_s:
                    return False
                _pause(_SELDOM_S)
        except dist.DistError:
            return False
        return True

    def part(self, why: str) -> None:
        """The ranks do not meet behind a step any more; whoever waits there is told why."""
        self._tell("apart", why)

    def end(self) -> None:
        """This rank is over; whoever waits for it is told."""
        self._tell("ended", f"rank {self.rank} has ended")

    def _tell(self, key: str, why: str) -> None:
        if self._store is not None:
            with contextlib.suppress(dist.DistError):
                self._store.compare_set(key, "", f"={why}")

    def origin(self, find: Callable[[], Origin | None]) -> Origin | None:
        """Where the run goes on, as rank 0 has found it; the others wait for that.

        Raises:
            ResumeError: it has found that there is nothing to go on from.
        """
        if self._store is None:
            return find()
        if self.rank == 0:
            told = _told(find)
            self._store.set("found", json.dumps(told))
        elif self._come(["found"], PATIENCE_S):
            told = json.loads(self._store.get("found"))
        else:
            told = {"error": "resume was asked, and rank 0 has not said from where"}
        if told.get("error"):
            raise ResumeError(told["error"])
        if told.get("path") is None:
            return None
        run_dir = told["run_dir"]
        return Origin(Path(told["path"]), Path(run_dir) if run_dir is not None else None)


def _pause(seconds: float) -> None:
    """Between two looks: a store's own wait writes to stderr when nothing comes in time."""
    threading.Event().wait(seconds)


def _told(find: Callable[[], Origin | None]) -> dict[str, Any]:
    try:
        found = find()
    except (OtfError, OSError) as error:
        return {"error": str(error)}
    if found is None:
        return {}
    return {
        "path": str(found.path),
        "run_dir": str(found.run_dir) if found.run_dir is not None else None,
    }


def _get(store: Store, key: str) -> str:
    found: bytes = store.get(key)
    return found.decode().removeprefix("=")


@contextlib.contextmanager
def together(then: Callable[[], None]) -> Iterator[None]:
    """``then`` is called where the ranks come together first: their process group is made."""
    init = dist.init_process_group

    @functools.wraps(init)
    def init_process_group(*args: Any, **kwargs: Any) -> None:
        init(*args, **kwargs)
        then()

    owners: tuple[Any, ...] = (dist, dist.distributed_c10d)
    for owner in owners:
        owner.init_process_group = init_process_group
    try:
        yield
    finally:
        for owner in owners:
            owner.init_process_group = init


@contextlib.contextmanager
def joining(then: Callable[[], None]) -> Iterator[None]:
    """``then`` is called where the ranks begin to have different numbers of batches: ``join()``."""
    from torch.distributed.algorithms.join import Join  # not in a torch without distributed

    enter = Join.__enter__

    def __enter__(join: Join) -> None:  # noqa: N807 -- the name in a traceback
        then()
        enter(join)  # type: ignore[no-untyped-call]

    Join.__enter__ = __enter__  # type: ignore[method-assign]
    try:
        yield
    finally:
        Join.__enter__ = enter  # type: ignore[method-assign]


def expected() -> int:
    """How many ranks there will be, by the environment, before a process group is made."""
    asked = os.environ.get("WORLD_SIZE", "1")
    return int(asked) if asked.isdigit() else 1


def refused(every: Every, size: int) -> str | None:
    """Why checkpoints of so many ranks cannot be made as often as was asked."""
    if size == 1 or every.seconds is None:
        return None
    return (
        f"checkpoint_every was asked every {every.seconds:g} s for {size} ranks, whose clocks are "
        "not the same; allowed: a number of steps"
    )
