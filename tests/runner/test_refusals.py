"""Whatever the Runner does not do is refused by name, with the sentence of its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import CombinedLoader
from torch.nn.functional import cross_entropy

from otf_core.runner import REFUSALS, Runner, RunnerUnsupportedError
from otf_core.runner.refusals import ARGUMENTS, CALLS
from tests.exact import data
from tests.exact.models import Manual, Net
from tests.runner.shapes import Lbfgs


def fit(module: Any = None, *, train: Any = None, val: Any = None, **options: Any) -> None:
    runner = Runner(device="cpu", **{"max_epochs": 1, "num_sanity_val_steps": 0, **options})
    runner.fit(
        Net() if module is None else module,
        train_loader=data.loader() if train is None else train,
        val_loader=val,
    )


def argument(name: str) -> Callable[[], None]:
    return lambda: fit(**{name: None})


def call(name: str) -> Callable[[], None]:
    of = {"dataloaders": Runner().validate, "verbose": Runner().test}.get(name, Runner().fit)
    return lambda: of(Net(), **{name: None})  # type: ignore[operator]


def having(name: str, method: Callable[..., Any] = lambda self, *_: None) -> Callable[[], None]:
    """A module with this method."""
    return lambda: fit(type("Own", (Net,), {name: method})())


def reading(name: str) -> Callable[[], None]:
    return having("on_train_start", lambda self: getattr(self.trainer, name))


def twice() -> None:
    runner = Runner(max_steps=1, device="cpu")
    for _ in range(2):
        runner.fit(Net(), train_loader=data.loader())


def two_optimizers(self: Any) -> list[Any]:
    return [torch.optim.SGD(self.parameters(), lr=lr) for lr in (0.1, 0.2)]


def own_reduction(self: Any, batch: Any, batch_idx: int) -> Any:
    self.log("x", 1.0, reduce_fx=torch.median)


def several_processes() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        fit()


CASES: dict[str, Callable[[], Any]] = {
    **{name: argument(name) for name in ARGUMENTS},
    **{name: call(name) for name in CALLS if name not in ("predict", "second fit")},
    "predict": lambda: Runner().predict(Net()),
    "second fit": twice,
    "configure_callbacks": having("configure_callbacks", lambda self: [EarlyStopping("x")]),
    "Lightning callback": lambda: Runner(callbacks=[EarlyStopping("x")]),
    "compiled LightningModule": lambda: fit(torch.compile(Net(), backend="eager")),
    **{
        name: having(name)
        for name in (
            "configure_sharded_model",
            "training_epoch_end",
            "validation_epoch_end",
            "test_epoch_end",
        )
    },
    "dataloader_iter": having("training_step", lambda self, dataloader_iter: None),
    "optimizer_idx": having("training_step", lambda self, batch, batch_idx, optimizer_idx: None),
    "several optimizers": having("configure_optimizers", two_optimizers),
    "several training loaders": lambda: fit(train={"a": data.loader(), "b": data.loader()}),
    "dict of loaders": lambda: fit(val={"a": data.val_loader()}),
    "CombinedLoader": lambda: fit(val=CombinedLoader([data.val_loader()])),
    "several processes": several_processes,
    "custom reduce_fx": having("training_step", own_reduction),
    "clipping by hand": lambda: fit(Manual(), gradient_clip_val=1.0),
    "accumulation by hand": lambda: fit(Manual(), accumulate_grad_batches=2),
    "precision": lambda: fit(precision="64-true"),
    "LBFGS with 16-mixed": lambda: fit(Lbfgs(), precision="16-mixed"),
    "trainer.strategy": reading("strategy"),
    "trainer.fit_loop": reading("fit_loop"),
    "trainer.profiler": reading("profiler"),
    "trainer.save_checkpoint": reading("save_checkpoint"),
    "trainer.other": reading("checkpoint_callbacks_of_mine"),
}


def test_every_row_of_the_table_has_a_case() -> None:
    assert CASES.keys() == REFUSALS.keys()


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_done_is_refused_by_name_with_its_sentence(name: str) -> None:
    with pytest.raises(RunnerUnsupportedError) as refused:
        CASES[name]()
    assert refused.value.row == name
    assert str(refused.value).startswith(f"the Runner does not support {name}")
    assert str(refused.value).endswith(REFUSALS[name])


def test_a_list_of_loaders_to_train_with_is_refused_as_well() -> None:
    with pytest.raises(RunnerUnsupportedError, match=r"several training loaders \(found a list\)"):
        fit(train=[data.loader(), data.loader()])


def test_what_nobody_has_is_no_argument() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_epoch'"):
        Runner(max_epoch=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'loader'"):
        Runner().fit(Net(), loader=data.loader())


def test_a_hook_that_is_only_inherited_is_not_refused() -> None:
    fit()


def test_nothing_has_trained_when_a_start_is_refused() -> None:
    module = type("Own", (Net,), {"training_epoch_end": lambda self: None})()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    rng = torch.get_rng_state()
    with pytest.raises(RunnerUnsupportedError):
        Runner(max_epochs=1, device="cpu").fit(module, train_loader=data.loader())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not Path("otf_runs").exists()


def test_a_fit_that_was_refused_at_its_start_may_be_asked_for_again() -> None:
    runner = Runner(max_steps=1, device="cpu", accumulate_grad_batches=2)
    with pytest.raises(RunnerUnsupportedError):
        runner.fit(Manual(), train_loader=data.loader())
    runner.fit(Net(), train_loader=data.loader())


def test_the_trainer_can_be_asked_whether_it_has_something() -> None:
    found = []

    class Asks(Net):
        def on_train_start(self) -> None:
            found.append([hasattr(self.trainer, n) for n in ("strategy", "max_epochs")])

    fit(Asks())
    assert found == [[False, True]]


def test_what_has_no_place_in_the_trainer_cannot_be_set() -> None:
    def sets(self: Any) -> None:
        self.trainer.max_epochs = 9

    with pytest.raises(Exception, match=r"trainer\.max_epochs was set; allowed: should_stop"):
        having("on_train_start", sets)()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0; allowed: 1 or more"),
        ({"max_epochs": -2}, "max_epochs=-2; allowed: -1 or more"),
        ({"limit_train_batches": 1.5}, "limit_train_batches=1.5; allowed: an int, or a float"),
        ({"val_check_interval": -1}, "val_check_interval=-1; allowed: an int, or a float"),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": None}, "allowed: an int, of tra"),
        ({"gradient_clip_algorithm": "both"}, "gradient_clip_algorithm='both'; allowed: \"norm\""),
        ({"val_check_interval": 50}, "val_check_interval=50, but an epoch has 6 batches"),
        ({"limit_train_batches": 0.01}, "limit_train_batches=0.01 of 6 batches is none"),
    ],
)
def test_a_value_out_of_its_range_says_what_is_allowed(options: Any, said: str) -> None:
    with pytest.raises(Exception, match="allowed") as refused:
        fit(**{"max_epochs": 1, "val": data.val_loader(), **options})
    assert said in str(refused.value)


class WithoutStep(L.LightningModule):
    def configure_optimizers(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: fit(WithoutStep()), "WithoutStep has no training_step; allowed: a module with"),
        (lambda: fit(torch.nn.Linear(1, 1)), "Linear has no training_step"),
        (lambda: fit(train=3), "a loader was asked of train_loader=, found 3; allowed: an"),
        (lambda: Runner().fit(Net()), "nobody has a loader to train with; allowed: train_loader="),
        (lambda: Runner().validate(), "validate was asked without a model"),
        (lambda: Runner().test(Net(), test_loader=data.loader()), "Net has no test_step"),
        (
            lambda: Runner().fit(Net(), datamodule=object(), train_loader=data.loader()),
            "fit was given a datamodule and loaders; allowed: one of them",
        ),
        (
            lambda: Runner().fit(Net(), loss_fn=cross_entropy, train_loader=data.loader()),
            "Net has a training_step, and was given optimizer=, loss_fn=",
        ),
    ],
)
def test_what_does_not_go_together_is_said(run: Any, said: str) -> None:
    with pytest.raises(Exception, match="allowed") as refused:
        run()
    assert said in str(refused.value)
