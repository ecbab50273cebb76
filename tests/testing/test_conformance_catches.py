"""A delegate that lies, forgets or leaves something behind does not pass the suite.

Each row breaks the framework of examples/own_framework.py in one way, and names the checks of the
suite that must fail for it. That the unbroken one passes them is test_conformance.py.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from otf_core.control.delegate import Evaluation, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.state.rng import set_rng
from otf_core.testing.conformance import DelegateSuite, Framework, suite
from tests.testing.own import Own, example

FIRST, WITHIN, END, START, LATE = suite.PLACES
PATIENCE_S = 3.0

PAUSE = ("test_a_pause_stands_behind_the_batch", (WITHIN,))
KILL = ("test_killed_behind_a_batch_it_goes_on_as_if_not", (WITHIN,))
ROLLBACK = ("test_rolled_back_it_goes_on_as_if_not", (FIRST, WITHIN))
UNDO = ("test_a_rollback_under_way_undone_it_is_where_it_was", ())
STOP = ("test_stop_ends_it_behind_the_batch", (FIRST,), {"stands": False})
WATCHED = ("test_watched_it_is_the_run_that_it_was", ())
VALIDATE = ("test_an_evaluation_leaves_no_trace", (FIRST, "validate_now"))
LONGER = ("test_made_longer_it_is_the_run_that_had_always_been", ())
RATE = ("test_a_rate_that_is_set_is_the_one_of_a_script_that_has_it", (WITHIN,))
FAILS = ("test_an_exception_ends_it_as_failed_and_comes_through", ())
STORY = ("test_the_story_is_in_order", ())
STEPS = ("test_every_step_is_told_once", ())

Check = tuple[Any, ...]
BROKEN: dict[str, tuple[Callable[[], Framework], tuple[Check, ...]]] = {}


def broken(*checks: Check) -> Callable[[Callable[[], Framework]], Callable[[], Framework]]:
    """A row: the framework that the function makes must fail these checks."""

    def take(make: Callable[[], Framework]) -> Callable[[], Framework]:
        BROKEN[make.__name__.replace("_", " ")] = make, checks
        return make

    return take


Trainer: Any = example.Trainer
Delegate: Any = example.Delegate


# The safe point.


@broken(PAUSE)
def says_paused_and_trains_on() -> Framework:
    class Liar(Delegate):  # type: ignore[misc]
        def install_batch_boundary_hook(self, tick: Any, at_end: Any = None) -> None:
            self.beside: list[threading.Thread] = []

            def look() -> bool:
                if not any(thread.is_alive() for thread in self.beside):
                    thread = threading.Thread(target=tick, name="beside")
                    self.beside.append(thread)
                    thread.start()
                self.beside[-1].join(0.03)  # paused may be told by then
                return False

            super().install_batch_boundary_hook(look, lambda: None)

        def detach(self) -> None:
            for thread in self.beside:
                thread.join(PATIENCE_S)
            super().detach()

    return Own(delegate=Liar)


@broken(PAUSE)
def stands_before_the_optimizer_has_stepped() -> Framework:
    class Early(Trainer):  # type: ignore[misc]
        def train_on(self, batch: Any) -> None:
            t: Any = self
            look, on = t.between_batches, t.on

            def early(event: str, *args: Any) -> None:
                on(event, *args)
                if event == "before_step":
                    t.step += 1
                    look()
                    t.step -= 1

            t.on = early
            super().train_on(batch)
            t.on = on

    return Own(trainer=Early)


@broken(KILL)
def stands_with_the_next_batch_in_hand() -> Framework:
    class Ahead(Trainer):  # type: ignore[misc]
        def fit(self) -> None:
            t: Any = self
            while t.epoch < t.epochs:
                t.batches = iter(t.train) if t.batches is None else t.batches
                batch = next(t.batches, None)
                if t.between_batches():
                    return
                if batch is None:
                    t.epoch, t.batch_idx, t.batches = t.epoch + 1, 0, None
                else:
                    t.train_on(batch)
                    if t.batch_idx == len(t.train):
                        t.logged = {**t.logged, "val_loss": t.validate()}

    return Own(trainer=Ahead)


@broken(("test_it_is_held_before_the_first_batch", ()), KILL)
def looks_in_behind_the_first_batch_only() -> Framework:
    class Later(Delegate):  # type: ignore[misc]
        def install_batch_boundary_hook(self, tick: Any, at_end: Any = None) -> None:
            t = self.trainer
            super().install_batch_boundary_hook(lambda: t.step > 0 and tick(), at_end)

    return Own(delegate=Later)


@broken(PAUSE, STEPS)
def counts_one_step_too_many() -> Framework:
    return Own(delegate=_position(lambda at: at._replace(step=at.step + 1)))


@broken(PAUSE, STEPS)
def counts_one_step_too_few() -> Framework:
    return Own(delegate=_position(lambda at: at._replace(step=max(0, at.step - 1))))


def _position(change: Callable[[Position], Position]) -> Any:
    class Off(Delegate):  # type: ignore[misc]
        def position(self) -> Position:
            return change(super().position())

    return Off


# Both ends.


@broken(STOP)
def ignores_stop() -> Framework:
    class Deaf(Delegate):  # type: ignore[misc]
        def install_batch_boundary_hook(self, tick: Any, at_end: Any = None) -> None:
            super().install_batch_boundary_hook(lambda: tick() and False, at_end)

    return Own(delegate=Deaf)


@broken(STOP)
def stops_a_batch_late() -> Framework:
    class Late(Delegate):  # type: ignore[misc]
        def install_batch_boundary_hook(self, tick: Any, at_end: Any = None) -> None:
            asked: list[bool] = []

            def look() -> bool:
                if asked:
                    return True
                asked.extend([True] * tick())
                return False

            super().install_batch_boundary_hook(look, at_end)

    return Own(delegate=Late)


@broken(("test_the_end_is_held", ()))
def has_no_end() -> Framework:
    class Endless(Delegate):  # type: ignore[misc]
        def install_batch_boundary_hook(self, tick: Any, at_end: Any = None) -> None:
            super().install_batch_boundary_hook(tick)

    return Own(delegate=Endless)


@broken(FAILS)
def swallows_what_the_training_raises() -> Framework:
    def fit(*args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            example.fit(*args)

    return Own(fit=fit)


@broken(FAILS)
def calls_a_failed_run_finished() -> Framework:
    return Own(fit=_session(finish=lambda finish: lambda *_, **__: finish("finished")))


def _session(**changed: Any) -> Any:
    """``fit`` with methods of the session changed."""

    def fit(*args: Any) -> None:
        def make(*given: Any, **more: Any) -> Any:
            session = original(*given, **more)
            for name, change in changed.items():
                setattr(session, name, change(getattr(session, name)))
            return session

        original, example.Session = example.Session, make
        try:
            example.fit(*args)
        finally:
            example.Session = original

    return fit


# The state.


def _forgets(part: str) -> Callable[[], Framework]:
    class Forgetful(Delegate):  # type: ignore[misc]
        def apply(self, state: dict[str, Any]) -> Any:
            now = self.capture()
            return super().apply({**state, part: now[part]})

    return lambda: Own(delegate=Forgetful)


for part in ("state_dict", "optimizer", "schedule", "place", "loader", "rng"):
    BROKEN[f"an apply that forgets {part}"] = _forgets(part), (KILL, ROLLBACK)


@broken(KILL, ROLLBACK)
def loses_the_momentum() -> Framework:
    class Light(Delegate):  # type: ignore[misc]
        def capture(self, pool: Any = None, **how: Any) -> dict[str, Any]:
            state: dict[str, Any] = super().capture(pool, **how)
            state["optimizer"]["state"] = {}
            return state

    return Own(delegate=Light)


@broken(KILL, ROLLBACK)
def keeps_parameters_and_no_buffers() -> Framework:
    class Bare(Delegate):  # type: ignore[misc]
        def apply(self, state: dict[str, Any]) -> Any:
            buffers = {n: b.clone() for n, b in self.trainer.model.named_buffers()}
            found = super().apply(state)
            for name, buffer in self.trainer.model.named_buffers():
                buffer.copy_(buffers[name])
            return found

    return Own(delegate=Bare)


@broken(KILL, ROLLBACK)
def draws_after_it_has_put_the_numbers_back() -> Framework:
    class Draws(Delegate):  # type: ignore[misc]
        def apply(self, state: dict[str, Any]) -> Any:
            found = super().apply(state)
            torch.rand(1)
            return found

    return Own(delegate=Draws)


@broken(WATCHED, PAUSE)
def draws_when_it_captures() -> Framework:
    class Draws(Delegate):  # type: ignore[misc]
        def capture(self, pool: Any = None, **how: Any) -> dict[str, Any]:
            torch.rand(1)
            state: dict[str, Any] = super().capture(pool, **how)
            return state

    return Own(delegate=Draws)


@broken(UNDO)
def hands_out_the_live_state() -> Framework:
    def live(self: Any, pool: Any = None, **how: Any) -> Any:
        before, example.host_copy = example.host_copy, lambda state, _: state
        try:
            return Delegate.capture(self, pool, **how)
        finally:
            example.host_copy = before

    return Own(delegate=type("Live", (Delegate,), {"capture": live}))


@broken(("test_a_snapshot_of_another_model_is_refused", ()))
def takes_any_snapshot() -> Framework:
    return Own(delegate=type("Gullible", (Delegate,), {"check": lambda *_: None}))


@broken(("test_what_is_no_snapshot_of_it_is_refused", ("of nothing",)))
def refuses_only_when_half_of_it_is_done() -> Framework:
    class Hasty(Delegate):  # type: ignore[misc]
        def check(self, state: Any) -> None:
            set_rng(self.capture()["rng"])
            torch.rand(1)
            super().check(state)

    return Own(delegate=Hasty)


# What is changed.


@broken(RATE)
def sets_what_nobody_reads() -> Framework:
    class Copies(Delegate):  # type: ignore[misc]
        def __init__(self, trainer: Any) -> None:
            super().__init__(trainer)
            self.shown = copy.deepcopy(trainer.optimizer)

        def optimizers(self) -> Any:
            return [self.shown]

        def schedules(self) -> Any:
            return []

    return Own(delegate=Copies)


@broken(RATE)
def hides_its_schedule() -> Framework:
    return Own(delegate=type("Hides", (Delegate,), {"schedulers": lambda _: []}))


@broken(LONGER, ("test_made_longer_at_its_end_it_is_the_run_that_had_always_been", ()))
def ignores_that_it_is_made_longer() -> Framework:
    return Own(delegate=type("Short", (Delegate,), {"extend": lambda *_: None}))


@broken(("test_made_longer_it_stays_so_in_another_process", ()))
def forgets_that_it_was_made_longer() -> Framework:
    class Forgets(Delegate):  # type: ignore[misc]
        def capture(self, pool: Any = None, **how: Any) -> dict[str, Any]:
            state: dict[str, Any] = super().capture(pool, **how)
            state["place"]["epochs"] = 2
            return state

    return Own(delegate=Forgets)


def _validates(change: Callable[[Any], None]) -> Callable[[], Framework]:
    class Marks(Delegate):  # type: ignore[misc]
        def run_validation(self, limit_batches: Any, on_batch: Any) -> Evaluation:
            found: Evaluation = super().run_validation(limit_batches, on_batch)
            change(self.trainer)
            return found

    return lambda: Own(delegate=Marks)


for name, change in {
    "a validation that leaves the model in eval mode": lambda t: t.model.eval(),
    "a validation that draws": lambda t: torch.rand(1),
    "a validation that moves a buffer": lambda t: t.model[1].running_mean.add_(1e-3),
    "a validation that trains": lambda t: t.train_on(next(iter(t.val))),
    "a validation that logs": lambda t: t.schedule.step(),
}.items():
    BROKEN[name] = _validates(change), (VALIDATE,)


@broken(VALIDATE)
def finds_nothing_in_a_validation() -> Framework:
    class Blind(Delegate):  # type: ignore[misc]
        def run_validation(self, limit_batches: Any, on_batch: Any) -> Evaluation:
            return Evaluation({}, None, 0.0)

    return Own(delegate=Blind)


# What is told, and what is left.


@broken(WATCHED)
def draws_when_it_is_attached() -> Framework:
    class Draws(Delegate):  # type: ignore[misc]
        def attach(self) -> None:
            super().attach()
            torch.rand(1)

    return Own(delegate=Draws)


@broken(("test_nothing_is_left_on_what_was_trained", ()))
def leaves_a_hook_on_the_model() -> Framework:
    class Leaves(Delegate):  # type: ignore[misc]
        def attach(self) -> None:
            super().attach()
            self.trainer.model.register_forward_hook(lambda *_: None)

    return Own(delegate=Leaves)


@broken(WATCHED)
def leaves_its_session_open() -> Framework:
    def keep(close: Callable[[], None]) -> Callable[[], None]:
        LEFT.append(close)
        return lambda: None

    return Own(fit=_session(close=keep))


LEFT: list[Callable[[], None]] = []


@broken(STEPS, STORY)
def tells_no_loss_and_no_epoch() -> Framework:
    class Silent(Trainer):  # type: ignore[misc]
        @property
        def on(self) -> Any:
            return lambda *_: None

        @on.setter
        def on(self, _: Any) -> None:
            pass

    return Own(trainer=Silent)


@broken(STEPS)
def counts_epochs_from_one() -> Framework:
    def from_one(tick: Any) -> Any:
        return lambda **told: tick(**{**told, "epoch": told["epoch"] + 1})

    return Own(fit=_session(tick=from_one, tell_step=from_one))


@broken(("test_the_exactness_report_is_that_of_the_run", ()))
def is_not_exact_and_does_not_say_so() -> Framework:
    said: dict[str, Any] = {"exactness": lambda _: (["nobody knows"], [])}
    return Own(delegate=type("Doubts", (Delegate,), said))


@broken(("test_every_command_has_one_answer", ()))
def lists_what_it_cannot() -> Framework:
    own = Own()
    own.cannot = {}
    return own


@broken(("test_what_it_cannot_do_is_refused_with_the_reason", ()))
def gives_another_reason() -> Framework:
    own = Own()
    own.cannot = dict.fromkeys(own.cannot, "the moon")
    return own


@broken(("test_every_command_has_one_answer", ()))
def answers_with_no_sentence() -> Framework:
    class Curt(Delegate):  # type: ignore[misc]
        def run_validation(self, *_: Any) -> Any:
            raise CommandError(ErrorCode.UNSUPPORTED, "no")

    return Own(delegate=Curt)


@pytest.fixture
def checks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Framework, Check], None]]:
    """Run a check of the suite as pytest would."""

    def run(framework: Framework, check: Check) -> None:
        framework.patience_s, tmp_path = PATIENCE_S, tmp_path_factory.mktemp("run")
        name, args, *more = check
        tried = DelegateSuite()
        tried.framework = framework
        method = getattr(tried, name)
        given = dict(*more)
        if "tmp_path" in inspect.signature(method).parameters:
            given["tmp_path"] = tmp_path
        method(*args, **given)

    yield run
    for close in LEFT:
        close()
    LEFT.clear()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_delegate_is_caught(name: str, checks: Callable[[Framework, Check], None]) -> None:
    make, fails = BROKEN[name]
    for check in fails:
        with pytest.raises((AssertionError, TimeoutError)):
            checks(make(), check)


def test_a_thread_of_the_session_that_is_left_is_seen() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="otf-reader")
    assert suite.threads_left() == []
    thread.start()
    try:
        assert suite.threads_left() == ["otf-reader"]
    finally:
        over.set()
        thread.join()
