"""Says that no batch has ended for long, and where the training thread is; thread ``otf-stall``.

Rule 1: a stall is of a run that trains. One that is held, that evaluates because somebody asked, or
whose own evaluation goes from batch to batch, does not stall.
Rule 2: said once when it is one, and once when the run goes on. The run is not touched.
Rule 3: a thread that does not give the interpreter back (a C extension that keeps the GIL) stops
this one as well; then nothing is said, and whoever listens hears the silence.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

LIMIT_S: Final = 30.0
FIRST_LIMIT_S: Final = 300.0  # the first batch compiles, reads, and is nobody's yardstick
SLOW: Final = 20  # so many times a usual step
LOOK_S: Final = 1.0
MAX_FRAMES: Final = 40
PACKAGES: Final = str(Path(__file__).parents[1])
# Where torch waits for other ranks: the end of the path -> what the function is called for people;
# None: its own name, if it is public.
CALLS: Final[Mapping[str, Mapping[str, str] | None]] = {
    "torch/distributed/distributed_c10d.py": None,
    "torch/distributed/_functional_collectives.py": None,
    "torch/nn/parallel/distributed.py": {"_distributed_broadcast_coalesced": "broadcast"},
    "torch/autograd/graph.py": {"_engine_run_backward": "backward"},  # DDP reduces gradients there
}


class Spot(NamedTuple):
    """Where a thread is.

    Attributes:
        where: the innermost line of the user's own code, as ``train.py:41 in training_step``.
        stack: all lines, the innermost last.
        call: what it called inside of which it may wait for other ranks, as ``all_reduce``.
    """

    where: str | None
    stack: list[str]
    call: str | None = None


class StallWatch:
    """Watches one run.

    ``passed`` is raised by the training thread at every safe point, and with every batch of an
    evaluation that the framework makes of itself.

    Args:
        emit: tells; as ``Emitter.emit``.
        trains: whether the run trains at the moment.
        step: steps done, as of the last safe point.
        step_s: seconds that a step takes; None before there is one.
        say: one line for the person at the terminal.
        others: of several ranks, given where this one is: what all of them are at, as fields of
            the event and in words.
    """

    def __init__(
        self,
        emit: Callable[..., Any],
        *,
        trains: Callable[[], bool],
        step: Callable[[], int],
        step_s: Callable[[], float | None],
        say: Callable[[str], None] = lambda _: None,
        others: Callable[[Spot], tuple[Mapping[str, Any], str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit, self._trains, self._step, self._step_s = emit, trains, step, step_s
        self._say, self._others, self._clock = say, others, clock
        self.passed = 0
        self.thread_id: int | None = None  # of the thread that trains
        self._seen, self._since_s = -1, clock()
        self._stalled = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Start otf-stall."""
        self._thread = threading.Thread(target=self._run, name="otf-stall", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; may be called twice, and in a forked child, which has no such thread."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """See whether it has gone on, and tell what has changed."""
        now_s = self._clock()
        if self.passed != self._seen or not self._trains():
            was_s, self._since_s, self._seen = self._since_s, now_s, self.passed
            if self._stalled:
                self._stalled = False
                self._tell(now_s - was_s, over=True)
            return
        if not self._stalled and now_s - self._since_s >= self.limit_s:
            self._stalled = True
            self._tell(now_s - self._since_s, over=False)

    @property
    def limit_s(self) -> float:
        """How long a batch may take before it is a stall."""
        step_s = self._step_s()
        return FIRST_LIMIT_S if step_s is None else max(LIMIT_S, SLOW * step_s)

    def _tell(self, seconds: float, *, over: bool) -> None:
        spot = Spot(None, []) if over else spot_of(self.thread_id)
        step, words = self._step(), ""
        more: Mapping[str, Any] = {}
        if self._others is not None:
            more = {"ranks": [], "unheard": [], "flight": []}
            if not over:
                more, words = self._others(spot)
        self._emit(
            "stall", step=step, seconds=round(seconds, 1), limit_s=self.limit_s,
            where=spot.where, stack=spot.stack, over=over, **more,
        )  # fmt: skip
        if not over:
            at = f", in {spot.where}" if spot.where is not None else ""
            rest = f": {words}" if words else ""
            self._say(f"no batch has ended for {seconds:.0f} s{at}, at step {step:,}{rest}")


def spot_of(thread_id: int | None) -> Spot:
    """Where a thread is; any thread.

    Nothing of the frames is kept: they would keep their tensors.
    """
    frame = sys._current_frames().get(thread_id) if thread_id is not None else None  # noqa: SLF001 -- the documented way
    where = call = None
    lines: list[str] = []
    for each in _outwards(frame):
        path = each.f_code.co_filename
        line = f"{Path(path).name}:{each.f_lineno} in {each.f_code.co_name}"
        if where is None:
            if _is_own(path):
                where = line
            else:
                call = call or _call(path, each.f_code.co_name)
        if len(lines) < MAX_FRAMES:
            lines.append(line)
    return Spot(where or (lines[0] if lines else None), lines[::-1], call)


def _call(path: str, function: str) -> str | None:
    named = next((names for end, names in CALLS.items() if path.endswith(end)), {})
    if named is None:
        return None if function.startswith("_") else function
    return named.get(function)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_own(path: str) -> bool:
    """Neither Python's, nor installed, nor ours."""
    paths = sysconfig.get_paths()
    foreign = (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], PACKAGES)
    if path.startswith("<") or "site-packages" in path or "dist-packages" in path:
        return False
    return not path.startswith(foreign) and "otf_lightning" not in Path(path).parts
