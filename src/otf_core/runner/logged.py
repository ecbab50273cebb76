"""What a module logs: kept per hook and name, reduced over an epoch, as Lightning 2.6 does it.

The order of the arithmetic is Lightning's (``logger_connector/result.py``), so that equal runs
log equal bits. A torchmetrics Metric is recognised without importing torchmetrics: where nobody
has imported it, nobody can log one.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch

from otf_core.runner.batches import batch_size_of
from otf_core.runner.refusals import RunnerError, refuse

_STEP: Final = (True, False)  # on_step, on_epoch
_EPOCH: Final = (False, True)
# Hook -> what it logs by default; a hook of epochs (None behind it) may not log by step.
DEFAULTS: Final[dict[str, tuple[bool, bool]]] = {
    **dict.fromkeys(
        (
            "training_step",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_before_backward",
            "backward",
            "on_after_backward",
            "on_before_optimizer_step",
            "optimizer_step",
            "configure_gradient_clipping",
            "on_before_zero_grad",
            "optimizer_zero_grad",
        ),
        _STEP,
    ),
    **dict.fromkeys(
        (
            "validation_step",
            "test_step",
            "on_validation_batch_start",
            "on_validation_batch_end",
            "on_test_batch_start",
            "on_test_batch_end",
        ),
        _EPOCH,
    ),
}
EPOCH_ONLY: Final = frozenset(
    f"on_{stage}_{when}"
    for stage in ("train", "validation", "test")
    for when in ("start", "epoch_start", "epoch_end")
)
REDUCE: Final[dict[str, Callable[..., Any]]] = {
    "mean": torch.mean,
    "avg": torch.mean,
    "min": torch.min,
    "max": torch.max,
    "sum": torch.sum,
}
_START: Final = {torch.max: float("-inf"), torch.min: float("inf")}
_BUILTIN: Final = {max: torch.max, min: torch.min, sum: torch.sum}


def loaded(name: str) -> Any:
    """A class of torchmetrics, None where it was never imported."""
    return getattr(sys.modules.get("torchmetrics"), name, None)


def is_metric(value: Any) -> bool:
    """Whether this is a Metric of torchmetrics."""
    kind = loaded("Metric")
    return kind is not None and isinstance(value, kind)


class How(NamedTuple):
    """How a name is logged; twice in one hook it must be the same."""

    prog_bar: bool
    logger: bool
    on_step: bool
    on_epoch: bool
    reduce: Callable[..., Any]
    enable_graph: bool
    add_dataloader_idx: bool
    dataloader_idx: int | None


class Entry:
    """One logged name of one hook."""

    def __init__(self, fx: str, name: str, how: How, *, is_tensor: bool) -> None:
        self.fx, self.how, self.is_tensor = fx, how, is_tensor
        forked = how.on_step and how.on_epoch
        suffix = ""
        if how.add_dataloader_idx and how.dataloader_idx is not None:
            suffix = f"/dataloader_idx_{how.dataloader_idx}"
        self.name = name + suffix
        self.step_name = name + ("_step" if forked else "") + suffix
        self.epoch_name = name + ("_epoch" if forked else "") + suffix
        self.given: tuple[Any, ...] = ()
        self.has_reset = False
        self.value: Any = None
        self.samples: Any = 0
        self.latest: Any = None  # of the step
        self.computed: Any = None
        if is_tensor:
            self._clear(torch.device("cpu"))

    def _clear(self, device: torch.device) -> None:
        start = _START.get(self.how.reduce, 0.0)
        self.value = torch.tensor(start, dtype=default_dtype(), device=device)
        self.samples = 0

    def update(self, value: Any, samples: Any) -> None:
        """Take a value in; ``value`` is a scalar tensor of its own, or a Metric."""
        how = self.how
        self.has_reset, self.computed = False, None
        if not self.is_tensor:
            self.value = value
            self.latest = value._forward_cache  # noqa: SLF001 -- torchmetrics has no other way
            return
        if value.dtype not in (torch.float32, torch.float64):
            value = value.to(default_dtype())
        if how.on_step:
            self.latest = value
            if not how.on_epoch:
                self.value = value
                return
        state = self.value
        if state.device != value.device:
            state = state.to(value.device)
        if how.reduce is torch.mean:
            self.value = state + value * samples
            self.samples = self.samples + samples
        elif how.reduce is torch.sum:
            self.value = state + value
        else:
            self.value = how.reduce(state, value)

    def cached(self, *, on_step: bool) -> torch.Tensor | None:
        """The value of the step, or of the epoch so far; None where it has none of that kind."""
        found = None
        if on_step:
            if self.how.on_step:
                found = self.latest
        elif self.how.on_epoch:
            if self.computed is None:
                self.computed = self._compute()
            found = self.computed
        if found is None:
            return None
        if not isinstance(found, torch.Tensor):
            msg = f"{self.name!r} was logged, but compute() gave {found!r}; allowed: a tensor"
            raise RunnerError(msg)
        # The same object as long as it is the same value, so that it is seen what is new.
        if self.how.enable_graph or not found.requires_grad:
            return found
        return found.detach()

    def _compute(self) -> Any:
        if not self.is_tensor:
            return self.value.compute()
        if self.how.reduce is not torch.mean:
            return self.value.clone()
        # Not by a number: CUDA multiplies by its inverse, and the last bit is another.
        samples = torch.as_tensor(self.samples, device=self.value.device)
        return self.value / samples

    def reset(self) -> None:
        """Begin anew; a Metric is reset itself."""
        if self.is_tensor:
            self.computed = None
            self._clear(self.value.device)
        else:
            self.value.reset()
        self.has_reset = True


class Results(dict[Any, Entry]):
    """All that one loop has logged."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.training = training
        self.batch: Any = None
        self.batch_size: int | None = None
        self.dataloader_idx: int | None = None

    def begin_batch(self, batch: Any, dataloader_idx: int | None) -> None:
        self.batch, self.batch_size, self.dataloader_idx = batch, None, dataloader_idx

    def end_batch(self) -> None:
        self.batch = self.batch_size = None

    def samples(self, entry: Entry, given: Any) -> Any:
        """What a value counts for in the mean of the epoch."""
        if given is not None:
            return given
        if self.batch_size is not None:
            return self.batch_size
        how = entry.how
        if (
            self.batch is None
            or not entry.is_tensor
            or not how.on_epoch
            or how.reduce is not torch.mean
        ):
            return 1
        self.batch_size = batch_size_of(self.batch)
        return self.batch_size

    def reset_tensors(self, fx: str) -> None:
        for entry in self.values():
            if entry.is_tensor and entry.fx == fx:
                entry.reset()

    def reset(self) -> None:
        for entry in self.values():
            entry.reset()

    def put_into(self, book: LogBook, *, on_step: bool) -> dict[str, torch.Tensor]:
        """Update what callbacks, loggers and the progress bar see; returns the loggers' part."""
        log: dict[str, torch.Tensor] = {}
        for entry in self.values():
            how = entry.how
            if entry.has_reset or how.dataloader_idx != self.dataloader_idx:
                continue
            value = entry.cached(on_step=on_step)
            if value is None:
                continue
            forked = entry.step_name if on_step else entry.epoch_name
            if how.logger:
                log[forked] = value
            if self.training or (how.on_epoch and not on_step):
                book.callback[entry.name] = book.callback[forked] = value
            if how.prog_bar:
                book.progress[forked] = value
        book.logged.update(log)
        return log


