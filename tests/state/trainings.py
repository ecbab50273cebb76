"""Trainings written by hand, of many shapes, that can be left behind a batch and gone on with."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from otf_core.state.reading import Reading
from otf_core.state.rng import get_rng
from otf_core.state.training import Pieces, TrainingState, Value
from tests.state.loader_kinds import gen, seed_all

EPOCHS = 2


def exact(value: Any) -> Any:
    """A value as something that is equal only where it is, bit for bit."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {str(k): exact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    return value.hex() if isinstance(value, float) else value


class Net(nn.Module):
    """Layers with everything that a state_dict has, and attributes that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.noise = gen(11)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.seen += x.mean()
        shift = 0.01 * self.calls + 0.1 * torch.rand(1, generator=self.noise) + 0.01 * self.seen
        x = nn.functional.dropout(torch.relu(self.norm(self.first(x))), 0.2, self.training)
        return self.last(x) + shift


def rows(n: int = 22) -> TensorDataset:
    numbers = torch.randn(n, 5, generator=gen(1))
    return TensorDataset(numbers[:, :4], numbers[:, 4:])


class Training:
    """A loop in the open: each turn of ``turns`` ends behind a batch, where it can be left."""

    scaler: Any = None

    def __init__(self) -> None:
        self.net = Net()
        self.optimizer: Any = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 7)
        self.reading = Reading(self.loader())
        self.val_loader = DataLoader(rows(8), batch_size=4)
        self.epoch = self.batches = 0
        self.told: list[Any] = []
        self.build()
        self.pieces = Pieces(
            kind="tests",
            modules={"": self.net},
            optimizers=[self.optimizer],
            schedulers=[self.scheduler],
            scaler=self.scaler,
            readings={"train": self.reading},
            loaders={"val": self.val_loader},
            counters=lambda: {"epoch": self.epoch, "batches": self.batches},
            set_counters=self.set_counters,
        )
        self.more()
        self.state = TrainingState(self.pieces)

    def loader(self) -> Any:
        return DataLoader(rows(), batch_size=4, shuffle=True)

    def build(self) -> None:
        """Other parts than those."""

    def more(self) -> None:
        """Other pieces than those."""

    def set_counters(self, counters: Any) -> None:
        self.epoch, self.batches = counters["epoch"], counters["batches"]

    def turns(self) -> Iterator[None]:
        while self.epoch < EPOCHS:
            if self.reading.iterator is None:
                self.begin_epoch()
            for batch in iter(self.fetch, None):
                self.told.append(exact(self.step(batch)))
                self.batches += 1
                yield
            self.told.append(exact(self.validate()))
            self.reading.end()
            self.epoch += 1
            yield

    def begin_epoch(self) -> None:
        self.reading.begin()

    def fetch(self) -> Any:
        try:
            return self.reading.fetch()
        except StopIteration:
            return None

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def validate(self) -> Any:
        self.net.eval()
        with torch.no_grad():
            found = [self.loss(batch) for batch in self.val_loader]
        self.net.train()
        return found

    def digest(self) -> Any:
        rng = get_rng()
        return {
            "weights": exact({n: m.state_dict() for n, m in self.pieces.modules.items()}),
            "loose": exact(self.pieces.loose()),
            "optimizers": [exact(o.state_dict()) for o in self.pieces.optimizers],
            "schedules": [exact(s.state_dict()) for s in self.pieces.schedulers],
            "own": exact(self.own()),
            "rng": exact(rng),
        }

    def own(self) -> Any:
        return self.net.seen, self.net.calls

    def close(self) -> None:
        """End the workers of the loaders."""
        for loader in (self.reading.loader, self.val_loader):
            if (iterator := getattr(loader, "_iterator", None)) is not None:
                iterator._shutdown_workers()


class Accumulating(Training):
    """Three batches make a step; what is left at an epoch's end goes on in the next."""

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch) / 3
        loss.backward()
        if self.batches % 3 == 2:
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return loss


class Scaled(Training):
    """A gradient scaler whose scale overflows now and then, and grows."""

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=2)

    def step(self, batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss, self.scaler.get_scale()


class ByPlateau(Training):
    """SGD with momentum; the schedule is stepped by the validation."""

    def build(self) -> None:
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0)

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def validate(self) -> Any:
        found = super().validate()
        self.scheduler.step(float(found[0]) + 1.0)
        return found


class Closures(Training):
    """LBFGS, whose state lies all on its first parameter."""

    def build(self) -> None:
        self.optimizer = torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=3)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 4)

    def step(self, batch: Any) -> Any:
        def closure() -> Any:
            self.optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        loss = self.optimizer.step(closure)
        self.scheduler.step()
        return loss


class TwoModels(Training):
    """Two modules with an optimizer each, and a temperature that is in none of them."""

    def build(self) -> None:
        self.other = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        self.heat = torch.zeros((), requires_grad=True)
        self.against = torch.optim.SGD([*self.other.parameters(), self.heat], 0.1, momentum=0.5)

    def more(self) -> None:
        self.pieces.modules = {"net": self.net, "other": self.other}
        self.pieces.optimizers = [self.optimizer, self.against]

    def step(self, batch: Any) -> Any:
        made = self.net(batch[0])
        told = (
            self.other(made.detach()).mean() * self.heat.exp()
            + self.other(batch[1]).square().mean()
        )
        self.against.zero_grad()
        told.backward()
        self.against.step()
        loss = (made - batch[1]).square().mean() - 0.1 * self.other(made).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss, told


