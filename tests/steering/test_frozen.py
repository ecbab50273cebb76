"""A frozen parameter does not move, whatever its optimizer would do; the others do not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from otf_core.errors import CommandError
from otf_core.protocol import SetParam
from otf_core.steering.frozen import Frozen, names_of
from otf_core.steering.params import Knob, Steering
from tests.steering.worlds import Run

torch.set_num_threads(1)
PATH = "model.frozen"


class Simple(Optimizer):
    """Somebody's own: it knows nothing of gradients that are None, and writes past autograd."""

    def __init__(self, params: Any, lr: float, decay: float) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(0.9).add_(p.grad)
                p.data.mul_(1 - group["decay"]).sub_(buffer, alpha=group["lr"])
        return loss


Make = Callable[[Any], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "somebody's": lambda p: Simple(p, 0.1, 0.1),
}


class World:
    """A model that trains, with what steers it."""

    def __init__(self, make: Make = OPTIMIZERS["SGD"], model: nn.Module | None = None) -> None:
        torch.manual_seed(1)
        self.model = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = make(self.model.parameters())
        self.frozen = Frozen(lambda: names_of([("", self.model)]), lambda: [self.optimizer])
        self.run = Run([self.optimizer], knobs={PATH: self.frozen.knob()})
        self.steering = Steering(self.run)
        self.numbers = torch.Generator().manual_seed(7)

    def set(self, patterns: str, **more: Any) -> Any:
        return self.steering.apply(SetParam(path=PATH, value=patterns, **more), 1)

    def step(self, times: int = 1, *, closure: bool = False, clip: float | None = None) -> None:
        for _ in range(times):
            x = torch.randn(5, 3, generator=self.numbers)

            def made(x: torch.Tensor = x) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = self.model(x).square().mean()
                loss.backward()
                self.frozen.before_step(self.optimizer)
                if clip is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), clip)
                return loss

            if closure:
                self.optimizer.step(made)
            else:
                made()
                self.optimizer.step()

    def weights(self) -> dict[str, Any]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def moved(self, before: dict[str, Any]) -> set[str]:
        return {n for n, p in self.weights().items() if not torch.equal(p, before[n])}


ALL = {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_frozen_does_not_move_and_goes_on_when_it_is_thawed(
    kind: str, closure: bool
) -> None:
    world = World(OPTIMIZERS[kind])
    world.step(3, closure=closure)  # momentum and moments are there
    assert world.set("0.*").to_wire() == {
        "path": PATH, "old": "", "new": "0.*", "applied_step": 1, "owner": "model",
        "mode": "override", "until": None,
    }  # fmt: skip
    before = world.weights()
    states = {n: repr(world.optimizer.state[p]) for n, p in world.model.named_parameters()}
    world.step(3, closure=closure)
    assert world.moved(before) == {"2.weight", "2.bias"}
    if kind != "somebody's":  # whose state nobody knows
        kept = {n for n, p in world.model.named_parameters()
                if repr(world.optimizer.state[p]) == states[n]}  # fmt: skip
        assert kept == {"0.weight", "0.bias"}
    world.set("")
    before = world.weights()
    world.step(2, closure=closure)
    assert {"0.weight", "2.weight"} <= world.moved(before)  # Rprop waits where a sign has turned


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k != "somebody's"])
def test_the_others_train_as_if_the_script_had_frozen_it(kind: str, clip: float | None) -> None:
    ours, script = World(OPTIMIZERS[kind]), World(OPTIMIZERS[kind])
    for world in (ours, script):
        world.step(2, clip=clip)
    ours.set("0.weight, 2.b*")
    for name in ("0.weight", "2.bias"):
        parameter = script.model.get_parameter(name)
        parameter.requires_grad_(False)
        parameter.grad = None
    for world in (ours, script):
        world.step(3, clip=clip)
    assert ours.moved(script.weights()) == set()
    states = [repr(world.optimizer.state_dict()) for world in (ours, script)]
    assert states[0] == states[1]


