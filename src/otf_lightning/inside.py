"""The places inside Lightning 2.6 that otf stands on, each with the reason.

Lightning has no public hook between two batches, and no public way to run a test loop inside fit.
What is used instead is here and nowhere else, and ``tests/house`` checks that every name exists,
so that a new Lightning shows at once what has moved.
"""

# ruff: noqa: SLF001 -- this module is the one that reaches in

from __future__ import annotations

import contextlib
import copy
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parallel import DistributedDataParallel

from otf_core.telemetry.norms import is_sharded

# owner -> names; "owner" is an attribute path from the trainer of a fit
PRIVATE: Final = {
    "fit_loop.epoch_loop": (
        "advance",
        "on_advance_end",
        "_batches_that_stepped",
        "_on_after_fetch",
        "_on_before_fetch",
        "_results",
        "_build_kwargs",
        "batch_progress",
    ),
    "fit_loop.epoch_loop.automatic_optimization": ("_skip_backward",),
    "fit_loop": (
        "advance",
        "on_advance_end",
        "_combined_loader",
        "_combined_loader_states_to_load",
        "_data_fetcher",
        "_last_train_dl_reload_epoch",
        "_loaded_from_state_dict",
        "_restarting",
        "_resuming_from_checkpoint",
        "_can_stop_early",
        "_should_accumulate",
        "reset_restart_stage",
    ),
    "fit_loop._combined_loader": ("_iterator", "_mode"),
    "fit_loop._combined_loader._iterator": ("_consumed", "_idx", "iterators"),
    "fit_loop._data_fetcher": ("_start_profiler", "_stop_profiler"),
    "fit_loop.epoch_loop.val_loop": (
        "_combined_loader",
        "_last_val_dl_reload_epoch",
        "_module_mode",
    ),
    "test_loop": ("_data_source", "_combined_loader", "_max_batches", "run", "teardown"),
    "validate_loop": ("_data_source", "_combined_loader", "_max_batches", "run", "teardown"),
    "_logger_connector": (
        "_callback_metrics",
        "_logged_metrics",
        "_progress_bar_metrics",
        "_first_loop_iter",
        "_current_fx",
    ),
    "_checkpoint_connector": (
        "_loaded_checkpoint",
        "_restore_modules_and_callbacks",
        "dump_checkpoint",
        "restore_callbacks",
        "restore_datamodule",
        "restore_lr_schedulers",
        "restore_model",
        "restore_precision_plugin_state",
    ),
    "_signal_connector": ("received_sigterm",),
    "lightning_module": ("_current_fx_name", "_on_before_batch_transfer"),
    "": ("_last_val_time", "_val_check_time_interval"),
}
# Not attributes of a trainer: the classes from which what ``self.log`` gathers is built anew.
PRIVATE_CLASSES: Final = {
    "lightning.pytorch.trainer.connectors.logger_connector.result": (
        "_Metadata",
        "_ResultMetric",
        "_Sync",
    ),
    "lightning.pytorch.loops.loop": ("_Loop",),
    "lightning.pytorch.trainer.connectors.data_connector": ("_parse_num_batches",),
    "lightning.pytorch.loops.fetchers": ("_DataLoaderIterDataFetcher",),
}
# A LightningModule's own attributes: links to the trainer, and caches keyed by id(), which are
# dead in a new process.
MODULE_OWN: Final = vars(L.LightningModule()).keys() - {"training"}
LOGGED: Final = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
LOG_FLAGS: Final = ("_first_loop_iter", "_current_fx")


class Wraps:
    """Methods replaced on instances, and taken off again."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str]] = []

    def put(self, owner: Any, name: str, by: Callable[..., Any]) -> None:
        """Replace ``owner.name`` on the instance."""
        setattr(owner, name, by)
        self._undo.append((owner, name))

    def off(self) -> None:
        """Take all off, newest first."""
        while self._undo:
            owner, name = self._undo.pop()
            vars(owner).pop(name, None)


def time_fetches(trainer: L.Trainer, clocks: Any) -> None:
    """Have ``clocks`` told of every fetch of a training batch in this fit; again for another.

    Args:
        clocks: see strategies.PhaseClocks.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    kind, before = type(loop), [None]

    def begin() -> None:
        kind._on_before_fetch(loop)
        if clocks.on:
            before[0] = clocks.switch("data_wait")

    def end() -> None:
        if clocks.on:
            clocks.fetched(before[0])
        kind._on_after_fetch(loop)

    loop._on_before_fetch, loop._on_after_fetch = begin, end


def steps_done(trainer: L.Trainer) -> int:
    """Batches after which an optimizer stepped: the step that Lightning's loggers use."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def batches_done(trainer: L.Trainer) -> int:
    """Batches of this epoch that are completely finished."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def logged(trainer: L.Trainer) -> dict[str, Any]:
    """What ``self.log`` has gathered, newest values; the live dict, not to be changed.

    The public ``callback_metrics`` would compute the metrics of the epoch at every read.
    """
    return trainer._logger_connector._callback_metrics


