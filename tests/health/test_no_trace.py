"""A check leaves the run as it was: every part of it, also where it is cancelled or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from otf_core.errors import CommandError
from otf_core.health import activations, determinism, dist, numerics, throughput
from otf_core.health.budget import Budget, CancelledError
from otf_core.health.data import fresh
from otf_core.health.report import Health
from otf_core.health.subject import undisturbed
from otf_core.state.data_tap import tap
from tests.exact.digest import exact
from tests.health.subjects import Plain, budget, cross_entropy, loader, net

CHECKS: dict[str, Callable[[Plain, Budget], Health]] = {
    "dist": dist.check,
    "throughput": throughput.check,
    "activations": activations.check,
    "numerics": numerics.check,
    "determinism": determinism.check,
}
STEPPING = [name for name in CHECKS if name != "dist"]


class Meter:
    def __init__(self) -> None:
        self.seen: list[float] = []


class Habits(nn.Module):
    """All that a forward may change beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2))
        self.teacher = nn.Linear(6, 3).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(4)
        self.calls, self.kept = 0, {"losses": [1.0]}
        self.register_buffer("queue", torch.zeros(4), persistent=False)
        self.plain = torch.zeros(3)

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.kept["losses"].append(float(x.sum()))
        self.queue.roll(1)
        self.queue[0] = x.mean()
        self.plain += 1
        with torch.no_grad():
            for p in self.teacher.parameters():
                p.data.mul_(0.99)
        self.body[0].weight.requires_grad_(False)
        self.body[1].eval()
        self.late = torch.rand(2, generator=self.generator) + np.random.rand() + torch.rand(2)
        return self.body(x) + self.teacher(x)


class Counts(Dataset[Any]):
    """What it gives depends on how often it was read."""

    def __init__(self) -> None:
        self.reads, self.rng = 0, np.random.default_rng(5)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        x = torch.full((6,), i + 1e-3 * self.reads + self.rng.random())
        return x + torch.rand(6), i % 3


class Sampled(RandomSampler):
    """Counts its passes, and its order depends on them."""

    passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        order = list(super().__iter__())
        yield from order[self.passes :] + order[: self.passes]


def subject(data: Any = None) -> Plain:
    model = Habits()
    optimizer = torch.optim.Adam(model.body.parameters(), lr=torch.tensor(1e-2))

    def loss(module: Any, batch: Any) -> Any:
        optimizer.param_groups[0]["weight_decay"] = 0.3
        optimizer.param_groups[0]["lr"].mul_(0.5)
        return cross_entropy(module, batch)

    return Plain(model, data or tap(loader(shuffle=True)), loss=loss, optimizer=optimizer)


def state(of: Plain) -> Any:
    model: Any = of.module
    attributes = (model.calls, model.kept, model.queue, model.plain, model.generator)
    return of.digest(), exact(attributes), "late" in vars(model)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_leaves_no_trace(name: str) -> None:
    run = subject()
    run.loss_of(next(run.batches())).backward()  # gradients that are there, as in accumulation
    del run.module.late
    before = state(run)
    CHECKS[name](run, budget())
    assert state(run) == before


@pytest.mark.parametrize("name", STEPPING)
def test_a_run_that_was_checked_goes_on_as_if_it_had_not_been(name: str) -> None:
    def ended(check: Any) -> Any:
        torch.manual_seed(7)
        np.random.seed(7)
        data = Counts()
        loaded = tap(DataLoader(data, 8, sampler=Sampled(data)))
        run = subject(loaded)
        seen = []
        for epoch in range(2):
            for i, batch in enumerate(loaded):
                run.optimizers["optimizer"].zero_grad()
                run.loss_of(batch).backward()
                run.optimizers["optimizer"].step()
                seen.append(exact(batch))
                if (epoch, i) in ((0, 2), (1, 0)):
                    check(run)
        return state(run), seen, loaded.otf_state(), data.reads  # type: ignore[attr-defined]

    assert ended(lambda run: CHECKS[name](run, budget(3))) == ended(lambda run: None)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *((name, at) for name in ("throughput", "activations") for at in (1, 2, 3)),
        *(("determinism", at) for at in (1, 2)),
        ("numerics", 1),
    ],
)
def test_a_hook_that_raises_leaves_no_trace(name: str, at: int) -> None:
    run = subject()
    calls = iter(range(1, 99))

    def raising(*_: Any) -> None:
        if next(calls) == at:
            raise ArithmeticError

    run.module.body[2].register_forward_hook(raising)
    before = state(run)
    with pytest.raises(ArithmeticError):
        CHECKS[name](run, budget(3))
    assert state(run) == before


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("at", [1, 2])
def test_a_cancelled_check_leaves_no_trace(name: str, at: int) -> None:
    run = subject()
    if name == "numerics" and at == 2:  # it looks through the tensors first, and is asked for each
        at = 3 + numerics.check(run, budget()).fields["tensors"]
    asked = iter(range(1, 99))
    before = state(run)
    with pytest.raises(CancelledError, match="the run is as it was"):
        CHECKS[name](run, budget(3, cancelled=lambda: next(asked) >= at))
    assert state(run) == before


