"""A model with an optimizer and a loss, and objects with hooks that are no LightningModule, train
to the weights of the module that does the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from otf_core.runner import Runner, RunnerError
from tests.exact import data
from tests.exact.digest import exact
from tests.exact.models import Net


class Loss(Net):
    """The module that plain pieces stand for."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return Net().net


def runner(**options: Any) -> Runner:
    return Runner(device="cpu", **{"max_epochs": 2, **options})


def module(**options: Any) -> Any:
    """What the LightningModule comes to."""
    torch.manual_seed(3)
    model = Loss()
    return outcome(runner(**options), model.net, model)


def outcome(of: Runner, net: nn.Module, model: Any, **pieces: Any) -> Any:
    torch.manual_seed(4)
    of.fit(model, train_loader=data.loader(), val_loader=data.val_loader(), **pieces)
    weights = [exact(t) for t in net.state_dict().values()]
    return weights, exact(torch.get_rng_state()), {k: exact(v) for k, v in metrics(of).items()}


def metrics(of: Runner) -> dict[str, Any]:
    return of.callback_metrics


OPTIONS: list[dict[str, Any]] = [
    {},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    {"max_steps": 7, "val_check_interval": 3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_an_optimizer_and_a_loss(options: dict[str, Any]) -> None:
    net = layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pieces = {
        "optimizer": optimizer,
        "loss_fn": nn.CrossEntropyLoss(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    }
    assert outcome(runner(**options), net, net, **pieces) == module(**options)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_training_step_of_ones_own(as_dict: bool) -> None:
    net = layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(model: nn.Module, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(model(batch[0]), batch[1])
        return {"loss": loss, "idx": batch_idx} if as_dict else loss

    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    found = outcome(
        runner(),
        net,
        net,
        optimizer=optimizer,
        training_step=step,
        scheduler={"scheduler": schedule},
    )
    assert found == module()


class Bare(nn.Module):
    """An nn.Module with hooks, and not Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers()
        self.seen: list[Any] = []

    training_step, validation_step = Loss.training_step, Loss.validation_step
    configure_optimizers = Loss.configure_optimizers

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        here: Any = self
        self.seen.append((here.current_epoch, here.global_step, here.trainer.is_last_batch))


class NoModule:
    """Hooks on an object that only has a module."""

    def __init__(self) -> None:
        self.net = layers()

    training_step, validation_step = Loss.training_step, Loss.validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.mark.parametrize("kind", [Bare, NoModule])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_object_with_the_hooks(kind: Any, options: dict[str, Any]) -> None:
    model = kind()
    assert outcome(runner(**options), model.net, model) == module(**options)


def test_an_object_that_lacks_them_has_the_counters_for_the_time_of_a_fit() -> None:
    model = Bare()
    before = set(vars(model))
    outcome(runner(), model.net, model)
    assert model.seen == [(n // 6, n + 1, n % 6 == 5) for n in range(12)]
    assert set(vars(model)) == before


def test_a_net_by_hand_has_what_manual_optimization_needs() -> None:
    class Hand(Bare):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            here: Any = self
            optimizer = here.optimizers()
            loss = cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            here.manual_backward(loss)
            optimizer.step()
            self.log("train_loss", loss)  # type: ignore[operator]
            if here.trainer.is_last_batch:
                here.lr_schedulers().step()

    model = Hand()
    found = outcome(runner(), model.net, model)
    assert found[:2] == module()[:2]


def test_plain_pieces_are_validated_and_tested_by_their_loss() -> None:
    net = layers()
    of = runner(max_epochs=1)
    of.fit(
        net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        loss_fn=cross_entropy,
        train_loader=data.loader(),
        val_loader=data.val_loader(),
        test_loader=data.val_loader(data.digits(20, first=900)),
    )
    x, y = data.digits(32, first=500).tensors
    with torch.no_grad():
        expected = net.eval()(x), y
    [validated], [tested] = of.validate(), of.test()
    assert validated["val_loss"] == pytest.approx(float(cross_entropy(*expected)))
    assert tested.keys() == {"test_loss"}
    assert of.validate(net, val_loader=data.val_loader()) == [validated]


def test_a_plateau_watches_the_validation() -> None:
    net = layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.9)
    pieces = {"optimizer": optimizer, "loss_fn": cross_entropy, "scheduler": plateau}
    outcome(runner(max_epochs=3), net, net, **pieces)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ({"optimizer": None}, "found neither; allowed: one of them"),
        ({"loss_fn": cross_entropy, "training_step": print}, "found both; allowed: one of them"),
        ({"loss_fn": cross_entropy, "train_loader": [1]}, "several training loaders"),
    ],
)
def test_pieces_that_do_not_go_together_are_refused(pieces: dict[str, Any], said: str) -> None:
    net = layers()
    pieces = {"optimizer": torch.optim.SGD(net.parameters(), lr=0.1), **pieces}
    if pieces["optimizer"] is None:
        pieces["scheduler"] = object()
    loader = pieces.pop("train_loader", data.loader())
    with pytest.raises(Exception, match=said):
        runner().fit(net, train_loader=loader, **pieces)


def test_batches_of_another_form_ask_for_a_training_step() -> None:
    net = layers()
    with pytest.raises(RunnerError, match=r"found a dict; allowed: training_step="):
        runner().fit(
            net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            loss_fn=cross_entropy,
            train_loader=data.loader(collate_fn=lambda rows: {"rows": torch.ones(1)}),
        )