def log_state(trainer: L.Trainer) -> dict[str, Any]:
    """What an evaluation in between would overwrite in the logger connector."""
    connector = trainer._logger_connector
    dicts = {name: dict(getattr(connector, name)) for name in LOGGED}
    return {**dicts, **{name: getattr(connector, name) for name in LOG_FLAGS}}


def set_log_state(trainer: L.Trainer, state: dict[str, Any]) -> None:
    """Put back what log_state returned."""
    for name, value in state.items():
        setattr(trainer._logger_connector, name, value)


def shards_weights(trainer: L.Trainer) -> bool:
    """Whether each rank may hold a part of the weights (FSDP2, tensor parallel)."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def reshard(trainer: L.Trainer) -> None:
    """Have every rank hold its part again; a forward without a backward leaves some whole."""
    if shards_weights(trainer):
        for module in trainer.lightning_module.modules():
            if isinstance(module, torch.distributed.fsdp.FSDPModule):
                module.reshard()


def empty_beside(live: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """A tensor of this shape and type that lies on the ranks as ``live`` does."""
    if not is_sharded(live):
        return torch.empty_like(shape, device=live.device)
    if shape.shape == live.shape:
        return torch.empty_like(live, dtype=shape.dtype, requires_grad=False)
    sharded: Any = live
    return torch.distributed.tensor.empty(
        *shape.shape, dtype=shape.dtype, device_mesh=sharded.device_mesh
    )


def dump_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """A full Lightning checkpoint as live references.

    Of weights in parts each rank has its own: nothing is gathered, and an optimizer that has not
    stepped yet is not made to, as torch does for its state.
    """
    wraps, strategy = Wraps(), trainer.strategy
    if shards_weights(trainer):
        wraps.put(strategy, "lightning_module_state_dict", trainer.lightning_module.state_dict)
        wraps.put(strategy, "optimizer_state", lambda optimizer: optimizer.state_dict())
    try:
        return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    finally:
        wraps.off()


def eval_loop(trainer: L.Trainer, *, testing: bool) -> Any:
    """The loop of ``trainer.test`` or ``trainer.validate``; not the one that fit validates with."""
    return trainer.test_loop if testing else trainer.validate_loop


def has_step(trainer: L.Trainer, name: str) -> bool:
    """Whether the module has its own ``test_step`` or ``validation_step``."""
    return is_overridden(name, trainer.lightning_module)


def source_is_defined(loop: Any) -> bool:
    """Whether module, data module or an argument gives the loop its loaders."""
    return bool(loop._data_source.is_defined())


def set_source(loop: Any, instance: Any) -> Any:
    """Give the loop its loaders; returns what it had."""
    before, loop._data_source.instance = loop._data_source.instance, instance
    return before


def batches_in_all(loop: Any) -> int | None:
    """Batches over all loaders of an evaluation that has begun; None if unknown."""
    total = sum(loop._max_batches)
    return int(total) if total != float("inf") else None


def setup_datamodule(trainer: L.Trainer, stage: str) -> None:
    """Call the data module's ``setup`` as ``trainer.test`` would."""
    if trainer.datamodule is not None:
        call._call_lightning_datamodule_hook(trainer, "setup", stage=stage)


def last_val_time(trainer: L.Trainer) -> Any:
    """When a validation ended, for time-based ``val_check_interval``."""
    return getattr(trainer, "_last_val_time", None)


def set_last_val_time(trainer: L.Trainer, value: Any) -> None:
    """Put it back."""
    if value is not None:
        trainer._last_val_time = value


def exit_codes(trainer: L.Trainer) -> dict[int, int]:
    """Of the ranks that Lightning has started from this process, those that have ended; any thread.

    They are the ranks behind this one, in order.
    """
    procs = getattr(trainer.strategy.launcher, "procs", ())
    codes = {
        trainer.global_rank + 1 + place: proc.poll()
        for place, proc in enumerate(procs)
        if isinstance(proc, subprocess.Popen)
    }
    return {rank: code for rank, code in codes.items() if code is not None}


def pass_on_sigterm(trainer: L.Trainer, number: int, frame: Any, before: Any) -> None:
    """To the processes that the launcher has started, and the script's own handlers.

    Not to Lightning's, which begins a collective wherever the training stands.

    Args:
        before: the handler that was there.
    """
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(number)
    for handler in getattr(before, "signal_handlers", [before]):
        if callable(handler) and getattr(handler, "__self__", None) is not _signals(trainer):
            handler(number, frame)


def was_told_to_end(trainer: L.Trainer) -> None:
    """As Lightning's own handler notes it."""
    _signals(trainer).received_sigterm = True


def _signals(trainer: L.Trainer) -> Any:
    return trainer._signal_connector


def syncs_buffers(trainer: L.Trainer) -> bool | None:
    """Whether DDP's next forward brings rank 0's buffers to all; None where there is no DDP.

    Not behind one without gradients, or one within an accumulation.
    """
    model = trainer.strategy.model
    return model.require_forward_param_sync if isinstance(model, DistributedDataParallel) else None


