"""What the Runner does not do, by name: one table, from which docs/runner.md is written.

Rule: nothing is ignored. What is asked for and not done is refused, at the start where it can be
seen there, else when it is first used.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from otf_core.errors import OtfError

# Arguments of Lightning's Trainer.
ARGUMENTS: Final = {
    "accelerator": 'give device=: "auto", "cpu", "cuda:0" or "mps".',
    "strategy": "the Runner trains in one process on one device; use Lightning or torchrun with "
    "otf-fit for several.",
    "devices": "the Runner trains on one device; give device=.",
    "num_nodes": "the Runner trains in one process.",
    "logger": "the Runner has no loggers; a RunnerCallback with on_metrics is given what a logger "
    "would be.",
    "fast_dev_run": "give max_steps=, limit_train_batches= and limit_val_batches=.",
    "max_time": "give max_epochs= or max_steps=; a RunnerCallback can set should_stop.",
    "limit_predict_batches": "the Runner does not predict.",
    "overfit_batches": "give limit_train_batches= and a loader that does not shuffle.",
    "enable_checkpointing": "the Runner has no ModelCheckpoint.",
    "enable_progress_bar": "give progress=True or progress=False.",
    "enable_model_summary": "the Runner prints no summary.",
    "deterministic": "call torch.use_deterministic_algorithms yourself.",
    "benchmark": "set torch.backends.cudnn.benchmark yourself.",
    "inference_mode": "validate and test use torch.inference_mode, validation in fit "
    "torch.no_grad, as Lightning does by default.",
    "use_distributed_sampler": "the Runner trains in one process.",
    "profiler": "run the script under a profiler of your choice.",
    "detect_anomaly": "call torch.autograd.set_detect_anomaly yourself.",
    "barebones": "the Runner has nothing to switch off for it.",
    "plugins": "the Runner has no plugins; precision= knows 32-true, bf16-mixed and 16-mixed.",
    "sync_batchnorm": "the Runner trains in one process.",
    "reload_dataloaders_every_n_epochs": "loaders are made once; let the data set or sampler "
    "change by set_epoch.",
    "default_root_dir": "the Runner writes no files.",
    "enable_autolog_hparams": "the Runner has no loggers.",
    "model_registry": "the Runner has no model registry.",
}  # fmt: skip

# Arguments of Trainer.fit, validate and test.
CALLS: Final = {
    "train_dataloaders": "give train_loader=.",
    "val_dataloaders": "give val_loader=.",
    "dataloaders": "give val_loader= or test_loader=.",
    "ckpt_path": "the Runner loads no checkpoint files of Lightning.",
    "verbose": "the Runner prints no table of results; it returns them.",
    "weights_only": "the Runner loads no checkpoint files of Lightning.",
    "predict": "the Runner has fit, validate and test.",
    "second fit": "a Runner fits once, since Lightning would go on counting; make a new one.",
}

# What a module, its data or its callbacks may have.
MODULES: Final = {
    "configure_callbacks": "the Runner has no Lightning callbacks, so the hook may return none.",
    "Lightning callback": "the Runner calls objects of otf_core.runner.RunnerCallback.",
    "compiled LightningModule": "compile the network inside the module instead.",
    "configure_sharded_model": "the Runner does not shard; use configure_model.",
    "training_epoch_end": "Lightning has removed it; use on_train_epoch_end.",
    "validation_epoch_end": "Lightning has removed it; use on_validation_epoch_end.",
    "test_epoch_end": "Lightning has removed it; use on_test_epoch_end.",
    "dataloader_iter": "steps take batch and batch_idx, and fetch nothing themselves.",
    "optimizer_idx": "for several optimizers set automatic_optimization = False and step them.",
    "several optimizers": "set automatic_optimization = False and step them in training_step.",
    "several training loaders": "the Runner trains with one loader; join them in a data set.",
    "dict of loaders": "several loaders to validate or test with are a list.",
    "CombinedLoader": "several loaders to validate or test with are a list.",
    "several processes": "torch.distributed is in use here; the Runner trains in one process.",
    "custom reduce_fx": 'reduce_fx is "mean", "min", "max" or "sum"; for others log a Metric.',
    "clipping by hand": "with automatic_optimization = False call self.clip_gradients; "
    "gradient_clip_val= is for automatic optimization.",
    "accumulation by hand": "with automatic_optimization = False accumulate in training_step; "
    "accumulate_grad_batches= is for automatic optimization.",
    "precision": "the Runner knows 32-true, bf16-mixed and 16-mixed.",
    "LBFGS with 16-mixed": "a scaler cannot step an optimizer that needs a closure.",
}

OTHER: Final = "trainer.other"
# Read on `self.trainer`; whatever else it has not got is refused in the same way.
TRAINER: Final = {
    "trainer.strategy": "it is one process on one device, `trainer.device`.",
    "trainer.fit_loop": "counters are `trainer.current_epoch`, `global_step` and `is_last_batch`.",
    "trainer.profiler": "there is none.",
    "trainer.save_checkpoint": "save `state_dict()` yourself.",
    OTHER: "the attributes that it has are named in the error.",
}

REFUSALS: Final[dict[str, str]] = {**ARGUMENTS, **CALLS, **MODULES, **TRAINER}


class RunnerUnsupportedError(OtfError):
    """The Runner was asked for something that it does not do.

    Args:
        name: its row in ``REFUSALS``.
        found: where it was met, when the name alone does not say so.
    """

    def __init__(self, name: str, found: str | None = None) -> None:
        self.row = name
        said = f"{name} ({found})" if found else name
        super().__init__(f"the Runner does not support {said}: {REFUSALS[name]}")


class MissingOnTrainerError(RunnerUnsupportedError, AttributeError):
    """An attribute of Lightning's Trainer that ours has not got."""


class RunnerError(OtfError):
    """A mistake in the use of the Runner: what was asked, found and allowed."""


def refuse(name: str, found: str | None = None) -> NoReturn:
    """Raise what the table says of ``name``."""
    raise RunnerUnsupportedError(name, found)


def refuse_arguments(given: dict[str, Any], known: dict[str, str], of: str) -> None:
    """Refuse what is Lightning's; what nobody has is a TypeError, as for any function."""
    for name in given:
        if name in known:
            refuse(name)
        msg = f"{of}() got an unexpected keyword argument {name!r}"
        raise TypeError(msg)