def test_nothing_is_installed_while_nothing_is_frozen_and_behind_the_end() -> None:
    world = World(OPTIMIZERS["somebody's"])
    hooks = (world.optimizer._optimizer_step_pre_hooks, world.optimizer._optimizer_step_post_hooks)
    assert [len(each) for each in hooks] == [0, 0]
    world.set("2.*")
    world.set("0.*")
    assert [len(each) for each in hooks] == [1, 1]
    world.set("")
    assert [len(each) for each in hooks] == [0, 0]
    world.set("0.*")
    world.steering.close()
    assert [len(each) for each in hooks] == [0, 0]


def test_undone_it_is_what_was_frozen_before() -> None:
    world = World()
    world.set("0.*")
    second = world.set("2.*")
    undone = world.steering.undo(second, 2)
    assert (undone.old, undone.new) == ("2.*", "0.*")
    world.step()
    before = world.weights()
    world.step()
    assert world.moved(before) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_all_of_an_optimizer_can_be_frozen_and_a_scaler_steps_it_still(kind: str) -> None:
    world = World(OPTIMIZERS[kind])
    world.step(2)
    world.set("*")
    before = world.weights()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        world.optimizer.zero_grad()
        scaler.scale(world.model(torch.ones(2, 3)).sum()).backward()
        if kind != "AdamW, fused":  # it unscales in its step
            scaler.unscale_(world.optimizer)
        world.frozen.before_step(world.optimizer)
        scaler.step(world.optimizer)
        scaler.update()
    assert world.moved(before) == set()


def test_until_a_step_it_is_frozen_and_no_longer() -> None:
    world = World()
    world.set("*", until=4)
    before = world.weights()
    world.step(2)
    assert world.steering.watch(3) == []
    assert world.moved(before) == set()
    [ended] = world.steering.watch(4)
    assert (ended.old, ended.new, ended.step) == ("*", "", 4)
    world.step()
    assert world.moved(before) == ALL


def test_half_of_an_accumulated_gradient_is_nobodys() -> None:
    world = World()
    loss = world.model(torch.ones(1, 3)).sum()
    loss.backward()
    world.set("0.weight")
    assert world.model.get_parameter("0.weight").grad is None
    assert world.model.get_parameter("0.bias").grad is not None
    world.model(torch.ones(1, 3)).sum().backward()
    world.set("")
    assert world.model.get_parameter("0.weight").grad is None


def test_it_is_a_part_of_the_state_and_is_let_go_where_the_state_has_none() -> None:
    world, again = World(), World()
    none = world.steering.state()
    world.set("0.*")
    again.steering.load(world.steering.state())
    before = again.weights()
    again.step()
    assert again.moved(before) == {"2.weight", "2.bias"}
    again.steering.load(none)
    again.step()
    assert again.moved(before) == ALL


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def test_a_shared_parameter_is_frozen_by_either_name() -> None:
    world = World(model=Tied())
    world.set("decoder.weight")
    before = world.weights()
    world.step()
    assert world.moved(before) == {"decoder.bias"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("0.weigth", "'0.weigth', which is no parameter's name, nearest is '0.weight'"),
        ("0.*,nobody.*", "'nobody.*', which is no parameter's name"),
        (3, "allowed: text"),
        (None, "allowed: text"),
        ("x" * 1001, "up to 1,000"),
    ],
)
def test_what_names_nothing_is_refused(asked: Any, said: str) -> None:
    world = World()
    with pytest.raises(CommandError, match="was asked") as refused:
        world.steering.check(SetParam(path=PATH, value=asked), 1)
    assert said in refused.value.detail
    assert refused.value.code == "bad_payload"


def test_lbfgs_is_refused_by_name() -> None:
    world = World(torch.optim.LBFGS)
    with pytest.raises(CommandError, match="LBFGS steps all of its parameters") as refused:
        world.set("0.*")
    assert refused.value.code == "unsupported"
    assert isinstance(world.run.knobs[PATH], Knob)
    assert world.frozen.knob().read() == ""
