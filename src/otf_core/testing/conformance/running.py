"""A small run under way in a thread of its own, with a dashboard that a test drives."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from otf_core.opening import RunOptions
from otf_core.testing.conformance.small_run import (
    Framework,
    Freeze,
    Outcome,
    Probe,
    Rate,
    exact,
    random_numbers,
    seed,
)
from otf_core.testing.dashboards import FakeDashboard, LoopbackListener

PROJECT: Final = "conformance"
NAME: Final = "run"
SEED: Final = 3
ANOTHER_SEED: Final = 99  # what a new process has, before a snapshot is put in place


class Found:
    """What a run was at its end; ``state`` is compared by ``==``."""

    def __init__(self, outcome: Outcome, probe: Probe) -> None:
        self.weights = exact(outcome.weights)
        self.logged = exact(outcome.logged)
        self.objects, self.probe = outcome.objects, probe
        numbers = random_numbers()
        self.state = {"weights": self.weights, "rest": exact(outcome.rest), "random": numbers}


class RunThread(threading.Thread):
    """One run from its beginning to its end; what it raised comes out of ``found``."""

    def __init__(
        self, framework: Framework, otf: RunOptions | None, probe: Probe, number: int, **how: Any
    ) -> None:
        super().__init__(name="small-run")
        self._framework, self._otf, self._probe = framework, otf, probe
        self._seed, self._how = number, how
        self._found: Found | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train."""
        try:
            seed(self._seed)
            outcome = self._framework.run(self._otf, self._probe, **self._how)
            self._found = Found(outcome, self._probe)
        except BaseException as error:  # noqa: BLE001 -- border of the thread: handed to the test
            self.error = error
        finally:
            self._probe.close()

    def wait(self) -> None:
        """Until it is over."""
        self.join(self._framework.patience_s)
        assert not self.is_alive(), "the run did not end"

    def found(self) -> Found:
        """What it was at its end, when it is over. Raises what it raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        assert self._found is not None
        return self._found


class Running:
    """A run with a dashboard that has said hello; the test's thread."""

    def __init__(self, thread: RunThread, dashboard: FakeDashboard, probe: Probe) -> None:
        self.thread, self.dashboard, self.probe = thread, dashboard, probe

    def ask(self, cmd: str, **payload: Any) -> dict[str, Any]:
        """The data of a command that must be applied."""
        reply = self.dashboard.request(cmd, payload)
        assert reply["ok"], f"{cmd} with {payload} was refused: {reply}"
        data: dict[str, Any] = reply["data"]
        return data

    def refused(self, cmd: str, **payload: Any) -> dict[str, Any]:
        """The reply to a command that must be refused, with a sentence."""
        reply = self.dashboard.request(cmd, payload)
        assert not reply["ok"], f"{cmd} with {payload} was applied: {reply}"
        assert reply["detail"].rstrip().endswith("."), f"no sentence: {reply}"
        return reply

    def pause_in(self, batch: int) -> dict[str, Any]:
        """Ask for a pause within a held batch; the reply's data, when the run stands behind it."""
        self.probe.wait_for(batch)
        asked = self.dashboard.send("pause")
        self.dashboard.expect("state", state="pausing")
        self.probe.let_go(batch)
        reply = self.dashboard.reply_to(asked)
        assert reply["ok"], reply
        data: dict[str, Any] = reply["data"]
        return data

    def resume(self) -> None:
        """Let the run go on."""
        assert self.ask("resume")["changed"]

    def found(self) -> Found:
        """What the run was at its end; all its events have come."""
        self.probe.open()
        found = self.thread.found()
        self.dashboard.expect_end()
        return found

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The run's events so far, of one type if it is given."""
        return [e for e in self.dashboard.events() if kind is None or e["type"] == kind]

    def losses(self) -> dict[int, Any]:
        """Step -> loss, the newest of each."""
        return {event["step"]: event["loss"] for event in self.events("trainStep")}


def options(save_dir: Path, dashboard: str = "off", **more: Any) -> RunOptions:
    """Those of every run of the kit."""
    given = {"project": PROJECT, "run_name": NAME, "after_fit": "return", **more}
    return RunOptions(save_dir=save_dir, dashboard=dashboard, **given)


@contextlib.contextmanager
def running(
    framework: Framework,
    save_dir: Path,
    *,
    hold: tuple[int, ...] = (),
    fail: int | None = None,
    poison: int | None = None,
    number: int = SEED,
    epochs: int = 2,
    **more: Any,
) -> Iterator[Running]:
    """A run under way, attached to a dashboard; it is over when the block is left.

    Args:
        hold, fail, poison: see Probe.
        more: for ``RunOptions``.
    """
    patience_s = framework.patience_s
    probe = Probe(hold=hold, fail=fail, poison=poison, patience_s=patience_s)
    with LoopbackListener(legacy_allowed=False) as listener:
        otf = options(save_dir, f"127.0.0.1:{listener.port}", **more)
        thread = RunThread(framework, otf, probe, number, epochs=epochs)
        thread.start()
        try:
            with _dashboard(listener, thread, patience_s) as dashboard:
                session = dashboard.expect("hello")["session_id"]
                dashboard.hello(session_id=session, last_seq=0)
                try:
                    yield Running(thread, dashboard, probe)
                finally:
                    probe.open()
                    _let_end(thread, dashboard)
        finally:
            probe.open()
            thread.wait()


def _dashboard(listener: LoopbackListener, thread: RunThread, patience_s: float) -> FakeDashboard:
    try:
        return FakeDashboard(listener.accept(patience_s), patience_s=patience_s)
    except TimeoutError:
        thread.wait()
        thread.found()  # why it never came so far
        raise


def _let_end(thread: RunThread, dashboard: FakeDashboard) -> None:
    """A test that has failed leaves its run held: it is let go."""
    if thread.is_alive():
        with contextlib.suppress(OSError):
            dashboard.send("resume")
    thread.wait()


def bare(
    framework: Framework,
    *,
    rate: Rate | None = None,
    freeze: Freeze | None = None,
    scale: tuple[float, int] | None = None,
    number: int = SEED,
    epochs: int = 2,
) -> Found:
    """The run without a trace of otf."""
    probe = Probe(rate=rate, freeze=freeze, scale=scale, patience_s=framework.patience_s)
    return alone(framework, None, probe, number=number, epochs=epochs)


def alone(
    framework: Framework,
    otf: RunOptions | None,
    probe: Probe,
    *,
    number: int = SEED,
    epochs: int = 2,
) -> Found:
    """A run that nobody watches, to its end."""
    thread = RunThread(framework, otf, probe, number, epochs=epochs)
    thread.start()
    return thread.found()


def as_if_killed(path: str, save_dir: Path, to: Path) -> Path:
    """What a run leaves on the disk if it is killed now, at another place; a checkpoint in it."""
    shutil.copytree(save_dir, to)
    return to / Path(path).relative_to(save_dir)
