"""``self.trainer`` of a module in a Runner: what modules commonly read, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from otf_core.runner.refusals import OTHER, TRAINER, MissingOnTrainerError, RunnerError


def _loaders(found: list[Any] | None) -> Any:
    """One is itself, several are a list, as they were given."""
    return found[0] if found is not None and len(found) == 1 else found


READS: Final[dict[str, Callable[[Any], Any]]] = {
    "current_epoch": lambda run: run.counters.epoch,
    "global_step": lambda run: run.counters.global_step,
    "is_last_batch": lambda run: run.counters.is_last_batch,
    "max_epochs": lambda run: run.max_epochs,
    "min_epochs": lambda run: run.min_epochs if run.min_epochs is not None else 0,
    "max_steps": lambda run: run.max_steps,
    "min_steps": lambda run: run.min_steps,
    "estimated_stepping_batches": lambda run: run.fit_loop.estimated_stepping_batches(),
    "num_training_batches": lambda run: run.fit_loop.max_batches,
    "num_val_batches": lambda run: run.validation.max_batches,
    "num_test_batches": lambda run: run.testing.max_batches,
    "num_sanity_val_batches": lambda run: [
        min(run.num_sanity_val_steps, n) for n in run.validation.max_batches
    ],
    "num_sanity_val_steps": lambda run: run.num_sanity_val_steps,
    "limit_train_batches": lambda run: run.limit_train_batches,
    "limit_val_batches": lambda run: run.limit_val_batches,
    "limit_test_batches": lambda run: run.limit_test_batches,
    "val_check_interval": lambda run: run.val_check_interval,
    "check_val_every_n_epoch": lambda run: run.check_val_every_n_epoch,
    "log_every_n_steps": lambda run: run.log_every_n_steps,
    "accumulate_grad_batches": lambda run: run.accumulate_grad_batches,
    "gradient_clip_val": lambda run: run.gradient_clip_val,
    "gradient_clip_algorithm": lambda run: run.gradient_clip_algorithm,
    "precision": lambda run: run.precision.name,
    "device": lambda run: run.device,
    "training": lambda run: run.stage == "train",
    "validating": lambda run: run.stage == "validate",
    "testing": lambda run: run.stage == "test",
    "sanity_checking": lambda run: run.sanity_checking,
    "evaluating": lambda run: run.stage in ("sanity", "validate", "test"),
    "predicting": lambda _: False,
    "model": lambda run: run.module,
    "lightning_module": lambda run: run.module,
    "datamodule": lambda run: run.datamodule,
    "train_dataloader": lambda run: _loaders(run.fit_loop.loaders),
    "val_dataloaders": lambda run: _loaders(run.validation.loaders),
    "test_dataloaders": lambda run: _loaders(run.testing.loaders),
    "optimizers": lambda run: run.optimizers,
    "lr_scheduler_configs": lambda run: run.schedulers,
    "callback_metrics": lambda run: run.callback_metrics,
    "logged_metrics": lambda run: run.logged_metrics,
    "progress_bar_metrics": lambda run: run.progress_bar_metrics,
    "should_stop": lambda run: run.should_stop,
    "enable_validation": lambda run: run.validation.enabled,
    "logger": lambda _: None,
    "loggers": lambda _: [],
    "log_dir": lambda _: None,
    "callbacks": lambda _: [],
    "checkpoint_callback": lambda _: None,
    "early_stopping_callback": lambda _: None,
    "progress_bar_callback": lambda _: None,
    "is_global_zero": lambda _: True,
    "world_size": lambda _: 1,
    "global_rank": lambda _: 0,
    "local_rank": lambda _: 0,
    "node_rank": lambda _: 0,
    "num_nodes": lambda _: 1,
    "num_devices": lambda _: 1,
    "fast_dev_run": lambda _: False,
    "barebones": lambda _: False,
    "received_sigterm": lambda _: False,
}
WRITES: Final = ("should_stop", "accumulate_grad_batches", "gradient_clip_val")


class TrainerFacade:
    """Reads the run; of what can be set, only ``WRITES``. Training thread only."""

    def __init__(self, run: Any) -> None:
        vars(self)["_run"] = run

    def __getattr__(self, name: str) -> Any:
        read = READS.get(name)
        if read is not None:
            return read(vars(self)["_run"])
        if name.startswith("__"):
            raise AttributeError(name)
        row = f"trainer.{name}"
        if row in TRAINER:
            raise MissingOnTrainerError(row)
        has = ", ".join(sorted(READS))
        raise MissingOnTrainerError(OTHER, f"{row}; it has {has}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in WRITES:
            msg = f"trainer.{name} was set; allowed: {', '.join(WRITES)}"
            raise RunnerError(msg)
        setattr(vars(self)["_run"], name, value)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """As the built-in; there is one process."""
        print(*args, **kwargs)  # noqa: T201 -- the user's own words, where he wants them

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a module is in no fit."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()
