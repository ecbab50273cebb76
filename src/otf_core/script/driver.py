"""Sees a script's steps, and meets it between two of them; training thread only.

Rule 1: a *step* is all that was trained between two safe points: two optimizers on one batch, or
an accumulation with its micro-batches, are one.
Rule 2: the safe point is before the next ``next(loader)``, or, where no loader drives the loop, at
the head of the loop that encloses the step. Nothing of the script is half way there.
Rule 3: only the thread that first stepped is served; a forked child never is.
Rule 4: torch's functions are the originals again when ``attached`` ends.
"""

# ruff: noqa: SLF001 -- the private names of torch and sys are listed in PRIVATE

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, Literal, NamedTuple, Protocol

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from otf_core.script import marks
from otf_core.script.border import Border, bordered, is_ours
from otf_core.state import data_tap
from otf_core.transport import at_fork

# What is used beyond the documentation: owner -> names.
PRIVATE: Final = {
    "torch.utils.data.dataloader": ("_BaseDataLoaderIter",),
    "_BaseDataLoaderIter": ("_dataset", "_index_sampler", "_num_yielded"),
    "torch._C._dynamo.eval_frame": (
        "set_code_exec_strategy",
        "_FrameAction",
        "_FrameExecStrategy",
    ),
    "sys": ("_getframe",),
}

# More optimizer steps than this on one batch, and the loader is not what drives the loop: one
# batch taken out and trained on for ever, or all batches collected first. WGAN's critic takes 5.
MAX_STEPS_PER_BATCH: Final = 8
_TAP: Final = vars(data_tap)

Kind = Literal["loader", "head"]


Lines = tuple[int, ...]


class Place(NamedTuple):
    """A line in a living frame; by id, since a reference would keep its tensors alive."""

    frame_id: int
    code: CodeType
    line: int


class Control(Protocol):
    """What stands behind the driver; called on the training thread."""

    def begins(self, frame: FrameType) -> None:
        """Something is about to be trained for the first time: gradients are there."""

    def before_step(self, optimizer: Optimizer, *, complete: bool) -> None:
        """It is about to step.

        Args:
            complete: its gradients are; not where a closure makes them, or another optimizer's
                step is under way (SAM).
        """

    def after_step(self, optimizer: Optimizer) -> None:
        """It has stepped, or raised some time ago; the inner one first."""

    def fetching(self) -> None:
        """A batch of the loader is about to be fetched."""

    def fed(self, batch: Any) -> None:
        """It is there."""

    def evaluates(self) -> None:
        """A batch is about to be fetched that is not trained on."""

    def pass_ended(self) -> None:
        """The loader that is trained on has no more."""

    def safe_point(self, frame: FrameType) -> None:
        """Between two steps; ``frame`` is the one that asks for the next batch or has the loop."""


class Resume(Protocol):
    """What waits for the place from which a run goes on."""

    def arrived(self, frame: FrameType) -> bool:
        """Whether this is the place: the script asks for a batch, or is at the head of a loop."""

    def refuse(self, what: str) -> None:
        """Something trains before the place was reached; must raise."""


