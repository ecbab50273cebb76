"""Strategies of Lightning's with phase clocks, by class and by name: ``otf_ddp`` for ``ddp``.

Rule 1: they train as their parents do; control is the callback's, and needs none of them.
Rule 2: a clock reads the host's time and never waits for a device. On a GPU a phase is as long as
its work took to be enqueued, and whoever waits for a device is charged with what it does.
Rule 3: a moment belongs to one phase. What is called inside a phase is taken out of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.states import TrainerFn

from otf_lightning import inside

PHASES: Final = ("data_wait", "transfer", "forward", "backward", "optimizer", "barrier")
PREFIX: Final = "otf_"


class PhaseClocks:
    """Where a rank's training steps spend the host's time; training thread.

    Attributes:
        on: False: no clock is read any more; may be set at any time.
    """

    def __init__(self) -> None:
        self.on = True
        self.phase: str | None = None
        # Of a batch that was fetched: a validation has transfers too, a check of health forwards.
        self.transfer_comes = self.forward_comes = False
        self._ns = dict.fromkeys(PHASES, 0)
        self._since_ns = 0

    def totals(self) -> dict[str, float]:
        """Seconds of each phase since the fit began, without the one under way; any thread."""
        return {phase: ns / 1e9 for phase, ns in self._ns.items()}

    def switch(self, phase: str | None) -> str | None:
        """From here on time is this phase's, None for nobody's; returns whose it was."""
        now_ns, before = time.perf_counter_ns(), self.phase
        if before is not None:
            self._ns[before] += now_ns - self._since_ns
        self.phase, self._since_ns = phase, now_ns
        return before

    def fetched(self, before: str | None) -> None:
        """A batch was fetched, or there was none; what comes is its step."""
        self.switch(before)
        self.transfer_comes = self.forward_comes = True

    def reset(self) -> None:
        """A fit begins."""
        self._ns, self.phase = dict.fromkeys(PHASES, 0), None
        self.transfer_comes = self.forward_comes = False


def clocks_of(trainer: L.Trainer) -> PhaseClocks | None:
    """Those of its strategy; None where it has none, or they are off."""
    clocks = getattr(trainer.strategy, "clocks", None)
    return clocks if isinstance(clocks, PhaseClocks) and clocks.on else None


def with_clocks(base: Any, name: str) -> Any:
    """A strategy that is ``base`` and keeps clocks; its arguments are those of ``base``.

    Args:
        name: of the class, under which this module has it: a spawned process looks for it here.
    """

    # Bound once: super() at every call costs more than the clocks.
    its_batch_to_device, its_training_step = base.batch_to_device, base.training_step
    its_backward, its_optimizer_step = base.backward, base.optimizer_step

    class Clocked(base):  # type: ignore[misc]
        @functools.cached_property
        def clocks(self) -> PhaseClocks:
            """See PhaseClocks."""
            return PhaseClocks()

        def setup(self, trainer: L.Trainer) -> None:
            super().setup(trainer)
            if trainer.state.fn == TrainerFn.FITTING:
                self.clocks.reset()
                inside.time_fetches(trainer, self.clocks)

        def batch_to_device(self, *args: Any, **kwargs: Any) -> Any:
            clocks = self.clocks
            if not (clocks.transfer_comes and clocks.on):
                return its_batch_to_device(self, *args, **kwargs)
            clocks.transfer_comes = False
            before = clocks.switch("transfer")
            try:
                return its_batch_to_device(self, *args, **kwargs)
            finally:
                clocks.switch(before)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            clocks = self.clocks
            if not (clocks.forward_comes and clocks.on):
                return its_training_step(self, *args, **kwargs)
            clocks.forward_comes = False
            before = clocks.switch("forward")
            try:
                return its_training_step(self, *args, **kwargs)
            finally:
                clocks.switch(before)

        def backward(self, *args: Any, **kwargs: Any) -> Any:
            clocks = self.clocks
            if not clocks.on:
                return its_backward(self, *args, **kwargs)
            before = clocks.switch("backward")
            try:
                return its_backward(self, *args, **kwargs)
            finally:
                clocks.switch(before)

        def optimizer_step(
            self, optimizer: Any, closure: Callable[[], Any], *args: Any, **kwargs: Any
        ) -> Any:
            clocks = self.clocks
            if not clocks.on:
                return its_optimizer_step(self, optimizer, closure, *args, **kwargs)

            def apart() -> Any:
                own = clocks.switch(None)
                try:
                    return closure()
                finally:
                    clocks.switch(own)

            before = clocks.switch("optimizer")
            try:
                return its_optimizer_step(self, optimizer, apart, *args, **kwargs)
            finally:
                clocks.switch(before)

        def barrier(self, *args: Any, **kwargs: Any) -> Any:
            return self._together(super().barrier, args, kwargs)

        def reduce(self, *args: Any, **kwargs: Any) -> Any:
            return self._together(super().reduce, args, kwargs)

        def _together(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            clocks, module = self.clocks, self.lightning_module
            trainer = None if module is None else module._trainer  # noqa: SLF001 -- the public one raises where there is none
            if not clocks.on or trainer is None or not trainer.training:
                return call(*args, **kwargs)
            before = clocks.switch("barrier")
            try:
                return call(*args, **kwargs)
            finally:
                clocks.switch(before)

    Clocked.__name__ = Clocked.__qualname__ = name
    Clocked.__doc__ = f"{base.__name__.lstrip('_')} with phase clocks; see ``PhaseClocks``."
    return Clocked


class _DeviceOfAccelerator(SingleDeviceStrategy):
    """On the device that the accelerator has, where none is given.

    By its name Lightning makes the strategy before it has an accelerator, and for the CPU.
    """

    def __init__(
        self,
        device: Any = None,
        accelerator: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
    ) -> None:
        super().__init__("cpu" if device is None else device, accelerator, checkpoint_io)
        self._precision_plugin = precision_plugin
        self._given = device is not None

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """None, so that the trainer gives those of the accelerator."""
        return None

    @parallel_devices.setter
    def parallel_devices(self, devices: list[Any]) -> None:
        if not self._given and devices:
            device = devices[0]
            self._root_device = torch.device("cuda", device) if isinstance(device, int) else device


class _FSDPOnCUDA(FSDPStrategy):
    """Refused on the CPU as FSDPStrategy is, which Lightning knows by its type and its names."""

    def _configure_launcher(self) -> None:
        if not isinstance(self.accelerator, CUDAAccelerator):
            accelerator: Any = self.accelerator
            flag = accelerator.name() if accelerator is not None else None
            msg = (
                f"The strategy `{FSDPStrategy.strategy_name}` requires a GPU accelerator, but "
                f"received `accelerator={flag!r}`. Please set `accelerator='cuda'`, "
                "`accelerator='gpu'`, or pass a `CUDAAccelerator()` instance to use FSDP."
            )
            raise ValueError(msg)  # noqa: TRY004 -- as Lightning does
        super()._configure_launcher()


class _ModelParallel(ModelParallelStrategy):
    """Refuses a precision by name as by instance, where alone Lightning looks at it."""

    def _configure_launcher(self) -> None:
        supported = ("32-true", "bf16-mixed", "bf16-true", "16-true")
        if self.precision_plugin.precision not in supported:
            msg = (
                "The `ModelParallelStrategy` does not support "
                f"`Fabric(..., precision={self.precision_plugin.precision!r})`. Choose a different "
                f"precision among: {', '.join(supported)}."
            )
            raise ValueError(msg)
        super()._configure_launcher()


class _FSDP2(_ModelParallel):
    """ModelParallelStrategy whose ``"auto"`` sizes mean data parallel over all ranks."""

    def setup_environment(self) -> None:
        if self._tensor_parallel_size == "auto":
            self._tensor_parallel_size = 1
        if self._data_parallel_size == "auto":
            world_size = self.num_nodes * self.num_processes
            self._data_parallel_size = world_size // self._tensor_parallel_size
        super().setup_environment()


OTFSingleDeviceStrategy = with_clocks(_DeviceOfAccelerator, "OTFSingleDeviceStrategy")
OTFDDPStrategy = with_clocks(DDPStrategy, "OTFDDPStrategy")
OTFFSDPStrategy = with_clocks(_FSDPOnCUDA, "OTFFSDPStrategy")
OTFModelParallelStrategy = with_clocks(_ModelParallel, "OTFModelParallelStrategy")
OTFFSDP2Strategy = with_clocks(_FSDP2, "OTFFSDP2Strategy")

# Of each the names that Lightning has for its parent, with the same arguments.
_PARENTS: Final[dict[type[Strategy], Any]] = {
    SingleDeviceStrategy: OTFSingleDeviceStrategy,
    DDPStrategy: OTFDDPStrategy,
    FSDPStrategy: OTFFSDPStrategy,
}


def register() -> None:
    """Make the names known to ``Trainer(strategy=)``; may be called again."""
    found = [(name, row) for name, row in StrategyRegistry.items() if row["strategy"] in _PARENTS]
    for name, row in found:
        strategy, given = _PARENTS[row["strategy"]], row["init_params"]
        said = f"{row['description']}, with phase clocks"
        StrategyRegistry.register(PREFIX + name, strategy, said, override=True, **given)
    for name, strategy in (
        ("model_parallel", OTFModelParallelStrategy),
        ("fsdp2", OTFFSDP2Strategy),
    ):
        StrategyRegistry.register(PREFIX + name, strategy, strategy.__doc__, override=True)
