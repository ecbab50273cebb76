"""The fit loop: epochs and batches in the order of Lightning 2.6, and the safe point.

The counters are all that the loop knows of where it stands, so whoever is called at the safe
point, or when a limit is reached, may put others in their place, and it goes on from there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from otf_core.runner.batches import UNKNOWN, Batches, length_of, limited, set_epoch
from otf_core.runner.refusals import RunnerError
from otf_core.runner.step import AutomaticStep, ManualStep, Step

if TYPE_CHECKING:
    from otf_core.runner.run import Run


class FitLoop:
    """The epochs of one fit."""

    def __init__(self, run: Run) -> None:
        self.run, self.counters, self.book = run, run.counters, run.book
        self.loaders: list[Any] | None = None
        self.batches = Batches([], [], run.counters)
        self.max_batches: float = UNKNOWN
        self.val_check_batch: float = UNKNOWN
        self.step: Step
        self._iterator_is_new = False
        self._validates = False

    def setup_data(self) -> None:
        """Ask for the loader and make its iterator, once in a fit.

        Raises:
            RunnerError: val_check_interval does not fit the number of batches.
        """
        run = self.run
        if self.loaders is not None or run.limit_train_batches == 0:
            return
        self.loaders = run.request("train_dataloader")
        self.count()
        self.batches.begin()
        self._iterator_is_new = True
        if self.max_batches != 0:
            self.val_check_batch = self._val_check_batch(length_of(self.loaders[0]))

    def count(self) -> None:
        """How many batches an epoch has, by the loader as it is; the iterator is left alone."""
        assert self.loaders is not None
        length, limit = length_of(self.loaders[0]), self.run.limit_train_batches
        self.max_batches = limited(length, limit, "limit_train_batches")
        iterator = self.batches.iterator
        self.batches = Batches(self.loaders, [self.max_batches], self.counters)
        self.batches.go_on(iterator)

    def _val_check_batch(self, length: float) -> float:
        run = self.run
        interval = run.val_check_interval
        if isinstance(interval, int):
            per_epoch = run.check_val_every_n_epoch is not None
            if interval > self.max_batches and per_epoch and run.limit_val_batches > 0:
                msg = (
                    f"val_check_interval={interval}, but an epoch has {self.max_batches} batches; "
                    "allowed: no more, or check_val_every_n_epoch=None"
                )
                raise RunnerError(msg)
            return interval
        if length != UNKNOWN:
            return max(1, int(self.max_batches * interval))
        if interval != 1.0:
            msg = (
                f"val_check_interval={interval} is a share, but the loader has no length; "
                "allowed: an int"
            )
            raise RunnerError(msg)
        return UNKNOWN

    def fit(self) -> None:
        """All epochs, until a limit is reached or somebody wants to stop."""
        run, counters = self.run, self.counters
        self.setup_data()
        if self._done() or run.limit_train_batches == 0:
            return
        torch.set_grad_enabled(True)
        self._validates = run.validation.enabled
        if self._validates_in_epoch() and run.validation.loaders is None:
            with run.in_stage("validate"):
                run.validation.setup_data()
        self.step = AutomaticStep(run) if run.automatic else ManualStep(run)
        run.hook("on_train_start")
        while not self._done():
            if not counters.in_epoch:
                self._begin_epoch()
            stopped = self._run_epoch()
            if stopped and counters.batches_done == 0:
                break  # an epoch without a batch has nothing for the hooks of its end
            if counters.in_epoch:
                self._end_epoch()
            if not self.steps_reached() and (self.epochs_reached() or self._stops()):
                run.at_end()
        run.hook("on_train_end")

    def _begin_epoch(self) -> None:
        counters = self.counters
        self.run.before_epoch()
        for loader in self.loaders or ():
            set_epoch(loader, counters.epochs_processed)
        self.run.hook("on_train_epoch_start")
        counters.batches_begun = counters.batches_done = 0
        counters.is_last_batch = False
        if not self._iterator_is_new:
            self.batches.begin()
        self._iterator_is_new = False
        counters.in_epoch = True

    def _run_epoch(self) -> bool:
        """The batches that are left of this epoch; True if it was stopped at a safe point."""
        run = self.run
        while not self._epoch_done():
            if run.between_batches():
                run.stop()
                return True
            if self._epoch_done():
                continue  # put back to somewhere else
            try:
                self._run_batch()
            except StopIteration:
                return False
            self._after_batch()
            if self.steps_reached():
                run.at_end()
        return False

    def _run_batch(self) -> None:
        """One batch.

        Raises:
            StopIteration: there is none, or on_train_batch_start has returned -1.
        """
        run, counters, book = self.run, self.counters, self.book
        batch, _, _ = next(self.batches)
        batch_idx = counters.batches_begun
        counters.is_last_batch = counters.exhausted
        batch = run.transfer(batch, 0)
        counters.batches_begun += 1
        counters.total_batches += 1
        book.begin_batch(batch)
        outputs: dict[str, Any] | None = None
        skips = False
        if batch is not None:
            skips = run.hook("on_train_batch_start", batch, batch_idx) == -1
            if skips:
                counters.is_last_batch = True
            else:
                outputs = self.step.optimize(batch, batch_idx)
        if run.schedulers:
            if not self.accumulates():
                self._step_schedulers("step", plateau=False)
            if self.epoch_is_full():
                self._step_schedulers("epoch", plateau=False)
        if skips:
            raise StopIteration
        run.hook("on_train_batch_end", outputs, batch, batch_idx)
        book.end_batch()
        counters.batches_done += 1
        if run.sinks and not (run.automatic and self.accumulates()) and self._logs_now():
            run.log_metrics()

    def _after_batch(self) -> None:
        """Validation if it is due, and the schedulers that wait for it."""
        run, counters = self.run, self.counters
        accumulates = self.accumulates()
        if self._validates and self._should_validate():
            first = self.book.first_iteration
            with run.in_stage("validate"):
                if not accumulates:
                    run.zero_grad_for_validation()
                run.validation.evaluate()
            self.book.first_iteration = first
        if accumulates:
            return
        if run.schedulers:
            self._step_schedulers("step", plateau=True)
        counters.batches_that_stepped += 1

    def _end_epoch(self) -> None:
        run, counters, book = self.run, self.counters, self.book
        book.first_iteration = None
        counters.epochs_processed += 1
        run.hook("on_train_epoch_end")
        book.now()
        book.last_fx = None
        if self.epoch_is_full():
            self._step_schedulers("epoch", plateau=True)
        # Loggers expect the step of the epoch's last batch.
        counters.batches_that_stepped -= 1
        run.log_metrics()
        book.reset_results()
        counters.batches_that_stepped += 1
        run.set_epoch(counters.epoch + 1)
        counters.in_epoch = False

    def accumulates(self) -> bool:
        """Whether the batch in hand leaves its gradients to the next one."""
        parts = self.run.accumulate_grad_batches
        return parts != 1 and self.counters.batches_begun % parts != 0 and not self.epoch_is_full()

    def epoch_is_full(self) -> bool:
        """Whether the batch in hand is the last of its epoch."""
        counters = self.counters
        return counters.is_last_batch or counters.batches_begun == self.max_batches

    def steps_reached(self) -> bool:
        """max_steps optimizer steps are done."""
        limit = self.run.max_steps
        return limit != -1 and self.counters.global_step >= limit

    def epochs_reached(self) -> bool:
        """max_epochs epochs are done."""
        limit = self.run.max_epochs
        return limit != -1 and self.counters.epochs_processed >= limit

    def _stops(self) -> bool:
        """Somebody wants to stop, and the least that was asked for is done."""
        run, counters = self.run, self.counters
        return (
            run.should_stop
            and counters.epochs_processed >= (run.min_epochs or 0)
            and counters.global_step >= (run.min_steps or 0)
        )

    def _done(self) -> bool:
        nothing = self.max_batches == 0
        return nothing or self.steps_reached() or self.epochs_reached() or self._stops()

    def _epoch_done(self) -> bool:
        over = not self.counters.in_epoch or self.epoch_is_full()
        return over or self.steps_reached() or self._stops()

    def _validates_in_epoch(self) -> bool:
        every = self.run.check_val_every_n_epoch
        return self._validates and (every is None or (self.counters.epoch + 1) % every == 0)

    def _should_validate(self) -> bool:
        run, counters = self.run, self.counters
        if not self._validates_in_epoch():
            return False
        if self._stops():
            return True
        if self.val_check_batch == UNKNOWN:
            return counters.is_last_batch
        over_epochs = run.check_val_every_n_epoch is None
        done = counters.total_batches if over_epochs else counters.batches_begun
        return done % self.val_check_batch == 0

    def _logs_now(self) -> bool:
        run = self.run
        every = run.log_every_n_steps
        if every == 0:
            return False
        return (self.counters.batches_that_stepped + 1) % every == 0 or run.should_stop

    def _step_schedulers(self, interval: str, *, plateau: bool) -> None:
        """Step those that are due; those on a plateau come behind the validation."""
        run, counters = self.run, self.counters
        if not run.automatic:
            return
        number = counters.batches_begun if interval == "step" else counters.epoch + 1
        for config in run.schedulers:
            if (
                config.reduce_on_plateau != plateau
                or config.interval != interval
                or number % config.frequency
            ):
                continue
            value = None
            if plateau:
                metrics = run.callback_metrics
                value = metrics.get(config.monitor or "")
                if value is None:
                    if not config.strict:
                        continue
                    msg = (
                        f"ReduceLROnPlateau monitors {config.monitor!r}, found {sorted(metrics)}; "
                        "allowed: a name that was logged"
                    )
                    raise RunnerError(msg)
            if "lr_scheduler_step" in run.hooks:
                run.hook("lr_scheduler_step", config.scheduler, value)
            elif value is None:
                config.scheduler.step()
            else:
                config.scheduler.step(value)

    def estimated_stepping_batches(self) -> float:
        """Optimizer steps of the whole fit, inf where nobody can tell."""
        run = self.run
        if run.max_epochs == -1:
            return math.inf if run.max_steps == -1 else run.max_steps
        self.setup_data()
        if self.max_batches == UNKNOWN:
            return run.max_steps
        steps = math.ceil(self.max_batches / run.accumulate_grad_batches) * max(run.max_epochs, 1)
        return steps if run.max_steps == -1 else min(steps, run.max_steps)