@pytest.mark.parametrize("name", STEPPING)
def test_who_steps_within_a_training_step_is_refused_by_name(name: str) -> None:
    model = net()
    optimizer = torch.optim.Adagrad(model.parameters())

    def steps(module: Any, batch: Any) -> Any:
        loss = cross_entropy(module, batch)
        loss.backward()
        optimizer.step()
        return loss

    run = Plain(model, loss=steps, optimizer=optimizer)
    before = run.digest()
    with pytest.raises(CommandError, match="it steps Adagrad itself"):
        CHECKS[name](run, budget())
    assert run.digest() == before


@pytest.mark.parametrize("name", STEPPING)
def test_a_training_step_that_propagates_back_itself_adds_to_no_gradient(name: str) -> None:
    def twice(module: Any, batch: Any) -> Any:
        cross_entropy(module, batch).backward()
        return cross_entropy(module, batch)

    run = Plain(net(), loss=twice)
    run.loss_of(next(run.batches()))
    before = run.digest()
    CHECKS[name](run, budget())
    assert run.digest() == before


def test_an_optimizer_that_steps_on_the_way_back_is_refused_too() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    run = Plain(model, optimizer=optimizer)
    before = run.digest()
    with pytest.raises(CommandError, match="it steps SGD itself"):
        numerics.check(run, budget())
    assert run.digest() == before


def test_the_optimizer_of_another_model_may_step_meanwhile() -> None:
    other = net()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with undisturbed(Plain(net())):
        optimizer.step()


def test_parameters_that_the_first_forward_makes_are_refused() -> None:
    run = Plain(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(CommandError, match=r"0\.weight is made by the first forward"):
        activations.check(run, budget())


@pytest.mark.parametrize("name", STEPPING)
def test_what_cannot_be_put_back_is_told(name: str) -> None:
    class Notes(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.meter, self.other = Meter(), Meter()

        def forward(self, x: Any) -> Any:
            self.meter.seen.append(1.0)
            return super().forward(x)

    found = CHECKS[name](Plain(Notes()), budget())
    assert found.text.endswith("Changed by this check, and cannot be put back: Notes.meter (Meter)")
    assert found.fields["left_changed"] == ["Notes.meter (Meter)"]


class Served:
    """Counts in an object that only it can store."""

    def __init__(self, loaded: Callable[[], None]) -> None:
        self.meter = Meter()
        self._loaded = loaded

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.meter.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.meter.seen = state["seen"]
        self._loaded()


@pytest.mark.parametrize("counts", [True, False])
def test_who_says_his_state_himself_is_given_it_back_where_it_has_changed(counts: bool) -> None:
    loads: list[None] = []
    served = Served(lambda: loads.append(None))
    served.meter.seen.append(7.0)

    def loss(module: Any, batch: Any) -> Any:
        served.meter.seen += [1.0] * counts
        return cross_entropy(module, batch)

    run = Plain(net(), loss=loss)
    run.others = {"data": served}
    found = activations.check(run, budget())
    assert (served.meter.seen, found.fields["left_changed"]) == ([7.0], [])
    assert len(loads) == counts


def test_batches_are_of_a_pass_of_their_own() -> None:
    loaded = tap(loader(24, 8, shuffle=True))
    torch.manual_seed(0)
    live = iter(loaded)
    first = next(live)
    run = Plain(net(), loaded)
    position = exact(loaded.otf_state())  # type: ignore[attr-defined]
    assert len(list(run.batches())) == 3
    assert exact(loaded.otf_state()) == position  # type: ignore[attr-defined]
    torch.manual_seed(0)
    again = iter(tap(loader(24, 8, shuffle=True)))
    assert exact(next(again)) == exact(first)
    assert exact(list(again)) == exact(list(live))


def test_workers_of_the_run_take_no_part() -> None:
    loaded = loader(16, 8, num_workers=2, persistent_workers=True)
    made = fresh(loaded)
    assert (made.num_workers, made.persistent_workers) == (0, False)
    assert (loaded.num_workers, loaded._iterator) == (2, None)
    assert len(list(made)) == 2
    assert made.dataset is loaded.dataset


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from (torch.full((6,), float(i)) for i in range(5))


def test_an_iterable_set_and_a_loader_of_its_own_are_read_from_the_beginning() -> None:
    loaded = DataLoader(Stream(), 2)
    live = iter(loaded)
    next(live)
    assert len(list(fresh(loaded))) == 3
    assert len(list(live)) == 2
    assert list(fresh([1, 2])) == [1, 2]


class Opened(Dataset[Any]):
    """Reads on in what it has opened."""

    def __init__(self) -> None:
        self.rows = iter(range(9))

    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> Any:
        return torch.zeros(6), next(self.rows) % 3


class Stateful(list[Any]):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (iter([1]), "can be read once only"),
        (Stateful(), "keeps its own position"),
        (DataLoader(Opened(), 2), r"Opened\.rows can be read once only"),
    ],
)
def test_what_has_no_second_pass_is_refused(data: Any, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        numerics.check(Plain(net(), data), budget())


def test_a_budget_of_no_batches_is_refused() -> None:
    with pytest.raises(CommandError, match="allowed: 1 or more"):
        budget(0)


def test_a_reply_has_text_and_ok_beside_the_fields() -> None:
    run = Plain(net())
    for name, check in CHECKS.items():
        wire = check(run, budget()).to_wire()
        assert {"ok", "text"} < wire.keys(), name
        lines = wire["text"].splitlines()
        assert lines == [line.rstrip() for line in lines]
        assert max(map(len, lines)) <= 100
