"""A loop in a thread of its own, with a dashboard that the test drives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from otf_core.testing import FakeDashboard, LoopbackListener
from tests.own_loop.loops import Loop

PATIENCE_S = 30.0


class Barrier:
    """Holds a loop within chosen batches, counted from 1, until the test lets it go."""

    def __init__(self, *at: int) -> None:
        self._at = {n: (threading.Event(), threading.Event()) for n in at}

    def __call__(self, n: int) -> None:
        """Within the n-th batch; the loop's thread."""
        reached, go = self._at.get(n, (None, None))
        if reached is not None and go is not None:
            reached.set()
            assert go.wait(PATIENCE_S), "the test never let the batch go"

    def wait_for(self, n: int) -> None:
        assert self._at[n][0].wait(PATIENCE_S), f"batch {n} was never reached"

    def let_go(self, n: int) -> None:
        self._at[n][1].set()

    def open(self) -> None:
        for _, go in self._at.values():
            go.set()


class Running(threading.Thread):
    """A loop under way."""

    dashboard: FakeDashboard

    def __init__(self, main: Callable[[], None]) -> None:
        super().__init__(name="loop")
        self._main = main
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._main()
        except BaseException as error:  # noqa: BLE001 -- handed to the test
            self.error = error

    def wait(self) -> None:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the loop did not end"
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def running(
    loop: Loop, save_dir: Path, barrier: Barrier | None = None, **options: Any
) -> Iterator[Running]:
    """``loop.run`` in a thread, attached to a dashboard that has said hello."""
    step = loop.step
    held = barrier or Barrier()

    def holding(batch: Any) -> Any:
        held(loop.n + 1)
        return step(batch)

    loop.step = holding  # type: ignore[method-assign]
    with LoopbackListener(legacy_allowed=False) as listener:
        options = {"dashboard": f"127.0.0.1:{listener.port}", **options}
        thread = Running(lambda: loop.run(save_dir=save_dir, **options) and None)
        thread.start()
        with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
            thread.dashboard = dashboard
            ours = dashboard.expect("hello")["session_id"]
            dashboard.hello(session_id=ours, last_seq=0)
            try:
                yield thread
            finally:
                held.open()
                thread.join(PATIENCE_S)