def set_syncs_buffers(trainer: L.Trainer, value: bool | None) -> None:  # noqa: FBT001 -- as it was
    """Put it back."""
    model = trainer.strategy.model
    if value is not None and isinstance(model, DistributedDataParallel):
        model.require_forward_param_sync = value


def fit_loaders(trainer: L.Trainer) -> Iterator[Any]:
    """The loaders of training and of the validation inside fit, those that are made already."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop):
        combined = loop._combined_loader
        # "is": a CombinedLoader without an iterator has no truth
        if combined is not None:
            yield from combined.flattened


def loaders_in_fit(trainer: L.Trainer, *, validation: bool) -> list[Any]:
    """Those of training, or of the validation inside fit; empty before they are made."""
    loop = trainer.fit_loop.epoch_loop.val_loop if validation else trainer.fit_loop
    combined = loop._combined_loader
    return list(combined.flattened) if combined is not None else []


def ask_for_loaders(loop: Any) -> list[Any]:
    """What module, data module or an argument gives an evaluation; the loop is not told."""
    found = loop._data_source.dataloader()
    return list(found) if isinstance(found, list | tuple) else [found]


def to_device(trainer: L.Trainer, batch: Any, dataloader_idx: int) -> Any:
    """A batch by precision and the user's hooks, as the loops bring it to the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def combined(trainer: L.Trainer, loader: Callable[[Any], Any]) -> Iterator[Any]:
    """The batches of other loaders, combined as the fit combines its own.

    Args:
        loader: called with each of the fit's, returns the one in its place.
    """
    own: Any = trainer.fit_loop._combined_loader
    if own is None:
        return
    other = copy.copy(own)
    other._iterator = None
    other.flattened = [loader(each) for each in own.flattened]
    for batch, _, _ in other:
        yield batch


def training_step(trainer: L.Trainer, batch: Any) -> Any:
    """What the module's ``training_step`` returns for a batch, under the index of the next one.

    Of several ranks this one's alone: past the wrapper of DDP, which would wait for the others.
    """
    module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop
    arguments = loop._build_kwargs(OrderedDict(), batch, batches_done(trainer))
    before = module._current_fx_name
    module._current_fx_name = "training_step"
    if loop._results is not None:
        loop._results.batch, loop._results.batch_size = batch, None
    try:
        if trainer.world_size == 1:
            return trainer.strategy.training_step(*arguments.values())
        with trainer.precision_plugin.train_step_context():
            return module.training_step(*arguments.values())
    finally:
        module._current_fx_name = before


@contextlib.contextmanager
def logged_apart(trainer: L.Trainer) -> Iterator[None]:
    """What ``self.log`` gathers inside is thrown away."""
    loop: Any = trainer.fit_loop.epoch_loop
    before = loop._results
    loop._results = type(before)(training=True)
    try:
        yield
    finally:
        loop._results = before


def before_restore(trainer: L.Trainer, wraps: Wraps, opened: Callable[[Any], bool]) -> None:
    """Call ``opened`` with the path that a fit was given; True: Lightning restores nothing.

    The path is a local of the trainer's run; this is the first that is called with it, once, also
    where there is none.
    """
    connector: Any = trainer._checkpoint_connector
    restore = connector._restore_modules_and_callbacks

    def instead(path: Any = None, weights_only: Any = None) -> None:
        taken = opened(path)
        restore(None if taken else path, weights_only)

    wraps.put(connector, "_restore_modules_and_callbacks", instead)


def training_batches(trainer: L.Trainer) -> int | None:
    """Batches of a training epoch; None where that is not known."""
    found = trainer.fit_loop.max_batches
    return None if found == float("inf") else int(found)


def hands_over_the_iterator(trainer: L.Trainer) -> bool:
    """Whether ``training_step`` fetches for itself, so that nobody knows how far it is."""
    return isinstance(fetcher(trainer), _DataLoaderIterDataFetcher)


def validates_by_the_clock(trainer: L.Trainer) -> bool:
    """Whether validations come by time."""
    return getattr(trainer, "_val_check_time_interval", None) is not None


def training_modes(trainer: L.Trainer) -> dict[str, bool]:
    """``training`` of each module, as a validation that is under way will put it back."""
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    return dict(loop._module_mode.mode) if trainer.validating else {}


def fetcher(trainer: L.Trainer) -> Any:
    """The one that fetches the training batches now."""
    return trainer.fit_loop._data_fetcher


def epoch_is_over(trainer: L.Trainer) -> bool:
    """Whether the fit stands between two epochs, its counters all even."""
    now = trainer.fit_loop.epoch_progress.current
    return now.processed == now.ready


def stops(trainer: L.Trainer) -> bool:
    """Whether something has asked for the end, and is heard."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def run_rest_of_epoch(trainer: L.Trainer) -> None:
    """``epoch_loop.run`` without its beginning: the state in mid-epoch was put back already."""
    loop = trainer.fit_loop.epoch_loop
    while not loop.done:
        try:
            loop.advance(fetcher(trainer))
            loop.on_advance_end(fetcher(trainer))
        except StopIteration:
            break
        finally:
            loop.on_iteration_done()
    loop._restarting = False
