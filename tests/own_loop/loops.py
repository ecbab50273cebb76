"""Loops that people write, each to be run bare or attached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import otf_core
from otf_core.state.rng import get_rng
from tests.state.loader_kinds import gen, seed_all
from tests.state.trainings import Mean, Noisy, Stopper, exact, rows

EPOCHS = 2


class Net(nn.Module):
    """Draws in every step, and keeps what no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.noise, self.calls = gen(11), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        x = nn.functional.dropout(torch.relu(self.norm(self.first(x))), 0.2, self.training)
        return self.last(x) + 0.01 * self.calls + torch.rand(1, generator=self.noise)


class Bare:
    """What a loop has without us."""

    epoch = batch_idx = 0

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def epochs(self, n: int) -> Any:
        return range(n)

    def batches(self) -> Any:
        return iter(self._loader)

    def tick(self, loss: Any = None, **logged: Any) -> bool:
        return False

    def log(self, **logged: Any) -> None:
        return None


class Loop:
    """A plain one.

    Attributes:
        told: what each batch and each epoch's end came to.
        at: called behind each tick with the number of batches that are done.
    """

    def __init__(self, seed: int = 0) -> None:
        seed_all(seed)
        self.net = Net()
        self.optimizer: Any = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 7)
        self.loader: Any = DataLoader(rows(), batch_size=4, shuffle=True)
        self.val_loader: Any = DataLoader(rows(8), batch_size=4)
        self.told: list[Any] = []
        self.n = 0
        self.at: Callable[[int], None] = lambda _: None
        self.build()

    def build(self) -> None:
        """Other parts than those."""

    def more(self) -> dict[str, Any]:
        """What attach is given beside the usual."""
        return {"state": {}}

    def attached(self, **options: Any) -> Any:
        usual = {
            "model": self.net,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "train_loader": self.loader,
            "val_loader": self.val_loader,
            "dashboard": "off",
            "project": "loops",
            "run_name": "run",
        }
        return otf_core.attach(**{**usual, **self.more(), **options})

    def bare(self) -> Loop:
        self.train(Bare(self.loader))
        return self

    def run(self, **options: Any) -> Loop:
        with self.attached(**options) as session:
            self.train(session)
        return self

    def train(self, session: Any) -> None:
        for epoch in session.epochs(EPOCHS):
            self.net.train()
            for batch in self.loader:
                if self.batch(session, batch):
                    break
            if getattr(session, "stopping", False):
                break
            self.end(session, epoch)

    def batch(self, session: Any, batch: Any) -> bool:
        found = self.step(batch)
        self.told.append(exact(found))
        self.n += 1
        loss = found[0] if isinstance(found, tuple) else found
        stop: bool = session.tick(loss=loss, twice=2 * loss.detach())
        self.at(self.n)
        return stop

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def end(self, session: Any, epoch: int) -> None:
        found = self.validate()
        self.told.append((epoch, exact(found)))
        session.log(val_loss=found)

    def validate(self) -> torch.Tensor:
        self.net.eval()
        with torch.no_grad():
            return torch.stack([self.loss(batch) for batch in self.val_loader]).mean()

    def digest(self) -> Any:
        return {
            "weights": exact(self.net.state_dict()),
            "optimizer": exact(self.optimizer.state_dict()),
            "schedule": exact(self.scheduler.state_dict()),
            "own": exact(self.own()),
            "rng": exact(get_rng()),
        }

    def own(self) -> Any:
        return self.net.calls

    def close(self) -> None:
        """End the workers of the loaders."""
        for loader in (self.loader, self.val_loader):
            if (iterator := getattr(loader, "_iterator", None)) is not None:
                iterator._shutdown_workers()


class Accumulating(Loop):
    """Three batches make a step; what is left at an epoch's end goes on in the next."""

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch) / 3
        loss.backward()
        if self.net.calls % 3 == 0:
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return loss


class Scaled(Loop):
    """bf16 under autocast, and a scaler that overflows now and then."""

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=2)

    def more(self) -> dict[str, Any]:
        return {"state": {}, "scaler": self.scaler}

    def step(self, batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss, self.scaler.get_scale()


class ByPlateau(Loop):
    """The schedule is stepped by the validation."""

    def build(self) -> None:
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0)

    def step(self, batch: Any) -> Any:
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def end(self, session: Any, epoch: int) -> None:
        super().end(session, epoch)
        self.scheduler.step(1.0 + epoch)


