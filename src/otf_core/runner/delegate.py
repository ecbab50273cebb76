"""RunnerDelegate: what the core asks of a fit of the Runner, on the training thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from otf_core.control.delegate import Applied, Evaluation, OnBatch, Position
from otf_core.data_knobs import DataKnobs
from otf_core.runner import meanwhile
from otf_core.runner.hooks import framework_base
from otf_core.runner.logged_state import LoggedState
from otf_core.runner.module import modules_by_name, not_state
from otf_core.runner.optim import unwrapped
from otf_core.runner.plain import PlainModule
from otf_core.runner.precision import unscales_itself
from otf_core.state.data_tap import tap
from otf_core.state.host_pool import HostPool
from otf_core.state.on_device import Holdings, holdings_of
from otf_core.state.parts import refuse_fixed_length
from otf_core.state.reading import Reading
from otf_core.state.training import Pieces, TrainingState
from otf_core.steering import accumulation, averages, frozen
from otf_core.steering.attributes import Attributes, Holder, of_data, of_module
from otf_core.steering.cadence import Cadence, Stepping
from otf_core.steering.declared import Declared
from otf_core.steering.knobs import Knob, clip_knob, refused_knob

if TYPE_CHECKING:
    from otf_core.runner.run import Run

KIND: Final = "the Runner"
# Of the run, what a hook or a command may have changed.
_OF_RUN: Final = ("accumulate_grad_batches", "should_stop")


class RunnerDelegate:
    """One fit.

    Args:
        run: its optimizers are made; no loader is.
        params: attributes that can be set.
    """

    def __init__(self, run: Run, params: Sequence[Declared] | None = None) -> None:
        self._run = run
        run.process_loader = tap
        self.attributes = Attributes(
            self._holders, lambda: modules_by_name(run.module, run.parts), params
        )
        self.frozen = frozen.Frozen(
            lambda: frozen.names_of(modules_by_name(run.module, run.parts).items()),
            lambda: run.optimizers,
        )
        run.before_step = self.frozen.before_step
        self.data = DataKnobs()
        self._closed = False  # the batch in hand counts as done
        self._extended: dict[str, int] = {}
        self._reading: Reading | None = None
        self._state: TrainingState | None = None
        self.told_to_end = False

    def ready(self) -> None:
        """The loaders are made; called at the first safe point."""
        if self._state is None:
            [loader] = self._run.fit_loop.loaders or [()]
            self._reading = Reading(loader)
            self._state = TrainingState(self._pieces())

    def position(self) -> Position:
        """Where the fit stands, between two batches."""
        run, counters = self._run, self._run.counters
        return Position(
            step=counters.batches_that_stepped,
            global_step=counters.global_step,
            epoch=counters.epoch,
            batch_idx=counters.batches_done,
            max_steps=run.max_steps if run.max_steps != -1 else None,
            max_epochs=run.max_epochs if run.max_epochs != -1 else None,
            epochs_done=counters.epochs_processed,
        )

    def capture(self, pool: HostPool | None = None, *, in_batch: bool = False) -> dict[str, Any]:
        """See TrainingState.capture."""
        self._follow()
        self._closed = in_batch
        if in_batch:
            self._run.validation.restore_modes()
        try:
            state = self._training.capture(pool)
        finally:
            self._closed = False
        state["otf"]["extended"] = dict(self._extended)
        return state

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """See TrainingState.sizes."""
        return self._training.sizes()

    def check(self, state: Mapping[str, Any]) -> None:
        """See TrainingState.check."""
        self._training.check(state)

    def apply(self, state: dict[str, Any]) -> Applied:
        """See TrainingState.apply; an extension stays one."""
        self._training.check(state)
        self._follow()
        applied = self._training.apply(state)
        assert self._reading is not None
        self._run.fit_loop.batches.go_on(self._reading.iterator)
        for name, value in state["otf"].get("extended", {}).items():
            now = getattr(self._run, name)
            if now != -1 and (value == -1 or now < value):
                setattr(self._run, name, value)
                self._extended[name] = value
        return applied

    def environment(self) -> dict[str, Any]:
        """See TrainingState.environment."""
        return self._training.environment()

    def exactness(self) -> tuple[list[str], list[str]]:
        """See TrainingState.exactness."""
        return self._training.exactness()

    def extend(self, asked: Mapping[str, int]) -> None:
        """Set ``max_steps`` or ``max_epochs``, -1 for no limit; a stop is called off.

        Raises:
            CommandError: ``unsupported``; a schedule has a fixed length.
        """
        refuse_fixed_length(scheduler for scheduler, _ in self.schedulers())
        for name, value in asked.items():
            setattr(self._run, name, value)
            self._extended[name] = value
        self._run.should_stop = False

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        """See meanwhile.run_validation."""
        return meanwhile.run_validation(self._run, limit_batches, on_batch)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        """See meanwhile.run_test."""
        return meanwhile.run_test(self._run, on_batch)

    def leaving(self) -> bool:
        """Whether SIGTERM has come."""
        return self.told_to_end

    def request_stop(self) -> None:
        """End here, also where the script asked for more at least."""
        self._run.stop()

    # What can be steered.

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers, as configure_optimizers has them."""
        return self._run.optimizers

    def schedulers(self) -> Sequence[tuple[Any, torch.optim.Optimizer]]:
        """Each scheduler with its optimizer."""
        found = [config.scheduler for config in self._run.schedulers]
        return [(scheduler, unwrapped(scheduler.optimizer)) for scheduler in found]

    def cadence(self) -> Cadence | None:
        """None where the module steps its schedules itself."""
        run, counters = self._run, self._run.counters
        if not run.automatic or "lr_scheduler_step" in run.hooks:
            return None
        batches = run.fit_loop.max_batches
        return Cadence(
            step=counters.batches_that_stepped,
            batch_idx=counters.batches_done,
            epoch=counters.epoch,
            batches=int(batches) if math.isfinite(batches) else None,
            accumulate=run.accumulate_grad_batches,
            schedules=[*map(Stepping.of, run.schedulers)],
        )

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """Values that are in no parameter group."""
        return {
            **self._clip_knob(),
            accumulation.PATH: self._accumulation_knob(),
            frozen.PATH: self.frozen.knob(),
            **self.data.knobs(),
            **averages.no_average(averages.A_TRAINER),
            **self.attributes.knobs(),
        }

    def _holders(self) -> list[Holder]:
        run = self._run
        plain = isinstance(run.module, PlainModule)
        own = [run.module.model] if plain else [run.module]
        return [*map(of_module, own), *of_data(run.datamodule)]

    def _accumulation_knob(self) -> Knob:
        """Where the Runner steps."""
        run = self._run
        if not run.automatic:
            return refused_knob(accumulation.BY_HAND)

        def place() -> tuple[int, int | None]:
            batches = run.fit_loop.max_batches
            return run.counters.batches_done, int(batches) if math.isfinite(batches) else None

        def write(value: int) -> None:
            run.accumulate_grad_batches = value

        return accumulation.accumulation_knob(lambda: run.accumulate_grad_batches, write, place)

    def _clip_knob(self) -> Mapping[str, Knob]:
        """The gradient clip, where the Runner applies it."""
        run = self._run
        fused = run.precision.scaler is not None and any(map(unscales_itself, run.optimizers))
        if not run.automatic or "configure_gradient_clipping" in run.hooks or fused:
            return {}

        def write(value: Any) -> None:
            run.gradient_clip_val = value

        return {"gradient_clip_val": clip_knob(lambda: run.gradient_clip_val, write)}

    # What it is made of.

    def holdings(self) -> Holdings:
        """What lies on the device, and where to look for it."""
        return holdings_of(self._training.pieces, fence=[self._run])

    @property
    def _training(self) -> TrainingState:
        self.ready()
        assert self._state is not None
        return self._state

    def _pieces(self) -> Pieces:
        run = self._run
        assert self._reading is not None
        modules = modules_by_name(run.module, run.parts)
        callbacks = [c for c in run.listening if not hasattr(c, "is_otf")]
        plain: dict[str, Any] = {
            f"{place}:{type(callback).__qualname__}": callback
            for place, callback in enumerate(callbacks)
        }
        if not isinstance(run.module, nn.Module):
            plain["module"] = run.module
        data = {} if run.datamodule is None else {"data module": run.datamodule}
        return Pieces(
            KIND,
            modules,
            run.optimizers,
            [config.scheduler for config in run.schedulers],
            run.precision.scaler,
            objects={"logged": LoggedState(run.book), **_with_state(run, plain)},
            plain=plain,
            data=data,
            readings={"train": self._reading},
            loaders={str(i): loader for i, loader in enumerate(run.validation.loaders or ())},
            counters=self._counters,
            set_counters=self._set_counters,
            gradients=self._reads_gradients,
            device=run.device,
            skip=not_state(run),
        )

    def _follow(self) -> None:
        """The reading is that of the loop's own iterator."""
        self.ready()
        assert self._reading is not None
        batches, counters = self._run.fit_loop.batches, self._run.counters
        if counters.in_epoch and batches.iterator is not None:
            self._reading.read_by(batches.iterator)
            self._reading.n = counters.fetched
        else:
            self._reading.end()

    def _counters(self) -> dict[str, Any]:
        run = self._run
        counters = run.counters.state()
        if self._closed:
            counters["batches_done"] = counters["batches_begun"]
        return {
            **counters,
            **{name: getattr(run, name) for name in _OF_RUN},
            "clip": self._changed_clip(),
            "validated": dict(run.validation.seen),
        }

    def _set_counters(self, saved: Mapping[str, Any]) -> None:
        run = self._run
        run.counters.load(dict(saved))
        for name in _OF_RUN:
            setattr(run, name, saved[name])
        [run.gradient_clip_val] = saved["clip"] or [run.options.gradient_clip_val]
        run.validation.seen = dict(saved["validated"])
        for tell in run.on_step:
            tell()

    def _changed_clip(self) -> list[float | None]:
        """What a hook has set; else it is the script's, which may have another one by then."""
        clip = self._run.gradient_clip_val
        return [clip] if clip != self._run.options.gradient_clip_val else []

    def _reads_gradients(self) -> bool:
        """Only where anything may still read those of the batch that is done."""
        run = self._run
        return (
            not run.automatic
            or run.hears("on_before_zero_grad")
            or "optimizer_zero_grad" in run.hooks
            or run.fit_loop.accumulates()
        )


def _with_state(run: Run, owners: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say themselves what their state is: networks of callbacks, a data module."""
    parts = {id(module) for part in run.parts for module in part.modules()}
    found: dict[str, Any] = {
        f"{owner}.{name}": value
        for owner, obj in owners.items()
        for name, value in vars(obj).items()
        if isinstance(value, nn.Module) and id(value) not in parts
    }
    datamodule = run.datamodule
    base: Any = framework_base(datamodule) if datamodule is not None else None
    if base is not None and type(datamodule).state_dict is not base.state_dict:
        found["data module"] = datamodule
    return found
