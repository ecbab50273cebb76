"""What a script trains is found on its stack, under its own names, and nothing of it is called."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.utils.data import DataLoader

from otf_core.script.found import Found, find

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)


class Trainer:
    def __init__(self, *parts: Any, **named: Any) -> None:
        self.parts = parts
        vars(self).update(named)

    def look(self, *stepped: Optimizer) -> Found:
        return here(*stepped)


def here(*stepped: Optimizer) -> Found:
    """What is found on the stack of the caller and above, in this file."""
    frames = []
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals is globals():
        frames.insert(0, frame)
        frame = frame.f_back  # type: ignore[assignment]
    return find(frames, stepped, lambda cls: cls.__module__ == __name__)


def names(parts: Any) -> list[str]:
    return [name for name, _ in parts]


def test_parts_are_named_as_the_script_names_them() -> None:
    net = Net()
    optimizer = Adam(net.parameters(), lr=0.1)
    first = lr_scheduler.ConstantLR(optimizer)
    schedule = lr_scheduler.SequentialLR(
        optimizer, [first, lr_scheduler.ExponentialLR(optimizer, 0.9)], [3]
    )
    loaders = {"train": DataLoader([1, 2]), "val": DataLoader([3])}
    scaler = torch.amp.GradScaler("cpu")
    found = here(optimizer)
    assert names(found.models()) == ["net"]
    assert names(found.optimizers) == ["optimizer"]
    assert names(found.schedulers) == ["schedule"]
    assert names(found.loaders) == ["loaders['train']", "loaders['val']"]
    assert names(found.others) == ["scaler"]
    assert found.sentence(loaders["val"], fed=True) == (
        "training found: Adam over 1 parameter group of Net as 'net', loader 2 of 2 "
        "('loaders['val']'), SequentialLR, GradScaler"
    )
    del first, schedule, scaler


def test_objects_of_the_script_and_the_self_of_a_frame_are_looked_into() -> None:
    trainer = Trainer(Net(), inner=[Trainer(net=nn.Linear(3, 3))])
    trainer.opt = SGD(trainer.inner[0].net.parameters(), lr=0.1)  # type: ignore[attr-defined]
    found = trainer.look()
    assert names(found.optimizers) == ["trainer.opt"]
    assert names(found.models()) == ["trainer.inner[0].net"]


def test_a_wrapper_is_named_by_what_it_wraps_and_the_outermost_module_owns() -> None:
    net = Net()
    wrapped = nn.DataParallel(net)
    optimizer = SGD(net.a.parameters(), lr=0.1)
    found = here(optimizer)
    [(name, module)] = found.models()
    assert (name, module) == ("wrapped", wrapped)
    assert "SGD over 1 parameter group of Net as 'wrapped'" in found.sentence(None, fed=False)


def test_an_optimizer_over_two_models_names_both_and_tensors_are_no_module() -> None:
    encoder, decoder = nn.Linear(2, 3), nn.Linear(3, 2)
    both = SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    bare = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    said = here(both, bare).sentence(None, fed=False)
    assert "SGD over 1 parameter group of Linear as 'encoder' and Linear as 'decoder'" in said
    assert "SGD over 1 parameter group of tensors of no module" in said
    assert "no loader: it is met at the head of its loop" in said


HIDDEN: list[Any] = []


def test_what_is_not_on_the_stack_is_found_among_all_objects_and_that_is_said() -> None:
    def make() -> Optimizer:
        HIDDEN.append(Net())
        return SGD(HIDDEN[0].parameters(), lr=0.1)

    try:
        found = here(make())
        assert names(found.models()) == ["Net"]
        assert found.sentence(None, fed=True).endswith("a loader, found by a scan of all objects")
    finally:
        HIDDEN.clear()


def test_nothing_is_kept_alive() -> None:
    net = Net()
    optimizer = SGD(net.parameters(), lr=0.1)
    found = here(optimizer)
    gone = [weakref.ref(net), weakref.ref(optimizer)]
    del net, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert (len(found.modules), [*found.optimizers], found.models()) == (0, [], [])


def test_no_code_of_the_script_runs() -> None:
    class Lazy:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    class Key:
        def __repr__(self) -> str:
            raise AssertionError

    lazy, net = Lazy(), Net()
    table = {Key(): net}
    optimizer = SGD(net.parameters(), lr=0.1)
    assert names(here(optimizer).models()) == ["net"]
    del net
    assert names(here(optimizer).models()) == ["table[…]"]
    assert table
    assert type(lazy) is Lazy


def test_a_frame_that_was_looked_at_holds_none_of_its_tensors() -> None:
    def train() -> Any:  # an assert here would ask for ``locals``
        big = torch.ones(3)
        gone = weakref.ref(big)
        here()
        del big
        gc.collect()
        return gone()

    assert train() is None
