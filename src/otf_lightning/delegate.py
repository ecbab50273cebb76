"""LightningFrameworkDelegate: what the core asks of Lightning, on the training thread."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from otf_core.control.delegate import Applied, Evaluation, OnBatch, Position
from otf_core.data_knobs import DataKnobs
from otf_core.errors import CommandError, ErrorCode
from otf_core.state.data_tap import tap
from otf_core.state.gather import gather
from otf_core.state.given import Given
from otf_core.state.host_copy import sizes_of
from otf_core.state.host_pool import HostPool
from otf_core.state.parts import refuse_fixed_length
from otf_core.state.shards import Writing, files_in
from otf_core.steering import accumulation, frozen
from otf_core.steering.attributes import Attributes, of_data, of_module
from otf_core.steering.cadence import Cadence, Stepping
from otf_core.steering.declared import Declared
from otf_core.steering.knobs import Knob, clip_knob, refused_knob
from otf_lightning import evaluation, inside, loggers, other_world, script, snapshot
from otf_lightning.ema import Averages
from otf_lightning.exact_report import ExactReport
from otf_lightning.positions import SetupData

if TYPE_CHECKING:
    from otf_core.state.shard_files import ShardWriter


class LightningFrameworkDelegate:
    """One fit of one trainer.

    Args:
        trainer: in fit, past ``setup``.
        test_dataloaders: for a test where module and data module have none.
        params: attributes that can be set.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        *,
        test_dataloaders: Any = None,
        params: Sequence[Declared] | None = None,
    ) -> None:
        self._trainer, self._test_dataloaders = trainer, test_dataloaders
        self._wraps = inside.Wraps()
        self._report = ExactReport()
        self._given: dict[str, Given] = {}
        self._extended: dict[str, int] = {}  # limits that a command has raised
        self._stop_in_epoch = False  # an epoch without a batch
        self._between_epochs = False  # what was applied stood between two epochs
        self._in_epoch = False  # what was applied at the end of the fit stood within one
        self._shards: ShardWriter | None = None  # where weights lie in parts on the ranks
        self._checkpoints: Callable[[], Path | None] = lambda: None
        self._in_parts: dict[str, Any] = {}  # of the last capture
        self.attributes = Attributes(
            lambda: [of_module(trainer.lightning_module), *of_data(trainer.datamodule)],
            lambda: {"": trainer.lightning_module},
            params,
        )
        self.frozen = frozen.Frozen(
            lambda: frozen.names_of([("", trainer.lightning_module)]), self.optimizers
        )
        self.data = DataKnobs()
        self.averages = Averages(trainer)
        # What a part of another rank's has more.
        self.of_rank: Callable[[], Mapping[str, Any]] = dict
        # What other ranks are not exact for, and what they leave out.
        self._of_others: tuple[dict[str, None], dict[str, None]] = ({}, {})

    def attach(self) -> None:
        """Tap every loader of the fit; before any is made."""
        self._given = script.given_by_script(self._trainer)
        strategy = self._trainer.strategy
        process = strategy.process_dataloader
        self._wraps.put(strategy, "process_dataloader", lambda loader: tap(process(loader)))
        fit = self._trainer.fit_loop
        for loop in (fit, fit.epoch_loop.val_loop):
            self._wraps.put(loop, "setup_data", SetupData(self._trainer, loop))

    def make_shard_writer(self, checkpoints: Callable[[], Path | None]) -> None:
        """Where weights lie in parts; on all ranks at once.

        Args:
            checkpoints: of rank 0, the folder in which they are kept; asked for each.
        """
        if inside.shards_weights(self._trainer):
            from otf_core.state.shard_files import ShardWriter

            self._shards, self._checkpoints = ShardWriter(), checkpoints

    def close_shards(self) -> None:
        """Write what waits; on all ranks, once nothing is captured any more."""
        if self._shards is not None:
            self._shards.close()
            self._shards = None

    def spare_files(self, since: Callable[[], float | None], tell: Callable[[str], object]) -> None:
        """A file that was there before the run that trains began is its parent's: it stays.

        ModelCheckpoint would drop the best of the parent where a fork is better.

        Args:
            since: Unix seconds; None for a run without parents.
        """
        strategy = self._trainer.strategy
        remove = strategy.remove_checkpoint

        def spared(filepath: Any) -> None:
            began_ts = since()
            with contextlib.suppress(OSError):
                if began_ts is not None and os.stat(filepath).st_mtime < began_ts:
                    tell(f"{filepath} was to be removed by a callback, and is a parent's: it stays")
                    return
            remove(filepath)

        self._wraps.put(strategy, "remove_checkpoint", spared)

    def install_batch_boundary_hook(
        self,
        tick: Callable[[], bool],
        at_end: Callable[[], None] = lambda: None,
        leave: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """Call ``tick`` at the entry of ``epoch_loop.advance``, ``at_end`` when a limit is reached.

        There batch k has finished with everything that belongs to it (optimizer, schedulers,
        callbacks, loggers, a validation if one was due) and batch k+1 has not been fetched; the
        public hooks come too early or too late. True from ``tick`` ends the fit there, with
        Lightning's own ending.
        """
        self._install_gate(tick, leave)
        self._install_end(at_end, leave)
        fit = self._trainer.fit_loop
        begin_epoch = fit.on_advance_start

        def epoch_begins() -> None:
            if self.data.values is not None:
                self.data.values.begin_epoch()
            begin_epoch()

        self._wraps.put(fit, "on_advance_start", epoch_begins)

    def when_opened(self, opened: Callable[[Any], bool]) -> None:
        """Call ``opened`` with what ``fit(ckpt_path=)`` was given, before any loader is made.

        Where it returns True, Lightning restores nothing itself: it will be applied at the gate.
        """
        inside.before_restore(self._trainer, self._wraps, opened)

    def _install_gate(self, tick: Callable[[], bool], leave: Callable[[str], None]) -> None:
        trainer = self._trainer
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        advance, run_epoch = loop.advance, fit.advance

        def gated(_: Any) -> None:
            if tick():
                # An epoch without a batch has nothing that the user's epoch end could work with.
                self._stop_in_epoch = inside.batches_done(trainer) == 0
                raise StopIteration
            if self._between_epochs or self._steps_reached():
                raise StopIteration
            if self.leaving():
                leave("SIGTERM")
                raise SIGTERMException
            # Not the fetcher that the loop began with: an apply may have made another.
            advance(inside.fetcher(trainer))

        def epoch() -> None:
            run_epoch()
            if self._stop_in_epoch:
                raise StopIteration

        self._wraps.put(loop, "advance", gated)
        self._wraps.put(fit, "advance", epoch)

    def _install_end(self, at_end: Callable[[], None], leave: Callable[[str], None]) -> None:
        """Inside fit, before the loops know that a limit is reached.

        ``max_steps`` is looked at behind the step, since the epoch's end has run too early once
        the epoch loop is left; everything else behind the epoch. Where ``at_end`` raises the
        limit, the fit goes on as if it had always been longer.
        """
        trainer = self._trainer
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        step_end, epoch_end = loop.on_advance_end, fit.on_advance_end

        def after_step(_: Any) -> None:
            try:
                step_end(inside.fetcher(trainer))
            except SIGTERMException:
                leave("SIGTERM")  # everything of the step is done: it stands as at the gate
                raise
            if self._steps_reached():
                at_end()
                # Applied here, a snapshot stands as at the gate; but for one between two epochs.
                self._in_epoch = False
                if self._between_epochs:
                    raise StopIteration

        def after_epoch() -> None:
            if self._between_epochs:
                self._between_epochs = False  # it has had its end already
                if not self._epochs_reached():
                    return
            else:
                epoch_end()
            if self._steps_reached() or not (self._epochs_reached() or inside.stops(trainer)):
                return
            self._in_epoch = False  # of what was applied at a gate
            at_end()
            self._between_epochs = False
            if self._in_epoch:
                self._in_epoch = False
                inside.run_rest_of_epoch(trainer)
                after_epoch()

        self._wraps.put(loop, "on_advance_end", after_step)
        self._wraps.put(fit, "on_advance_end", after_epoch)

    def detach(self) -> None:
        """Take everything off."""
        self._wraps.off()

    def _steps_reached(self) -> bool:
        loop = self._trainer.fit_loop.epoch_loop
        return loop.max_steps != -1 and loop.global_step >= loop.max_steps

    def _epochs_reached(self) -> bool:
        # Not fit_loop.done, which writes counters and logs.
        fit = self._trainer.fit_loop
        return fit.max_epochs not in (None, -1) and (
            fit.epoch_progress.current.processed >= fit.max_epochs
        )

    def position(self) -> Position:
        """Where the fit stands; at the gate, between two batches."""
        fit = self._trainer.fit_loop  # directly: this runs at every step
        loop, max_epochs = fit.epoch_loop, fit.max_epochs
        return Position(
            step=inside.steps_done(self._trainer),
            global_step=loop.global_step,
            epoch=fit.epoch_progress.current.completed,
            batch_idx=loop.batch_progress.current.completed,
            max_steps=loop.max_steps if loop.max_steps != -1 else None,
            max_epochs=max_epochs if max_epochs is not None and max_epochs >= 0 else None,
            epochs_done=fit.epoch_progress.current.processed,
        )

    def capture(self, pool: HostPool | None = None, *, in_batch: bool = False) -> dict[str, Any]:
        """A Lightning checkpoint and the exact state; the user's save hooks are called.

        Of several ranks all must call it at the same safe point; rank 0 gets the whole.
        """
        if self._trainer.world_size == 1 and self._shards is None:
            state = self._capture(pool)
            if in_batch:
                snapshot.close_batch(state, inside.training_modes(self._trainer))
            return state
        parts, writing = self._gather(pool)
        if parts is None:
            return {}
        (state, _), *others = parts
        if writing is not None:
            state["otf"]["shards"] = writing
        if in_batch:  # of one process alone
            snapshot.close_batch(state, inside.training_modes(self._trainer))
        state["otf"]["ranks"] = [part for part, _ in others]
        for rank, (_, (reasons, left_out)) in enumerate(others, start=1):
            self._of_others[0].update(dict.fromkeys(f"rank {rank}: {r}" for r in reasons))
            self._of_others[1].update(dict.fromkeys(left_out))
        return state

    def _gather(self, pool: HostPool | None) -> tuple[list[Any] | None, Writing | None]:
        """The parts of all ranks on rank 0, and what lies in shards on its way to the disk."""
        parts, place = None, None
        try:
            parts = gather(lambda: (self._capture(pool), self.exactness()))
            place = self._checkpoints() if parts is not None else None
        finally:  # where one has failed the others are told to write nothing
            writing = None
            if self._shards is not None:
                writing = self._shards.write(self._in_parts, place)
            self._in_parts = {}
        return parts, writing

    def _capture(self, pool: HostPool | None) -> dict[str, Any]:
        part = not self._trainer.is_global_zero
        in_parts = self._in_parts if self._shards is not None else None
        state = snapshot.capture(self._trainer, pool, part=part, shards=in_parts)
        exact = state["otf"]["exact"]
        exact["given"] = script.unchanged_in(exact, self._given)
        self._report.leaves_out(exact["unknown"], exact["apart"])
        # A resumed process has its script's limits.
        state["otf"]["extended"] = dict(self._extended)
        state["otf"]["loggers"] = loggers.capture_loggers(self._trainer)
        if part:
            state["otf"].update(self.of_rank())
        return state

    def sizes(self) -> list[tuple[int, bool]]:
        """Of weights and optimizer states, which are nearly all of a checkpoint."""
        module = self._trainer.lightning_module
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers()]
        return sizes_of([module.state_dict(), optimizers])

    def check(self, state: Mapping[str, Any]) -> None:
        """See snapshot.check."""
        snapshot.check(self._trainer, state)

    def apply(self, state: dict[str, Any]) -> Applied:
        """See snapshot.apply; also while the fit is held at its end. An extension stays one."""
        snapshot.check(self._trainer, state)
        saved, here = snapshot.world_of(state), self._trainer.world_size
        state = snapshot.of_rank(state, self._trainer.global_rank)
        self._read_shards(state)
        why = other_world.adapt(self._trainer, state, saved) if saved != here else []
        exact = state["otf"]["exact"] = dict(state["otf"]["exact"])
        differ = script.settle_in(exact, self._given)
        lost, of_loaders = snapshot.apply(self._trainer, state)
        differ += of_loaders
        self._extend_at_least(state["otf"].get("extended", {}))
        self._between_epochs = inside.epoch_is_over(self._trainer)
        self._in_epoch = not self._between_epochs
        return Applied(
            [*why, *(f"{what} could not be put back" for what in lost)],
            [sentence for each in differ for sentence in each.told_text],
            [sentence for each in differ for sentence in each.told_numbers],
        )

    def _read_shards(self, state: dict[str, Any]) -> None:
        """Put the weights of this rank's parts into its snapshot; on all ranks at once."""
        if (said := state["otf"].get("shards")) is None:
            return
        folder, files = Path(said["folder"]), files_in(state)
        if self._shards is None:
            detail = (
                "The checkpoint has its weights in parts, this run has them whole; allowed: "
                "strategy='otf_fsdp2', or its weights alone, by `otf export_weights`."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
        layouts = snapshot.layouts(self._trainer, state)
        snapshot.with_shards(state, self._shards.read(folder, files, layouts))

    def environment(self) -> dict[str, Any]:
        """Lightning's version is among the core's; the data is Lightning's to know."""
        if self._trainer.reload_dataloaders_every_n_epochs:
            return {"ranks": self._trainer.world_size}  # it may be another in each epoch
        data = inside.training_batches(self._trainer)
        return {"data": data, "ranks": self._trainer.world_size}

    def exactness(self) -> tuple[list[str], list[str]]:
        """See exact_report.ExactReport.found; on rank 0 also what the others have found."""
        reasons, left_out = self._report.found(self._trainer)
        of_reasons, of_left_out = self._of_others
        return [*reasons, *of_reasons], [*left_out, *of_left_out]

    def extend(self, asked: Mapping[str, int]) -> None:
        """Set ``max_steps`` or ``max_epochs``, -1 for no limit; an early stop is called off.

        Raises:
            CommandError: ``unsupported``; a schedule has a fixed length.
        """
        refuse_fixed_length(scheduler for scheduler, _ in self.schedulers())
        for name, value in asked.items():
            setattr(self._owner(name), name, value)
            self._extended[name] = value
        self._trainer.should_stop = False

    def _extend_at_least(self, limits: Mapping[str, int]) -> None:
        """What a snapshot was extended to, where the script's own limit is not above it."""
        for name, value in limits.items():
            now = getattr(self._owner(name), name)
            if now not in (None, -1) and (value == -1 or now < value):
                setattr(self._owner(name), name, value)
                self._extended[name] = value

    def _owner(self, limit: str) -> Any:
        fit = self._trainer.fit_loop
        return fit if limit == "max_epochs" else fit.epoch_loop

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        """See evaluation.run_validation."""
        return evaluation.run_validation(self._trainer, limit_batches, on_batch)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        """See evaluation.run_test."""
        return evaluation.run_test(self._trainer, self._test_dataloaders, on_batch)

    def leaving(self) -> bool:
        """Lightning's handler notes SIGTERM; it acts on it after the next batch.

        Of several ranks Lightning brings all to the same end itself.
        """
        return bool(self._trainer.received_sigterm) and self._trainer.world_size == 1

    def request_stop(self) -> None:
        """End here, also where the script asked for more epochs or steps at least."""
        fit = self._trainer.fit_loop
        fit.min_epochs, fit.epoch_loop.min_steps = None, None
        self._trainer.should_stop = True

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers in the trainer's order; none before the fit has set them up."""
        return self._trainer.optimizers

    def schedulers(self) -> Sequence[tuple[Any, torch.optim.Optimizer]]:
        """Each scheduler with its optimizer."""
        configs = self._trainer.lr_scheduler_configs
        return [(c.scheduler, c.scheduler.optimizer) for c in configs]

    def cadence(self) -> Cadence | None:
        """None where the module steps its schedules itself."""
        trainer = self._trainer
        module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop
        if not module.automatic_optimization or is_overridden("lr_scheduler_step", module):
            return None
        batches = trainer.num_training_batches
        return Cadence(
            step=inside.steps_done(trainer),
            batch_idx=loop.batch_progress.current.completed,
            epoch=trainer.current_epoch,
            batches=int(batches) if math.isfinite(batches) else None,
            accumulate=trainer.accumulate_grad_batches,
            schedules=[*map(Stepping.of, trainer.lr_scheduler_configs)],
        )

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """Values that are in no parameter group."""
        return {
            **self._clip_knob(),
            accumulation.PATH: self._accumulation_knob(),
            frozen.PATH: self.frozen.knob(),
            **self.data.knobs(),
            **self.averages.knobs(),
            **self.attributes.knobs(),
        }

    def _accumulation_knob(self) -> Knob:
        """Where Lightning steps, and nobody else says when."""
        trainer = self._trainer
        if not trainer.lightning_module.automatic_optimization:
            return refused_knob(accumulation.BY_HAND)
        for callback in trainer.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                why = f"{type(callback).__name__} sets it at each epoch; allowed: its scheduling."
                return refused_knob(why)
        if trainer.strategy.handles_gradient_accumulation:
            name = type(trainer.strategy).__name__
            return refused_knob(f"{name} accumulates by itself, as it was configured.")

        def place() -> tuple[int, int | None]:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            batches = trainer.num_training_batches
            return done, int(batches) if math.isfinite(batches) else None

        def write(value: int) -> None:
            trainer.accumulate_grad_batches = value

        return accumulation.accumulation_knob(lambda: trainer.accumulate_grad_batches, write, place)

    def _clip_knob(self) -> Mapping[str, Knob]:
        """The gradient clip, where Lightning applies it."""
        trainer = self._trainer
        module = trainer.lightning_module
        if not module.automatic_optimization or is_overridden(
            "configure_gradient_clipping", module
        ):
            return {}
        # A fused optimizer unscales inside its step; Lightning refuses to clip before that.
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and (
            getattr(trainer.precision_plugin, "scaler", None) is not None
        )
        if scaled and any(
            getattr(o, "_step_supports_amp_scaling", False) for o in self.optimizers()
        ):
            return {}

        def write(value: Any) -> None:
            trainer.gradient_clip_val = value

        return {"gradient_clip_val": clip_knob(lambda: trainer.gradient_clip_val, write)}