class Mean:
    """A running mean that says itself what its state is."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def add(self, value: Any) -> Any:
        self.total = self.total + value.detach()
        self.count += 1
        return self.total / self.count

    def state_dict(self) -> Any:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.total, self.count = state["total"], state["count"]


class Stopper:
    """A plain object of the user's."""

    def __init__(self) -> None:
        self.best, self.bad, self.history = float("inf"), 0, [0.0]


class Owned(Training):
    """A metric, an average of the weights, plain objects, and a number of its own."""

    def build(self) -> None:
        self.mean, self.stopper, self.number = Mean(), Stopper(), 0
        self.average = torch.optim.swa_utils.AveragedModel(
            self.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.module = Stopper()
        self.module.big = torch.zeros(3)  # type: ignore[attr-defined]  # data, no state

    def more(self) -> None:
        self.pieces.modules = {"net": self.net, "average": self.average}
        self.pieces.objects = {
            "mean": self.mean,
            "number": Value(lambda: self.number, self.put),
            "draws": Value(lambda: torch.rand(1).item(), lambda _: None),
        }
        self.pieces.plain = {"stopper": self.stopper}
        self.pieces.data = {"data": self.module}

    def put(self, number: int) -> None:
        self.number = number

    def step(self, batch: Any) -> Any:
        loss = super().step(batch)
        self.average.update_parameters(self.net)
        self.number += 1
        self.module.bad += 2
        self.stopper.history.append(loss.item())
        self.stopper.best = min(self.stopper.best, loss.item())
        return self.mean.add(loss), self.number, self.stopper.best, self.module.bad

    def own(self) -> Any:
        return *super().own(), vars(self.stopper), self.mean.state_dict(), self.number


class Counting(torch.optim.SGD):
    """Counts for itself, outside of its state."""

    turn = 0

    def step(self, closure: Any = None) -> Any:
        self.turn += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.turn
        return super().step(closure)


class CountingOptimizer(ByPlateau):
    def build(self) -> None:
        super().build()
        self.optimizer = Counting(self.net.parameters(), lr=0.1)


class Unfreezing(Training):
    """A layer that is frozen, and joins the optimizer with the second epoch."""

    def build(self) -> None:
        self.net.first.requires_grad_(False)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.epoch == 1:
            self.net.first.requires_grad_()
            self.optimizer.add_param_group(
                {"params": list(self.net.first.parameters()), "lr": 0.01}
            )
            self.scheduler.base_lrs.append(0.01)


class Workers(Training):
    """Two workers that stay, for validation one that stays too."""

    def loader(self) -> Any:
        return DataLoader(
            Noisy(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True
        )

    def build(self) -> None:
        self.val_loader = DataLoader(Noisy(8), batch_size=4, num_workers=1, persistent_workers=True)


class Noisy(TensorDataset):
    """Augments with the three global generators."""

    def __init__(self, n: int = 22) -> None:
        super().__init__(*rows(n).tensors)

    def __getitem__(self, i: Any) -> Any:
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.rand(4) + np.random.rand() * 0.1, y + random.random() * 0.1


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from rows()


class Streamed(Training):
    def loader(self) -> Any:
        return DataLoader(Stream(), batch_size=4)


class ByTurn(Sampler[int]):
    """Orders by how often it was asked."""

    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[int]:
        self.turn += 1
        yield from torch.randperm(22, generator=gen(self.turn)).tolist()
        self.turn += 1


class SampledByTurn(Training):
    def loader(self) -> Any:
        return DataLoader(rows(), batch_size=4, sampler=ByTurn())

    def step(self, batch: Any) -> Any:
        self.reading.loader.sampler.turn += 10  # for the next epoch
        return super().step(batch)

    def own(self) -> Any:
        return self.net.calls, self.reading.loader.sampler.turn


class NoLoader(Training):
    """Any iterable is read again up to where it stood."""

    def loader(self) -> Any:
        return [rows()[i : i + 4] for i in range(0, 22, 4)]


KINDS: dict[str, Callable[[], Training]] = {
    kind.__name__: kind
    for kind in (
        Training, Accumulating, Scaled, ByPlateau, Closures, TwoModels, Owned, CountingOptimizer,
        Unfreezing, Workers, Streamed, SampledByTurn, NoLoader,
    )
}  # fmt: skip


def saved(training: Training) -> bytes:
    file = io.BytesIO()
    torch.save(training.state.capture(), file)
    return file.getvalue()


def loaded(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return found


def begun(kind: str, seed: int = 0) -> Training:
    seed_all(seed)
    return KINDS[kind]()


def went(training: Training, turns: int | None = None) -> Training:
    """So many turns further, or to the end."""
    n = 0
    for n, _ in enumerate(training.turns(), start=1):
        if n == turns:
            return training
    assert turns is None, f"only {n} turns"
    return training
