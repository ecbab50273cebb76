"""A fit of the Runner under control: its session, from before the first batch to the end.

``Controlled`` is a callback of the Runner's own kind, the last of all, and what stands at the safe
point. Training thread only, but for the handler of SIGTERM, which notes that it came.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from otf_core.opening import RunOptions, tell_epoch
from otf_core.runner.callback import RunnerCallback
from otf_core.runner.delegate import RunnerDelegate
from otf_core.runner.health import FitSubject
from otf_core.runner.module import modules_by_name
from otf_core.runner.samples import subject_of
from otf_core.runner.training_data import FitData
from otf_core.runs.data import TrainingData
from otf_core.runs.data_values import DataValues
from otf_core.session import Session
from otf_core.state.park import Parking
from otf_core.state.parts import params_of, rates_of
from otf_core.steering.params import Steering
from otf_core.telemetry.recorder import StepRecorder

if TYPE_CHECKING:
    from otf_core.runner.run import Run

TOLD_TO_END: Final = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM has ended


class Controlled(RunnerCallback):
    """The session of one fit.

    Raises:
        ResumeError: the run that was to go on cannot.
        RuntimeError: a dashboard was to be started, and did not.
    """

    is_otf = True  # its attributes are no part of the run's state

    def __init__(self, run: Run, options: RunOptions) -> None:
        self._run = run
        self.delegate = RunnerDelegate(run, options.params)
        self._epoch = 0
        self._epoch_ended: int | None = None
        model = type(getattr(run.module, "model", run.module)).__name__
        device, data = run.device, TrainingData(FitData(run))
        self.delegate.data.values = values = DataValues(data)
        run.before_epoch = values.begin_epoch
        self.session = Session(
            self.delegate,
            options.session_options(model, options.origin(model)),
            steering=Steering(self.delegate),
            device=str(device),
            gpu=(device.index or 0) if device.type == "cuda" else None,
            data=data,
            samples=lambda on: subject_of(run, on),
            health=lambda losses: FitSubject(run, losses),
            modules=lambda: modules_by_name(run.module, run.parts),
            parking=Parking(self.delegate.holdings, lambda: run.device),
        )
        values.tell = lambda text: self.session.emit("log", level="info", phase="info", text=text)
        self._recorder: StepRecorder | None = None
        if options.telemetry != "off":
            self._recorder = self.session.recorder
        self.session.start(meta={"model": model})
        run.between_batches, run.at_end = self.between_batches, self.at_end

    # Life of the fit.

    def on_train_start(self, run: Run) -> None:
        """Behind the sanity check."""
        self.delegate.attributes.check()
        self.session.begin()

    def on_train_end(self, run: Run) -> None:
        """The last step, its validation and its epoch are told."""
        self._tell_step()
        self.session.finish("finished")

    def on_exception(self, run: Run, exception: BaseException) -> None:
        """The run has ended another way."""
        self._tell_step()
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self.session.finish("interrupted")
            return
        said = f"{type(exception).__name__}: {exception}"[:2000]
        self.session.finish("failed", error=said, left_by=type(exception).__name__)

    def between_batches(self) -> bool:
        """The safe point; True ends the fit there."""
        stop = self.session.tick(lrs=self._lrs, logged=self._logged, epoch=self._epoch)
        if self._epoch_ended is not None:
            self._tell_epoch()
        if self.delegate.told_to_end:
            self.session.leave("SIGTERM")
            raise SystemExit(TOLD_TO_END)
        return stop

    def at_end(self) -> None:
        """A limit is reached."""
        self.session.at_end(lrs=self._lrs, logged=self._logged, epoch=self._epoch)
        if self._epoch_ended is not None:
            self._tell_epoch()

    # Steps.

    def on_train_batch_start(self, run: Run, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        if self._recorder is not None:
            self._epoch = run.counters.epoch
            self._recorder.batch_started(run.parts[0])

    def on_before_optimizer_step(self, run: Run, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are complete and not clipped yet."""
        if self._recorder is not None:
            self._recorder.before_optimizer_step(lambda: params_of(optimizer))

    def on_train_batch_end(self, run: Run, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The batch is through."""
        if self._recorder is not None:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            self._recorder.batch_ended(loss, batch, self._parameters)

    def on_validation_batch_end(
        self, run: Run, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The fit's own validation goes on."""
        self.session.stalls.passed += 1

    def on_train_epoch_end(self, run: Run) -> None:
        """Told at the next safe point, after the epoch's own values."""
        self._epoch_ended = run.counters.epoch

    def _tell_step(self) -> None:
        self.session.tell_step(lrs=self._lrs, logged=self._logged, epoch=self._epoch)
        self._tell_epoch()

    def _tell_epoch(self) -> None:
        if self._epoch_ended is not None:
            epoch, self._epoch_ended = self._epoch_ended, None
            tell_epoch(self.session, epoch)

    def _lrs(self) -> list[Any]:
        return rates_of(self._run.optimizers)

    def _logged(self) -> Mapping[str, Any]:
        return self._run.book.callback

    def _parameters(self) -> Iterable[torch.Tensor]:
        return (p for part in self._run.parts for p in part.parameters())


@contextlib.contextmanager
def controlled(run: Run, options: RunOptions) -> Iterator[Controlled]:
    """The session is open inside, and SIGTERM ends the fit at its next safe point."""
    control = Controlled(run, options)
    try:
        with _sigterm_noted(control.delegate):
            yield control
    finally:
        control.session.close()


@contextlib.contextmanager
def _sigterm_noted(delegate: RunnerDelegate) -> Iterator[None]:
    """Where nobody else handles it."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def note(*_: Any) -> None:
        delegate.told_to_end = True

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
