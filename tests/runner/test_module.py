"""What a module is lent for a fit, what is taken off it again, and what it may not do meanwhile."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from otf_core.runner import Runner, RunnerCallback, RunnerError, RunnerUnsupportedError
from tests.exact import data
from tests.exact.models import CLASSES, Manual, Net
from tests.runner.shapes import Data, Gan, OwnLog


def fit(module: Any, **options: Any) -> Runner:
    val = options.pop("val", None)
    runner = Runner(device="cpu", **{"max_epochs": 1, "limit_train_batches": 2, **options})
    runner.fit(module, train_loader=data.loader(), val_loader=val)
    return runner


@pytest.mark.parametrize("kind", [Net, Gan, OwnLog, Manual])
@pytest.mark.parametrize("fails", [False, True])
def test_what_was_lent_is_taken_off(kind: Any, fails: bool) -> None:
    class Fails(kind):  # type: ignore[misc]
        def on_train_end(self) -> None:
            if fails:
                raise ArithmeticError

    module = Fails()
    before = set(vars(module))
    if fails:
        with pytest.raises(ArithmeticError):
            fit(module)
    else:
        fit(module)
    assert set(vars(module)) == before
    assert type(module) is Fails
    assert module._trainer is None


def test_the_data_module_has_the_trainer_for_the_time_of_a_fit() -> None:
    found = []

    class Looks(Data):
        def train_dataloader(self) -> Any:
            trainer: Any = self.trainer
            found.append((trainer.max_epochs, trainer.world_size, trainer.logger))
            return super().train_dataloader()

    datamodule = Looks()
    Runner(max_epochs=1, device="cpu").fit(Net(), datamodule=datamodule)
    assert found == [(1, 1, None)]
    assert datamodule.trainer is None


def test_a_copy_of_a_module_and_a_pickle_do_not_take_the_run_along() -> None:
    copies: list[Any] = []

    class Copies(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            copies.append(copy.deepcopy(self))
            here: Any = self
            copies.append(pickle.loads(pickle.dumps(here.optimizers.func and here.log)))

    fit(Copies(), max_steps=1)
    twin, log = copies
    assert torch.equal(twin.net[0].weight, twin.net[0].weight)
    for function in (twin.log, log):
        with pytest.raises(RunnerError, match="log was called on a copy of a module"):
            function("x", 1.0)


def test_an_object_of_torch_can_be_copied_and_saved_meanwhile() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(64, CLASSES)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            copies.append(copy.deepcopy(self))
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    copies: list[Any] = []
    fit(Bare(), max_steps=1)
    assert copies[0].trainer is None


def test_stdout_is_the_users_own(capfd: pytest.CaptureFixture[str]) -> None:
    class Speaks(Net):
        def on_train_epoch_end(self) -> None:
            self.print("mine")
            self.trainer.print("too")

    fit(Speaks(), progress=True)
    out, err = capfd.readouterr()
    assert out == "mine\ntoo\n"
    assert "2/2" in err
    assert "train_loss_step=" in err


def test_no_bar_is_drawn_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    fit(Net(), telemetry="off")
    assert "2/2" not in capfd.readouterr().err


def test_an_exception_is_told_and_goes_on_its_way() -> None:
    told: list[str] = []

    class Told(RunnerCallback):
        def on_exception(self, run: Any, exception: BaseException) -> None:
            told.append(f"callback {exception}")

    class DataTold(Data):
        def on_exception(self, exception: BaseException) -> None:
            told.append(f"data {exception}")

    class Fails(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            raise KeyboardInterrupt("x")

        def on_train_end(self) -> None:
            told.append("not this")

    runner = Runner(max_epochs=1, device="cpu", callbacks=[Told()])
    with pytest.raises(KeyboardInterrupt):
        runner.fit(Fails(), datamodule=DataTold())
    assert told == ["callback x", "data x"]


def test_a_loader_without_a_step_is_warned_of() -> None:
    class NoStep(Net):
        validation_step = L.LightningModule.validation_step

    with pytest.warns(UserWarning, match="NoStep has no validation_step; none is run"):
        fit(NoStep(), val=data.val_loader())


class Odd(Metric):
    """Computes what is no tensor."""

    def update(self) -> None:
        return

    def compute(self) -> Any:
        return {"a": 1.0}


def steps(do: Any) -> Any:
    """A module that does this in its training_step."""

    class Does(Net):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.apart = Odd(), [MulticlassAccuracy(CLASSES)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            do(self, batch, batch_idx)
            return super().training_step(batch, batch_idx)

    return Does


def in_hook(hook: str, *args: str, **kwargs: Any) -> Any:
    def own(self: Any, *_: Any, **__: Any) -> None:
        self.log("x", 1.0, **kwargs)

    return type("InHook", (Net,), {hook: own})


def returning(output: Any, *, automatic: bool = True) -> Any:
    class Returns(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = automatic

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return output

    return Returns


def optimizing(configure: Any) -> Any:
    return type("Optimizing", (Net,), {"configure_optimizers": configure})


def plateau(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]


def of_another(self: Any) -> Any:
    optimizer, other = (torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2))
    return [optimizer], [torch.optim.lr_scheduler.StepLR(other, 1)]


def wrong_interval(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "batch"}}


def monitors_nothing(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "nothing"}}


class NoScheduler:
    """Has the methods of one, and is none of torch."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        return


