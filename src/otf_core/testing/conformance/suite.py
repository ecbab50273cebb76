"""What all parts of the suite need: the framework, the run that nobody touched, places in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from otf_core.testing.conformance.running import Found, Running, bare, running
from otf_core.testing.conformance.small_run import Framework

FIRST: Final = "first batch"
WITHIN: Final = "within an epoch"
END: Final = "end of an epoch"
START: Final = "start of an epoch"
LATE: Final = "last but one"
PLACES: Final = (FIRST, WITHIN, END, START, LATE)


class Suite:
    """Base of the parts; see the package."""

    framework: Framework

    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Nothing of the person at this machine gets in, and nothing of ours is left."""
        for name in ("OTF_DASHBOARD", "OTF_TOKEN", "OTF_RESUME", "ONTHEFLY_TEST_LABEL"):
            monkeypatch.delenv(name, raising=False)
        yield
        assert not threads_left(), "threads of the session are left"

    def bare(self, **how: Any) -> Found:
        """The run that nobody touched; made once for each ``how``."""
        known = vars(self.framework).setdefault("_bare_runs", {})
        key = repr(sorted(how.items()))
        if key not in known:
            known[key] = bare(self.framework, **how)
        found: Found = known[key]
        return found

    def losses(self, save_dir: Path) -> dict[int, Any]:
        """Step -> loss as told by a run that was only watched; made once."""
        known = vars(self.framework)
        if "_told_losses" not in known:
            with self.running(save_dir) as run:
                run.found()
                known["_told_losses"] = run.losses()
        found: dict[int, Any] = known["_told_losses"]
        return found

    def batch(self, place: str) -> int:
        """The batch at a place, counted from 0 over two epochs."""
        batches = self.bare().probe.batches
        an_epoch = batches // 2
        return {
            FIRST: 0,
            WITHIN: an_epoch // 2,
            END: an_epoch - 1,
            START: an_epoch,
            LATE: batches - 2,
        }[place]

    @contextlib.contextmanager
    def running(self, save_dir: Path, **how: Any) -> Iterator[Running]:
        """See ``running.running``."""
        with running(self.framework, save_dir, **how) as run:
            yield run

    def needs(self, *commands: str) -> None:
        """Skip where the framework has declared that it cannot."""
        for name in commands:
            if name in self.framework.cannot:
                pytest.skip(f"{name}: {self.framework.cannot[name]}")

    def same(self, found: Found, expected: Found | None = None) -> None:
        """The state at the end, bit for bit, and all that was logged on the way."""
        expected = expected or self.bare()
        self.same_state(found, expected)
        assert found.logged == expected.logged
        assert found.probe.lrs == expected.probe.lrs

    def same_state(self, found: Found, expected: Found | None = None) -> None:
        """The state at the end, bit for bit."""
        expected = expected or self.bare()
        for part, value in expected.state.items():
            assert found.state[part] == value, f"{part} at the end is not what it would have been"

    def same_from(self, step: int, found: Found, expected: Found | None = None) -> None:
        """The state at the end, and what was logged and used in the steps after this one."""
        expected = expected or self.bare()
        self.same_state(found, expected)
        left = expected.probe.steps - step
        # Logged values of an epoch come at its end: at least the share of the steps that are left.
        logged = len(expected.logged) * left // expected.probe.steps
        assert (
            found.logged[len(found.logged) - logged :]
            == (expected.logged[len(expected.logged) - logged :])
        )
        used = len(expected.probe.lrs) * left // expected.probe.steps
        assert (
            found.probe.lrs[len(found.probe.lrs) - used :]
            == (expected.probe.lrs[len(expected.probe.lrs) - used :])
        )


def threads_left() -> list[str]:
    """Names of the threads of ours that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("otf-")]