class ScriptDriver:
    """Counts steps, and tells ``control`` of them.

    Args:
        say: one sentence for the person; never on stdout, which is the script's.
        border: once it is crossed nothing is done any more, and torch is as before at the next call
            of what was put in; not at once, since an optimizer may be going through its hooks.
    """

    def __init__(
        self, control: Control, say: Callable[[str], None], border: Border | None = None
    ) -> None:
        self.border = border or Border(say)
        self.step = 0  # finished rounds: all that was trained between two safe points is one
        self.optimizer_steps = 0
        self.loss: torch.Tensor | None = None  # of the last backward; read it as late as possible
        self.kind: Kind | None = None  # of the safe point, once known
        self.optimizers_seen = 0  # so many have stepped, those that are gone among them
        self.passes = 0  # over the loader that is trained on, begun
        self.resume: Resume | None = None  # set before the script begins
        self.asked: _BaseDataLoaderIter | None = None  # at a safe point, for the next batch
        self._control, self._say = control, say
        # By id, in the order of their first step; one that the script lets go of is not kept.
        self._stepped: dict[int, weakref.ref[Optimizer]] = {}
        self._thread_id: int | None = None
        self._inside: list[Optimizer] = []  # optimizers that step inside one another (SAM)
        self._since_batch: dict[int, int] = {}
        self._fed = False  # the last answer of a loader was a batch, not its end
        self._feeding: Callable[[], _BaseDataLoaderIter | None] = _nothing  # it came from there
        self._dataset_id: int | None = None  # of the loader that is trained on
        self._trained = False
        self._homes: set[Lines] = set()  # where a loader was asked before anything was trained
        # Where one was asked since, and it was no safe point; what had been trained by then.
        self._passed: tuple[Lines, int] | None = None
        self._trainings = 0  # optimizer steps, or backwards where they are the steps
        self._by_backward = False  # a script without any optimizer
        self._stepped_at: list[Place] = []
        self._undo = ExitStack()
        at_fork(self._leave_child_alone)

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that have stepped and are still there, in the order of their first step."""
        return [optimizer for ref in self._stepped.values() if (optimizer := ref()) is not None]

    @property
    def trained(self) -> bool:
        """Whether something was trained since the last safe point."""
        return self._trained

    @property
    def feeding(self) -> _BaseDataLoaderIter | None:
        """The iterator that the batch came from which was trained on last."""
        return self._feeding()

    @property
    def thread_id(self) -> int | None:
        """Of the thread that trains; None before the first step."""
        return self._thread_id

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the hooks in, and take them out again; torch is as before afterwards."""
        next_batch = _BaseDataLoaderIter.__next__
        backward: Callable[..., None] = torch.Tensor.backward

        def __next__(it: _BaseDataLoaderIter) -> object:  # noqa: N807 -- the name in a traceback
            if self.border.crossed:
                self._undo.close()
                return next_batch(it)
            trains = self._before_fetch(it, sys._getframe(1))
            try:
                batch = next_batch(it)
            except StopIteration:
                if trains:
                    self._no_more(it)
                raise
            if trains is not None:
                self._has_fetched(it, batch, trains=trains)
            return batch

        def watched_backward(loss: torch.Tensor, *args: object, **kwargs: object) -> None:
            if self.border.crossed:
                self._undo.close()
            self._before_backward(loss, sys._getframe(1))
            backward(loss, *args, **kwargs)
            if self._by_backward:
                self._after_backward(sys._getframe(1))

        def head(first: int, last: int) -> None:
            if not torch.compiler.is_compiling():  # a loop of a compiled function is no training
                self._at_head(first, last, sys._getframe(1))

        def put_back(owner: Any, name: str, ours: Any, own: Any) -> None:
            if vars(owner)[name] is ours:  # not what the script has put in since
                setattr(owner, name, own)

        _keep_from_dynamo(__next__, watched_backward, of=(ScriptDriver, type(self._control)))
        with ExitStack() as undo:
            self._undo = undo
            undo.callback(register_optimizer_step_pre_hook(self._before_step).remove)
            undo.callback(register_optimizer_step_post_hook(self._after_step).remove)
            undo.callback(put_back, torch.Tensor, "backward", watched_backward, backward)
            undo.callback(put_back, _BaseDataLoaderIter, "__next__", __next__, next_batch)
            undo.callback(marks.put_in, due=False, head=lambda _first, _last: None)
            torch.Tensor.backward = watched_backward  # type: ignore[assignment]
            _BaseDataLoaderIter.__next__ = __next__  # type: ignore[assignment,method-assign]
            marks.put_in(due=self.resume is not None, head=head)
            yield

    def begin_at(
        self, state: dict[str, Any], optimizers: list[Optimizer], feeding: Any = None
    ) -> None:
        """The run goes on as ``state`` says, with this process's optimizers in the same order."""
        self.step, self.optimizer_steps = state["step"], state["optimizer_steps"]
        self.kind, self.passes = state["kind"], state["passes"]
        self._by_backward = state["by_backward"]
        self._stepped.clear()
        for optimizer in optimizers:
            self._know(optimizer)
        self._trained = False
        if feeding is not None:
            self._feeding = weakref.ref(feeding)
            self._dataset_id = id(feeding._dataset)

    def state(self) -> dict[str, Any]:
        """What a resumed driver has to know; plain values. The optimizers go by their order."""
        return {
            "step": self.step,
            "optimizer_steps": self.optimizer_steps,
            "kind": self.kind,
            "passes": self.passes,
            "by_backward": self._by_backward,
        }

    def batches_done(self) -> int:
        """Of the pass that is under way; 0 without a loader."""
        it = self._feeding()
        return it._num_yielded if it is not None else 0

    def wait_again(self, resume: Resume) -> None:
        """The place was reached, and the run could not go on: still nothing may be trained."""
        self.resume, self._thread_id = resume, None

    # From torch.

    @bordered
    def _before_fetch(self, it: _BaseDataLoaderIter, frame: FrameType) -> bool | None:
        """Whether what is fetched may be trained on; None on a thread that is not served."""
        if self._thread_id is not None and not self._is_mine():
            return None
        if self._trained:
            if self.kind == "loader" and self._is_home(frame):
                self._arrive(frame, it)
        elif self._thread_id is None:
            self._homes.add(_lines_of(frame))
            if self.resume is not None:
                self._look_for_place(frame, it)
        self._since_batch.clear()
        self._fed = False
        if self._inside:  # a step has raised, and the script went on
            self._forget_inside()
        trains = torch.is_grad_enabled()
        if trains:
            self._control.fetching()
        else:
            self._control.evaluates()
        return trains

    @bordered
    def _has_fetched(self, it: _BaseDataLoaderIter, batch: object, *, trains: bool) -> None:
        self._fed = True
        if trains:
            self._was_fed(it)
            self._control.fed(batch)

    @bordered
    def _no_more(self, it: _BaseDataLoaderIter) -> None:
        if self._feeding() is it:
            self._control.pass_ended()

    @bordered
    def _after_backward(self, frame: FrameType) -> None:
        if self._is_mine():
            self._note_training(frame)

    @bordered
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._thread_id is None:
            self._begin(sys._getframe(1), type(optimizer).__name__)
        if not self._is_mine():
            return
        if optimizer in self._inside:  # its last step raised, and the script went on
            self._forget_inside(self._inside.index(optimizer))
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        complete = closure is None and not self._inside
        self._inside.append(optimizer)
        self._control.before_step(optimizer, complete=complete)

    @bordered
    def _after_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        if not self._is_mine() or not self._inside:
            return
        self._control.after_step(self._inside.pop())
        if self._inside:
            return
        self.optimizer_steps += 1
        if id(optimizer) not in self._stepped:
            self._know(optimizer)
            if self._by_backward:  # backwards before there was an optimizer were not the training
                self._by_backward, self.kind = False, self._kind_now()
        count = self._since_batch[id(optimizer)] = self._since_batch.get(id(optimizer), 0) + 1
        if self.kind == "loader" and count > MAX_STEPS_PER_BATCH:
            self.kind, self.step = "head", self.step + count - 1
            self._say(f"{count} steps on one batch: the loop is met at its head from here on")
        self._note_training(sys._getframe(1), optimizer)

    def _know(self, optimizer: Optimizer) -> None:
        key = id(optimizer)
        self.optimizers_seen += 1
        self._stepped[key] = weakref.ref(optimizer, lambda _: self._stepped.pop(key, None))

    def _forget_inside(self, first: int = 0) -> None:
        while len(self._inside) > first:
            self._control.after_step(self._inside.pop())

    @bordered
    def _before_backward(self, loss: torch.Tensor, frame: FrameType) -> None:
        if self._thread_id is None:
            if _optimizer_was_made():  # its first step decides; micro-batches may come before it
                self._keep(loss)
                return
            self._by_backward = True
            self._begin(frame, "backward")
        if self._is_mine():
            self._keep(loss)

    def _keep(self, loss: torch.Tensor) -> None:
        self.loss = loss.detach() if loss.numel() == 1 else None

    def _begin(self, frame: FrameType, what: str) -> None:
        if self.resume is not None:
            self.resume.refuse(what)
        self._thread_id = threading.get_ident()
        self.kind = self._kind_now()
        self.passes = 1 if self.kind == "loader" else 0
        self._control.begins(frame)

    def _kind_now(self) -> Kind:
        return "loader" if self._fed else "head"

    def _note_training(self, frame: FrameType, by: Optimizer | None = None) -> None:
        self._trained = True
        self._trainings += 1
        if self.kind == "head":
            if by is None or id(by) == next(reversed(self._stepped)):
                self._stepped_at = list(_places(frame))
                marks.put_in(due=True)
        elif self._dataset_id is None and (it := self._feeding()) is not None:
            self._dataset_id = id(it._dataset)

    def _was_fed(self, it: _BaseDataLoaderIter) -> None:
        if self._dataset_id is None or self._dataset_id == id(it._dataset):
            self._feeding = weakref.ref(it)
            if it._num_yielded == 1 and self._thread_id is not None:
                self.passes += 1

    # The safe point.

    def count_last(self) -> None:
        """The script is over, and no safe point came behind its last step."""
        self._trained = False
        self.step += 1

    def _is_home(self, frame: FrameType) -> bool:
        """Whether a run can go on from where a loader is asked now.

        A second loop of the script's that trains is met as well, from its second turn on; a loader
        that is asked between two steps now and then is not.
        """
        here = _lines_of(frame)
        if here in self._homes:
            self._passed = None
            return True
        passed, self._passed = self._passed, (here, self._trainings)
        return passed is not None and passed[0] == here and passed[1] < self._trainings

    @bordered
    def _at_head(self, first: int, last: int, frame: FrameType) -> None:
        """At the head of a loop: a safe point if the last step was made inside this very loop."""
        if self.resume is not None:
            self._look_for_place(frame)
            return
        if not self._is_mine():
            return
        if self.kind != "head" or not self._trained:
            marks.put_in(due=False)
            return
        here = (id(frame), frame.f_code)
        if any(
            (at.frame_id, at.code) == here and first <= at.line <= last for at in self._stepped_at
        ):
            self._arrive(frame)

    def _arrive(self, frame: FrameType, asked: _BaseDataLoaderIter | None = None) -> None:
        self._trained = False
        if self.kind == "head":
            marks.put_in(due=False)
        self.step += 1
        self._meet(frame, asked)

    def _meet(self, frame: FrameType, asked: _BaseDataLoaderIter | None) -> None:
        self.asked = asked
        try:
            self._control.safe_point(frame)
        finally:
            self.asked = None

    def _look_for_place(self, frame: FrameType, asked: _BaseDataLoaderIter | None = None) -> None:
        assert self.resume is not None
        if threading.current_thread() is not threading.main_thread():
            return
        self.asked = asked
        try:
            if not self.resume.arrived(frame):
                return
        finally:
            self.asked = None
        self.resume = None
        marks.put_in(due=False)
        self._thread_id = threading.get_ident()
        self._meet(frame, asked)

    def _is_mine(self) -> bool:
        """False in a forked worker and on any thread but the first that stepped."""
        return self._thread_id == threading.get_ident()

    def _leave_child_alone(self) -> None:
        self._thread_id, self.resume = -1, None
        marks.put_in(due=False)