def own_scheduler(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    return [optimizer], [NoScheduler(optimizer)]


class IgnoresTheClosure(Net):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        return


class TwoAtOnce(Net):
    """Several loaders, but a step that does not ask which."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        return


class AsksWhich(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:  # type: ignore[override]
        return


# What Lightning refuses as well: there must be no way to go on.
MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a string logged": (steps(lambda m, b, i: m.log("x", "y")), {}, "was given a str; allowed: a"),
    "a row logged": (steps(lambda m, b, i: m.log("x", torch.ones(2))), {}, "given 2 elements"),
    "a dict logged": (steps(lambda m, b, i: m.log("x", {"a": 1})), {}, "was given a dict"),
    "logged otherwise": (
        steps(lambda m, b, i: [m.log("x", 1.0), m.log("x", 1.0, prog_bar=True)]),
        {},
        "twice in training_step with different arguments",
    ),
    "logged for nothing": (
        steps(lambda m, b, i: m.log("x", 1.0, on_step=False, on_epoch=False)),
        {},
        "logs nothing",
    ),
    "a metric of nobody": (steps(lambda m, b, i: m.log("x", m.apart[0])), {}, "no attribute of"),
    "an odd metric": (
        steps(lambda m, b, i: [m.odd.update(), m.log("x", m.odd, on_step=False, on_epoch=True)]),
        {},
        "allowed: a tensor",
    ),
    "index in the name": (
        steps(lambda m, b, i: m.log("x/dataloader_idx_0", 1.0)),
        {},
        "dataloader_idx is added to the name by itself",
    ),
    **{
        f"logged in {hook}": (in_hook(hook), {}, f"was called in {hook}, which may not log")
        for hook in ("on_fit_start", "on_train_end", "on_fit_end", "setup", "configure_model")
    },
    "logged by step at an epoch's end": (
        in_hook("on_train_epoch_end", on_step=True),
        {},
        "in on_train_epoch_end logs by epoch",
    ),
    "returns a number": (returning(3.0), {}, "returned 3.0; allowed: a tensor"),
    "returns no loss": (returning({"a": 1}), {}, "a dict with ['a']; allowed: one with loss"),
    "returns a number by hand": (returning(3.0, automatic=False), {}, "returned 3.0; allowed"),
    "by hand where it is not": (
        steps(lambda m, b, i: m.manual_backward(torch.ones((), requires_grad=True))),
        {},
        "allowed: with automatic_optimization = False",
    ),
    "clips otherwise": (
        type(
            "Clips",
            (Net,),
            {"on_before_optimizer_step": lambda s, o: s.clip_gradients(o, 2.0)},
        ),
        {"gradient_clip_val": 1.0},
        "clip_gradients(gradient_clip_val=2.0), but the Runner has gradient_clip_val=1.0",
    ),
    "no optimizer": (optimizing(lambda self: 3), {}, "configure_optimizers returned 3; allowed"),
    "plateau without monitor": (optimizing(plateau), {}, "ReduceLROnPlateau needs monitor"),
    "another's scheduler": (optimizing(of_another), {}, "of an optimizer that configure_opt"),
    "wrong interval": (optimizing(wrong_interval), {}, "interval 'batch'; allowed"),
    "monitors nothing": (optimizing(monitors_nothing), {}, "monitors 'nothing', found"),
    "no scheduler of torch": (optimizing(own_scheduler), {}, "NoScheduler is no scheduler of"),
    "ignores the closure": (IgnoresTheClosure, {}, "did not call the closure"),
    "one of two loaders": (
        TwoAtOnce,
        {"val": lambda: [data.val_loader(), data.val_loader()]},
        "validation_step has no dataloader_idx, but there are several loaders",
    ),
    "which of one": (AsksWhich, {"val": data.val_loader}, "asks for dataloader_idx, but there is"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_lightning_refuses_the_runner_refuses(name: str) -> None:
    module, options, said = MISTAKES[name]
    options = {"max_epochs": 1, "limit_train_batches": 2, **options}
    val = options.pop("val", lambda: None)
    with pytest.raises((RunnerError, RunnerUnsupportedError)) as refused:
        fit(module(), val=val(), **options)
    assert said in str(refused.value)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception):  # noqa: B017, PT011 -- Lightning has many
            trainer.fit(module(), data.loader(), val())


def test_data_without_a_name_is_taken_as_lightnings_trainer_takes_it() -> None:
    train, val, datamodule = data.loader(), data.loader(), Data()
    for args in ((train, val), (datamodule,)):
        runner = Runner(device="cpu", max_epochs=1, limit_train_batches=2)
        runner.fit(Net(), *args)
        run: Any = runner.run
        loaders = run.given_loaders
        found = (run.datamodule, loaders["train_dataloader"], loaders["val_dataloader"])
        assert found == ((None, *args) if len(args) == 2 else (datamodule, None, None))