class Closures(Loop):
    """LBFGS."""

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


class TwoModels(Loop):
    """Two modules with an optimizer each."""

    def build(self) -> None:
        self.other = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        self.against = torch.optim.SGD(self.other.parameters(), 0.1, momentum=0.5)

    def more(self) -> dict[str, Any]:
        models = {"net": self.net, "other": self.other}
        return {"state": {}, "model": models, "optimizer": [self.optimizer, self.against]}

    def step(self, batch: Any) -> Any:
        made = self.net(batch[0])
        told = self.other(made.detach()).mean() + self.other(batch[1]).square().mean()
        self.against.zero_grad()
        told.backward()
        self.against.step()
        loss = (made - batch[1]).square().mean() - 0.1 * self.other(made).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss, told

    def own(self) -> Any:
        return self.net.calls, self.other.state_dict(), self.against.state_dict()


class Owned(Loop):
    """What the loop keeps besides, and an epoch's head that begins some of it anew."""

    def build(self) -> None:
        self.mean, self.stopper, self.best = Mean(), Stopper(), 1e9
        self.average = torch.optim.swa_utils.AveragedModel(
            self.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )

    def more(self) -> dict[str, Any]:
        best = (lambda: self.best, lambda value: setattr(self, "best", value))
        objects = {"mean": self.mean, "stopper": self.stopper, "best": best}
        return {"state": {**objects, "average": self.average}}

    def train(self, session: Any) -> None:
        for epoch in session.epochs(EPOCHS):
            self.net.train()
            self.mean.total, self.mean.count = torch.zeros(()), 0
            self.optimizer.param_groups[0]["weight_decay"] = 0.01 * torch.rand(1).item()
            for batch in self.loader:
                self.batch(session, batch)
            self.end(session, epoch)

    def step(self, batch: Any) -> Any:
        loss = super().step(batch)
        self.average.update_parameters(self.net)
        self.stopper.history.append(loss.item())
        self.best = min(self.best, loss.item())
        return loss, self.mean.add(loss), self.best, sum(self.stopper.history)

    def own(self) -> Any:
        return self.net.calls, self.average.state_dict(), vars(self.stopper), self.best


class ByRange(Loop):
    """Counts its epochs itself."""

    def train(self, session: Any) -> None:
        for epoch in range(session.epoch, EPOCHS):
            self.net.train()
            for batch in self.loader:
                self.batch(session, batch)
            self.end(session, epoch)


class NoDataLoader(Loop):
    """Reads a list, through the session."""

    def build(self) -> None:
        self.loader = [tuple(rows()[i : i + 4]) for i in range(0, 22, 4)]

    def train(self, session: Any) -> None:
        for epoch in session.epochs(EPOCHS):
            self.net.train()
            for batch in session.batches():
                self.batch(session, batch)
            self.end(session, epoch)


class Slicing(Loop):
    """No loader at all: indices are drawn for every batch."""

    def more(self) -> dict[str, Any]:
        return {"state": {}, "train_loader": None}

    def train(self, session: Any) -> None:
        x, y = rows().tensors
        for epoch in session.epochs(EPOCHS):
            self.net.train()
            for _ in range(session.batch_idx, 6):
                drawn = torch.randint(len(x), (4,))
                self.batch(session, (x[drawn], y[drawn]))
            self.end(session, epoch)


class Workers(Loop):
    """Two workers that stay, for validation one that stays too."""

    def build(self) -> None:
        self.loader = DataLoader(
            Noisy(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True
        )
        self.val_loader = DataLoader(Noisy(8), batch_size=4, num_workers=1, persistent_workers=True)


KINDS: dict[str, Callable[..., Loop]] = {
    kind.__name__: kind
    for kind in (
        Loop, Accumulating, Scaled, ByPlateau, Closures, TwoModels, Owned, ByRange, NoDataLoader,
        Slicing, Workers,
    )
}  # fmt: skip


@contextlib.contextmanager
def made(kind: str, seed: int = 0) -> Iterator[Loop]:
    """A loop whose workers end."""
    loop = KINDS[kind](seed)
    try:
        yield loop
    finally:
        loop.close()


def one_batch() -> Any:
    return TensorDataset(*rows(4).tensors)