def frames_to(frame: FrameType | None, main: dict[str, Any]) -> list[FrameType]:
    """The script's frames from ``<module>`` to this one, those of libraries among them.

    On a thread of the script's there is no ``<module>``: then from its first frame on.
    """
    found: list[FrameType] = []
    while frame is not None:
        if not is_ours(frame):
            found.append(frame)
        frame = frame.f_back
    found.reverse()
    first = next((n for n, each in enumerate(found) if each.f_globals is main), 0)
    return found[first:]


def _lines_of(frame: FrameType | None) -> Lines:
    """Of the whole stack: one and the same function may be called by two loops.

    Code by its id: Python 3.11 hashes a code object anew each time, constants and all. Lines, not
    instructions: while a call becomes a faster one, its instruction counts on. Without the tap,
    through which a loader with an ``__iter__`` of its own is read from its second time on.
    """
    found: list[int] = []
    while frame is not None:
        if frame.f_globals is not _TAP:
            found += id(frame.f_code), frame.f_lineno
        frame = frame.f_back
    return tuple(found)


def _places(frame: FrameType | None) -> Iterator[Place]:
    while frame is not None:
        yield Place(id(frame), frame.f_code, frame.f_lineno)
        frame = frame.f_back


def _nothing() -> None:
    return None


def _keep_from_dynamo(*through: Callable[..., Any], of: Iterable[type]) -> None:
    """What is called within a compiled function is not compiled with it.

    Args:
        through: of these only the function itself; what it calls further is as ever.
        of: of the functions of these classes all that they call.
    """
    dynamo = torch._C._dynamo.eval_frame
    if not hasattr(dynamo, "set_code_exec_strategy"):  # before torch 2.7
        return
    action = dynamo._FrameAction
    ours = [part for cls in of for part in vars(cls).values() if isinstance(part, FunctionType)]
    for functions, inside in ((through, action.DEFAULT), (ours, action.SKIP)):
        strategy = dynamo._FrameExecStrategy(action.SKIP, inside)
        for function in functions:
            dynamo.set_code_exec_strategy(function.__code__, strategy)
            vars(function)["_torchdynamo_disable"] = True  # as torch.compiler.disable marks it


def _optimizer_was_made() -> bool:
    """Whether there ever was one in this process: torch wraps the ``step`` of its class then."""
    waiting = Optimizer.__subclasses__()
    while waiting:
        each = waiting.pop()
        if getattr(vars(each).get("step"), "hooked", False):
            return True
        waiting += each.__subclasses__()
    return False