class LogBook:
    """What was logged, and where in the loops it stands.

    Attributes:
        fx: the hook that runs, None between hooks.
        last_fx: the hook that logged last.
        first_iteration: None outside of batches, True in the first of a loop.
        active: the results of the loop that runs.
    """

    def __init__(self) -> None:
        self.results = {
            "train": Results(training=True),
            "validate": Results(training=False),
            "test": Results(training=False),
        }
        self.active: Results | None = None
        self.fx: str | None = None
        self.last_fx: str | None = None
        self.first_iteration: bool | None = None
        self.callback: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.progress: dict[str, Any] = {}
        self.device = torch.device("cpu")
        self.metrics: Callable[[], dict[str, Any]] = dict  # those of the module, by name

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,  # noqa: FBT001, FBT002 -- Lightning's signature
        logger: bool | None = None,  # noqa: FBT001 -- as above
        on_step: bool | None = None,  # noqa: FBT001 -- as above
        on_epoch: bool | None = None,  # noqa: FBT001 -- as above
        reduce_fx: Any = "mean",
        enable_graph: bool = False,  # noqa: FBT001, FBT002 -- as above
        sync_dist: bool = False,  # noqa: FBT001, FBT002 -- as above
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,  # noqa: FBT001, FBT002 -- as above
        batch_size: Any = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,  # noqa: FBT001, FBT002 -- as above
    ) -> None:
        """As ``LightningModule.log``; in one process there is nothing to synchronise.

        Raises:
            RunnerError: the value is no number, the hook may not log, or it logged otherwise.
            RunnerUnsupportedError: ``custom reduce_fx``.
        """
        del sync_dist, sync_dist_group, rank_zero_only
        fx, results = self.fx, self.active
        if fx is None or results is None:
            msg = f"log({name!r}) was called outside of the hooks that the Runner calls"
            raise RunnerError(msg)
        value = self._checked(name, value)
        if self.last_fx != fx and self.first_iteration is not False:
            results.reset_tensors(fx)
        index = results.dataloader_idx
        key = (fx, name, index if add_dataloader_idx else None)
        given = (prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, index)
        entry = results.get(key)
        if entry is None or entry.given != given:
            flags = self._levels(fx, name, on_step, on_epoch)
            reduce = _reduction(reduce_fx)
            how = How(
                prog_bar,
                logger is not False,
                *flags,
                reduce,
                enable_graph,
                add_dataloader_idx,
                index,
            )
            entry = self._entry(results, key, entry, how, value, metric_attribute)
            entry.given = given
        entry.update(value, results.samples(entry, batch_size))
        self.last_fx = fx

    def _entry(
        self,
        results: Results,
        key: tuple[str, str, int | None],
        entry: Entry | None,
        how: How,
        value: Any,
        metric_attribute: str | None,
    ) -> Entry:
        fx, name, index = key
        if entry is not None:
            if entry.how != how:
                msg = f"log({name!r}) was called twice in {fx} with different arguments"
                raise RunnerError(msg)
            return entry
        if how.add_dataloader_idx and "/dataloader_idx_" in name:
            msg = f"log({name!r}) was called, but dataloader_idx is added to the name by itself"
            raise RunnerError(msg)
        is_tensor = isinstance(value, torch.Tensor)
        own = is_tensor or metric_attribute is not None
        if not own and all(value is not metric for metric in self.metrics().values()):
            msg = f"log({name!r}) was given a Metric that is no attribute of the module"
            raise RunnerError(msg)
        entry = results[key] = Entry(
            fx if index is None else f"{fx}.{index}", name, how, is_tensor=is_tensor
        )
        return entry

    def _checked(self, name: str, value: Any) -> Any:
        """A scalar tensor of our own, or the Metric."""
        if isinstance(value, torch.Tensor):
            own = value.detach().clone()
        elif isinstance(value, numbers.Number):
            return torch.tensor(value, device=self.device, dtype=default_dtype())
        elif is_metric(value):
            return value
        else:
            msg = f"log({name!r}) was given a {type(value).__name__}; allowed: a number, a tensor of one element, a Metric"  # noqa: E501
            raise RunnerError(msg)
        if own.numel() != 1:
            msg = f"log({name!r}) was given {own.numel()} elements; allowed: 1, as .mean() has"
            raise RunnerError(msg)
        return own.squeeze() if own.ndim else own

    @staticmethod
    def _levels(
        fx: str,
        name: str,
        on_step: bool | None,  # noqa: FBT001 -- both of log
        on_epoch: bool | None,  # noqa: FBT001 -- as above
    ) -> tuple[bool, bool]:
        """On step and on epoch, by the hook's default where not said."""
        if fx not in DEFAULTS and fx not in EPOCH_ONLY:
            msg = f"log({name!r}) was called in {fx}, which may not log"
            raise RunnerError(msg)
        by_step, by_epoch = DEFAULTS.get(fx, _EPOCH)
        by_step = by_step if on_step is None else on_step
        by_epoch = by_epoch if on_epoch is None else on_epoch
        if fx in EPOCH_ONLY and (by_step or not by_epoch):
            msg = f"log({name!r}) in {fx} logs by epoch; on_step={on_step}, on_epoch={on_epoch}"
            raise RunnerError(msg)
        if not by_step and not by_epoch:
            msg = f"log({name!r}) with on_step=False, on_epoch=False logs nothing"
            raise RunnerError(msg)
        return by_step, by_epoch

    def begin_batch(self, batch: Any, dataloader_idx: int | None = None) -> None:
        """A batch is there."""
        self.first_iteration = self.first_iteration is None
        if self.active is not None:
            self.active.begin_batch(batch, dataloader_idx)

    def end_batch(self) -> None:
        """A batch is through."""
        if self.active is not None:
            self.active.put_into(self, on_step=True)
            self.active.end_batch()

    def now(self) -> dict[str, torch.Tensor]:
        """Take in what is logged at this moment, of the step or of the epoch so far."""
        if not self.active:
            return {}
        return self.active.put_into(self, on_step=self.first_iteration is not None)

    def reset_results(self) -> None:
        """The loop that runs is over."""
        if self.active is not None:
            self.active.reset()
        self.first_iteration = self.last_fx = None

    def forget(self) -> None:
        """Nothing was ever logged."""
        self.callback, self.logged, self.progress = {}, {}, {}

    def to_cpu(self) -> None:
        """The run is over."""
        for values in (self.callback, self.logged, self.progress):
            values.update({name: value.cpu() for name, value in values.items()})


def items_of(dictionary: Mapping[str, Any]) -> Any:
    """Names and values of what log_dict was given; also of a MetricCollection."""
    collection = loaded("MetricCollection")
    if collection is None or not isinstance(dictionary, collection):
        return dictionary.items()
    shared = {"copy_state": False} if dictionary._enable_compute_groups else {}  # noqa: SLF001 -- as Lightning asks it
    return dictionary.items(keep_base=False, **shared)


def default_dtype() -> torch.dtype:
    """Of logged values: the default, but no lower than float32."""
    dtype = torch.get_default_dtype()
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _reduction(asked: Any) -> Callable[..., Any]:
    if isinstance(asked, str):
        asked = REDUCE.get(asked.lower(), asked)
    asked = _BUILTIN.get(asked, asked) if callable(asked) else asked
    if asked not in REDUCE.values():
        refuse("custom reduce_fx", f"found {asked!r}")
    found: Callable[..., Any] = asked
    return found


def scalars(metrics: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """As numbers; waits for the device."""
    return {name: value.item() for name, value in metrics.items()}
