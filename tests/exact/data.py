"""The data of the configurations: sets, samplers and loaders as users write them."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

N, BATCH = 96, 16


@functools.cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16.0, torch.tensor(labels)


def digits(n: int = N, first: int = 0) -> TensorDataset:
    """Images as rows of 64, and their labels."""
    images, labels = _digits()
    return TensorDataset(images[first : first + n], labels[first : first + n])


def loader(data: Any = None, **kwargs: Any) -> DataLoader[Any]:
    """A training loader, shuffled unless told otherwise."""
    given: dict[str, Any] = {"batch_size": BATCH, "shuffle": True}
    if "sampler" in kwargs or isinstance(data, IterableDataset):
        del given["shuffle"]
    if "batch_sampler" in kwargs:
        given = {}
    return DataLoader(digits() if data is None else data, **{**given, **kwargs})


def val_loader(data: Any = None, **kwargs: Any) -> DataLoader[Any]:
    """A validation loader of two batches."""
    return DataLoader(digits(32, first=500) if data is None else data, BATCH, **kwargs)


def weighted(data: TensorDataset) -> WeightedRandomSampler:
    """Rare labels more often."""
    return WeightedRandomSampler((data.tensors[1].double() + 1).tolist(), N)


def replacement(data: TensorDataset) -> RandomSampler:
    return RandomSampler(data, replacement=True, num_samples=N)


class Augmented(Dataset[Any]):
    """Draws from all three generators of its process."""

    def __init__(self, n: int = N, first: int = 0) -> None:
        self.x, self.y = digits(n, first).tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        noise = torch.randn(64) * 0.1 + float(np.random.rand()) * 0.1 + random.random() * 0.1
        return self.x[i] + noise, self.y[i]


class Curriculum(Augmented):
    """Becomes harder when it is told to."""

    level = 0

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x * (1 + 0.01 * self.level), y


class OwnGenerators(Dataset[Any]):
    """Has generators and a counter of its own, and a history of some length."""

    def __init__(self, n: int = N) -> None:
        self.x, self.y = digits(n).tensors
        self.torch = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(2)
        self.python = random.Random(3)
        self.served = 0
        self.last: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        self.served += 1
        self.last = [*self.last[-3:], i]
        noise = torch.randn(64, generator=self.torch) * 0.1
        noise += self.numpy.random() * 0.1 + self.python.random() * 0.1
        return self.x[i] + noise + 1e-3 * self.served + 1e-4 * sum(self.last), self.y[i]


class LazySampler(Sampler[int]):
    """Draws one index after the other; its seed and its epoch are its own."""

    def __init__(self, n: int = N) -> None:
        self.n, self.seed, self.epoch = n, int(torch.randint(1000, ())), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for _ in range(self.n):
            yield int(torch.randint(self.n, (), generator=generator))


class EagerSampler(LazySampler):
    """Draws all indices when it is asked for an iterator, from the process's generators too."""

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.n).tolist()
        return iter(order[self.epoch :] + order[: self.epoch])


class CountingSampler(LazySampler):
    """Remembers between epochs what it has given, and chooses the next order by it."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.given = 0
        self.generator = np.random.default_rng(5)

    def __iter__(self) -> Iterator[int]:
        for i in self.generator.permutation(self.n):
            self.given += 1
            yield int(i + self.given) % self.n


class HardOnes(LazySampler):
    """Weights that the training changes under way; they count from the next epoch on."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.weights = [1.0] * n

    def __iter__(self) -> Iterator[int]:
        drawn = torch.multinomial(torch.tensor(self.weights), self.n, replacement=True)
        return iter(drawn.tolist())


class LengthBuckets(Sampler[list[int]]):
    """A batch sampler of its own, with a generator and epoch."""

    def __init__(self, n: int = N) -> None:
        self.n, self.epoch = n, 0
        self.generator = random.Random(8)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.n))
        self.generator.shuffle(order)
        for k in range(len(self)):
            yield [(i + self.epoch) % self.n for i in order[k * BATCH : (k + 1) * BATCH]]


class EagerBuckets(LengthBuckets):
    """Draws when it is asked for an iterator, not at its first batch."""

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.n).tolist()
        return iter([order[k * BATCH : (k + 1) * BATCH] for k in range(len(self))])


class Stream(IterableDataset[Any]):
    """Of unknown length; in workers each serves its share."""

    def __init__(self, n: int = N, first: int = 0) -> None:
        self.x, self.y = digits(n, first).tensors

    def order(self) -> list[int]:
        return torch.randperm(len(self.x)).tolist()

    def mine(self) -> list[int]:
        info = get_worker_info()
        return self.order() if info is None else self.order()[info.id :: info.num_workers]

    def __iter__(self) -> Iterator[Any]:
        for i in self.mine():
            yield self.x[i], self.y[i]


class SeededStream(Stream):
    """Has its order from a seed and the number of times it was begun."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.begun = 0

    def order(self) -> list[int]:
        self.begun += 1
        generator = torch.Generator().manual_seed(100 + self.begun)
        return torch.randperm(len(self.x), generator=generator).tolist()


class StatefulStream(SeededStream):
    """Says itself where it stands, between two iterations as well."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.position = 0
        self.inside = self.resumed = False

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "position": self.position, "inside": self.inside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.position = state["begun"], state["position"]
        self.inside = self.resumed = state["inside"]

    def __iter__(self) -> Iterator[Any]:
        if self.resumed:
            self.begun -= 1  # the same iteration once more
        else:
            self.position = 0
        self.inside, self.resumed = True, False
        for i in self.mine()[self.position :]:
            self.position += 1
            yield self.x[i], self.y[i]
        self.inside, self.position = False, 0


class ShuffleBuffer(Stream):
    """Draws from its process's generator for every sample, as a shuffle buffer does."""

    def __init__(self, n: int = N, size: int = 8) -> None:
        super().__init__(n)
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        buffer: list[int] = []
        info = get_worker_info()
        for i in range(info.id if info else 0, len(self.x), info.num_workers if info else 1):
            buffer.append(i)
            if len(buffer) == self.size:
                yield self._draw(buffer)
        while buffer:
            yield self._draw(buffer)

    def _draw(self, buffer: list[int]) -> Any:
        i = buffer.pop(int(torch.randint(len(buffer), ())))
        return self.x[i], self.y[i]


class Batches:
    """No DataLoader: gives batches, in an order of its own."""

    def __init__(self, n: int = N) -> None:
        self.n = n
        self.x, self.y = digits(n).tensors

    def __len__(self) -> int:
        return self.n // BATCH

    def __iter__(self) -> Iterator[Any]:
        for k in range(len(self)):
            part = slice(k * BATCH, (k + 1) * BATCH)
            yield self.x[part], self.y[part]


class Doubling(DataLoader[Any]):
    """Has an ``__iter__`` of its own, which passes on what torch's gives."""

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield x * 2, y


class OwnPosition(Batches):
    """No DataLoader, and says itself where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.next, self.rounds, self.resumed = 0, 0, False

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next, self.rounds, self.resumed = state["next"], state["rounds"], True

    def __iter__(self) -> Iterator[Any]:
        if not self.resumed:
            self.next, self.rounds = 0, self.rounds + 1
        self.resumed = False
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        while self.next < len(self):
            k = (self.next * 5 + self.rounds) % len(self)
            self.next += 1
            part = slice(k * BATCH, (k + 1) * BATCH)
            yield self.x[part], self.y[part]
