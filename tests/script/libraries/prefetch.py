"""A library around torch as others are: its loader fetches one batch ahead, its wrappers stand for
what they wrap, and its ``Trainer`` has the loop. It knows nothing of otf.
"""

from __future__ import annotations

import contextlib

import torch


class Loader:
    """Is taken for the loader that it wraps; has a state only if that has one."""

    def __init__(self, loader):
        self.inner = loader
        self.end = False

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError
        return getattr(self.inner, name)

    @property
    def __class__(self):
        return self.inner.__class__

    def state_dict(self):
        return self.inner_state

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)

    def __iter__(self):
        self.end = False
        batches = iter(self.inner)
        try:
            batch = next(batches)
        except StopIteration:
            return
        while True:
            try:
                following = next(batches)
            except StopIteration:
                self.end = True
                yield batch
                return
            yield batch
            batch = following

    def __len__(self):
        return len(self.inner)


class Optimizer(torch.optim.Optimizer):
    """Steps only where an accumulation is complete."""

    def __init__(self, optimizer, shared):
        self.optimizer, self.shared = optimizer, shared

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    @property
    def defaults(self):
        return self.optimizer.defaults

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    def zero_grad(self, set_to_none=True):
        if self.shared.complete:
            self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        if self.shared.complete:
            self.optimizer.step(closure)


class Scheduler:
    def __init__(self, scheduler, shared):
        self.scheduler, self.shared = scheduler, shared

    def step(self):
        if self.shared.complete:
            self.scheduler.step()

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


class Accumulation:
    """Every ``n`` batches are complete, and those before the end of the data."""

    def __init__(self, n):
        self.n, self.count, self.complete, self.loader = n, 0, True, None

    def prepare(self, optimizer, loader, scheduler):
        self.loader = Loader(loader)
        return Optimizer(optimizer, self), self.loader, Scheduler(scheduler, self)

    @contextlib.contextmanager
    def batch(self):
        self.count = 0 if self.loader.end else self.count + 1
        self.complete = self.loader.end or self.count % self.n == 0
        yield


class Trainer:
    """Has the loop."""

    def __init__(self, model, optimizer, loader, validation):
        self.model, self.optimizer = model, optimizer
        self.loader, self.validation = Loader(loader), Loader(validation)

    def train(self, epochs):
        for epoch in range(epochs):
            self.model.train()
            for step, (x, y) in enumerate(self.loader):
                loss = torch.nn.functional.cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                print(f"{epoch} {step} {loss.item():.6f}")
            print(f"{epoch} {self.evaluate():.6f}")

    @torch.no_grad()
    def evaluate(self):
        self.model.eval()
        return sum(
            float(torch.nn.functional.cross_entropy(self.model(x), y)) for x, y in self.validation
        )
