"""Loaders of every kind that a position is taken from, and the run that reads them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
    get_worker_info,
)

from otf_core.state.rng import get_rng, set_rng

END = object()
Place = tuple[int, int]  # (epoch, batches handed out)


def seed_all(seed: int) -> None:
    """The three global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Squares(Dataset[Any]):
    """Plain."""

    def __init__(self, n: int = 21) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return torch.tensor([i, i * i])


class Noisy(Squares):
    """Augments with the three global generators."""

    def __getitem__(self, i: int) -> Any:
        noise = [torch.rand(1).item(), float(np.random.rand()), random.random()]
        return torch.tensor([i, *noise], dtype=torch.float64)


class Own(Squares):
    """Augments with generators of its own, counts, and is given the epoch by the loop."""

    def __init__(self, n: int = 21) -> None:
        super().__init__(n)
        self.torch, self.numpy, self.python = gen(3), np.random.default_rng(4), random.Random(5)
        self.seen, self.last, self.epoch = 0, [0] * 5, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i: int) -> Any:
        self.seen += 1
        self.last[self.seen % 5] += i
        noise = [
            torch.rand(1, generator=self.torch).item(), self.numpy.random(), self.python.random(),
        ]  # fmt: skip
        return torch.tensor([i, self.seen, sum(self.last), self.epoch, *noise], dtype=torch.float64)


class Jitter:
    """A transform that keeps a generator, as albumentations does."""

    def __init__(self) -> None:
        self.random_generator, self.calls = np.random.default_rng(6), 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return x + self.random_generator.random() + self.calls


class Compose:
    def __init__(self, *transforms: Any) -> None:
        self.transforms = list(transforms)

    def __call__(self, x: Any) -> Any:
        for transform in self.transforms:
            x = transform(x)
        return x


class Transformed(Squares):
    def __init__(self, n: int = 21) -> None:
        super().__init__(n)
        self.transform = Compose(Jitter(), Jitter())

    def __getitem__(self, i: int) -> Any:
        return self.transform(torch.tensor([float(i)], dtype=torch.float64))


class Lazy(Sampler[int]):
    """Draws index by index from the global generators, and remembers nothing."""

    def __init__(self, n: int = 21) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.n):
            yield (int(torch.randint(7, ())) + int(np.random.randint(7))) % self.n


class Eager(Lazy):
    """Draws when the iterator is made, with the epoch set from outside, and counts its making."""

    def __init__(self, n: int = 21) -> None:
        super().__init__(n)
        self.epoch, self.made, self.rng = 0, 0, random.Random(1)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.made += 1
        order = torch.randperm(self.n).tolist()
        self.rng.shuffle(order)
        return iter([(i + self.epoch + self.made) % self.n for i in order])


class Walker(Lazy):
    """Its place is a counter of its own, which is seen from outside."""

    def __init__(self, n: int = 21) -> None:
        super().__init__(n)
        self.at = self.turns = 0

    def __iter__(self) -> Iterator[int]:
        self.at, self.turns = 0, self.turns + 1
        while self.at < self.n:
            self.at += 1
            yield (self.at * 5 + self.turns) % self.n


class Endless(Lazy):
    """Is its own iterator, which never begins anew."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.at += 1
        return self.at * 5 % 21


class Stateful(Lazy):
    """Has its own state_dict, which is good for one iteration only."""

    def __init__(self, n: int = 21) -> None:
        super().__init__(n)
        self.turns = 0

    def state_dict(self) -> dict[str, Any]:
        return {"turns": self.turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turns = state["turns"]

    def __iter__(self) -> Iterator[int]:
        self.turns += 1
        g = gen(self.turns)
        return iter(torch.randperm(self.n, generator=g).tolist())


class Pairs(Sampler[list[int]]):
    """A batch sampler of the user's, of uneven batches."""

    def __init__(self) -> None:
        self.rng = np.random.RandomState(8)

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[list[int]]:
        for size in (2, 3, 1, 4, 2, 5):
            yield self.rng.randint(0, 21, size).tolist()


def shard(n: int) -> range:
    info = get_worker_info()
    return range(n) if info is None else range(info.id, n, info.num_workers)


class Stream(IterableDataset[Any]):
    """Of unknown length, sharded over the workers; draws nothing."""

    def __init__(self, n: int = 19) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        for i in shard(self.n):
            yield torch.tensor([i])


class ShuffledStream(Stream):
    """Draws its order when it is begun."""

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(self.n).tolist():
            yield torch.tensor([i])


class CountingStream(Stream):
    """Its order depends on how often it was read, and it numbers what it yields."""

    def __init__(self, n: int = 19) -> None:
        super().__init__(n)
        self.turns = self.count = 0

    def __iter__(self) -> Iterator[Any]:
        self.turns += 1
        order = torch.randperm(self.n, generator=gen(self.turns)).tolist()
        for i in shard(self.n):
            self.count += 1
            yield torch.tensor([order[i], self.count])


class EagerStream(Stream):
    """Draws its order before its first sample is asked for."""

    def __iter__(self) -> Iterator[Any]:
        return iter([torch.tensor([i]) for i in np.random.permutation(self.n).tolist()])


class Uneven(Stream):
    """The first worker is exhausted long before the others."""

    def __init__(self) -> None:
        self.ends = [4, 11, 12]
        self.begin()

    def begin(self) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "again": torch.tensor(self.at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = int(state["again"])

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        end = self.ends[info.id] if info else 15
        while self.at < end:
            self.at += 1
            yield torch.tensor([info.id if info else 9, self.at])
        self.begin()


class Rounds(Uneven):
    """Knows how often it was read to its end; the next reading differs."""

    def __init__(self) -> None:
        self.rounds = 0
        super().__init__()

    def begin(self) -> None:
        super().begin()
        self.rounds += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rounds = state["rounds"]

    def __iter__(self) -> Iterator[Any]:
        for x in super().__iter__():
            yield torch.cat([x, torch.tensor([self.rounds])])


class Buffer(Stream):
    """A shuffle buffer that draws for every sample."""

    def __iter__(self) -> Iterator[Any]:
        held: list[int] = []
        for i in shard(self.n):
            held.append(i)
            if len(held) > 3:
                yield torch.tensor([held.pop(random.randrange(len(held)))])
        yield from (torch.tensor([i]) for i in held)


def no_more_than_a_collate(samples: list[Any]) -> Any:
    return {"x": torch.stack(samples), "mixed": torch.rand(2)}


class Mixup:
    """A collate_fn with a generator of its own."""

    def __init__(self) -> None:
        self.rng, self.calls = np.random.default_rng(2), 0

    def __call__(self, samples: list[Any]) -> Any:
        self.calls += 1
        return torch.stack(samples) * 2, self.rng.random(), self.calls


def numbers_its_worker(worker_id: int) -> None:
    info: Any = get_worker_info()
    info.dataset.seen = 1000 * worker_id
    np.random.seed(worker_id + 50)


@dataclass
class Kind:
    """A loader, how often it is read, and how much of it."""

    name: str
    make: Callable[[], Any]
    epochs: int = 2
    limit: int | None = None
    begin: Callable[[DataLoader[Any], int], None] = field(default=lambda loader, epoch: None)


def loader(data: Any, **how: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"batch_size": 4, **how})


def with_generator(data: Any, **how: Any) -> DataLoader[Any]:
    """Order and seeds of the workers come from a generator of the user's."""
    return loader(data, shuffle=True, generator=gen(9), **how)


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """As Lightning tells the sampler, and a user's callback the data set."""
    told: list[Any] = [loader.sampler, loader.batch_sampler, loader.dataset]
    for obj in told:
        if hasattr(obj, "set_epoch"):
            obj.set_epoch(epoch)


TWO: dict[str, Any] = {"num_workers": 2}
STAY: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
half = list(range(0, 21, 2))

KINDS = [
    Kind("in order", lambda: loader(Squares())),
    Kind("shuffled", lambda: loader(Squares(), shuffle=True), epochs=3),
    Kind("shuffled, drop_last", lambda: loader(Noisy(), shuffle=True, drop_last=True)),
    Kind("with replacement", lambda: loader(
        Squares(), sampler=RandomSampler(Squares(), replacement=True, num_samples=70))),
    Kind("weighted", lambda: loader(
        Noisy(), sampler=WeightedRandomSampler([1.0] * 10 + [5.0] * 11, 21))),
    Kind("a generator given", lambda: with_generator(Noisy()), epochs=3),
    Kind("a generator in the sampler", lambda: loader(
        Noisy(), sampler=RandomSampler(Squares(), generator=gen(4)))),
    Kind("lazy sampler", lambda: loader(Squares(), sampler=Lazy())),
    Kind("eager sampler", lambda: loader(Noisy(), sampler=Eager()), epochs=3, begin=set_epoch),
    Kind("sampler that counts", lambda: loader(Noisy(), sampler=Walker()), epochs=3),
    Kind("sampler that is its iterator", lambda: loader(Noisy(), sampler=Endless()), limit=4),
    Kind("2 workers, sampler that is its iterator", lambda: loader(
        Squares(), sampler=Endless(), **TWO), limit=4),
    Kind("sampler with a state_dict", lambda: loader(Noisy(), sampler=Stateful()), epochs=3),
    Kind("sampler that is a list", lambda: loader(Noisy(), sampler=[5, 3, 8, 1, 0])),
    Kind("batch sampler", lambda: DataLoader(Noisy(), batch_sampler=Pairs()), epochs=3),
    Kind("batch sampler over own sampler", lambda: DataLoader(
        Squares(), batch_sampler=BatchSampler(Eager(), 5, drop_last=True)), epochs=3),
    Kind("no batches", lambda: DataLoader(Noisy(9), batch_size=None, shuffle=True)),
    Kind("no batches, eager sampler", lambda: DataLoader(
        Noisy(9), batch_size=None, sampler=Eager(9)), epochs=3),
    Kind("augmented", lambda: loader(Noisy(), shuffle=True), epochs=3),
    Kind("own generators", lambda: loader(Own(), shuffle=True), epochs=3, begin=set_epoch),
    Kind("subset of own generators", lambda: loader(Subset(Own(), half), shuffle=True)),
    Kind("several sets", lambda: loader(ConcatDataset([Own(6), Own(9)]), shuffle=True)),
    Kind("transforms", lambda: loader(Transformed(), shuffle=True)),
    Kind("collate_fn", lambda: loader(Noisy(), shuffle=True, collate_fn=no_more_than_a_collate)),
    Kind("collate_fn with state", lambda: loader(Noisy(), shuffle=True, collate_fn=Mixup())),
    Kind("cut short", lambda: loader(Own(), shuffle=True), epochs=3, limit=2),
    Kind("stream", lambda: loader(Stream())),
    Kind("stream without batches", lambda: DataLoader(Stream(5), batch_size=None)),
    Kind("stream shuffled at its beginning", lambda: loader(ShuffledStream()), epochs=3),
    Kind("stream that counts", lambda: loader(CountingStream()), epochs=3),
    Kind("persistent, stream that counts", lambda: loader(CountingStream(), **STAY), epochs=3),
    Kind("stream begun eagerly", lambda: loader(EagerStream()), epochs=3),
    Kind("2 workers, stream begun eagerly", lambda: loader(EagerStream(9), **TWO)),
    Kind("stream with a state_dict", lambda: loader(Rounds()), epochs=3),
    Kind("1 worker", lambda: loader(Noisy(), shuffle=True, num_workers=1)),
    Kind("2 workers", lambda: loader(Noisy(), shuffle=True, **TWO), epochs=3),
    Kind("2 workers, lazy sampler", lambda: loader(Squares(), sampler=Lazy(), **TWO)),
    Kind("2 workers, eager sampler", lambda: loader(
        Noisy(), sampler=Eager(), **TWO), begin=set_epoch),
    Kind("2 workers, sampler that counts", lambda: loader(
        Squares(), sampler=Walker(), **TWO)),
    Kind("2 workers, generator given", lambda: with_generator(Noisy(), **TWO)),
    Kind("2 workers, generator for their seeds", lambda: loader(
        Noisy(), generator=gen(9), **TWO)),
    Kind("2 workers, batch sampler", lambda: DataLoader(Noisy(), batch_sampler=Pairs(), **TWO)),
    Kind("2 workers, no batches", lambda: DataLoader(Noisy(7), batch_size=None, **TWO)),
    Kind("2 workers, own generators", lambda: loader(
        Own(), shuffle=True, **TWO), begin=set_epoch),
    Kind("2 workers, transforms", lambda: loader(Transformed(), shuffle=True, **TWO)),
    Kind("2 workers, collate_fn with state", lambda: loader(
        Noisy(), shuffle=True, collate_fn=Mixup(), **TWO)),
    Kind("2 workers, worker_init_fn", lambda: loader(
        Own(), shuffle=True, worker_init_fn=numbers_its_worker, **TWO)),
    Kind("2 workers, cut short", lambda: loader(Noisy(), shuffle=True, **TWO), limit=3),
    Kind("2 workers, prefetch_factor", lambda: loader(
        Noisy(), shuffle=True, prefetch_factor=1, **TWO)),
    Kind("2 workers, stream", lambda: loader(Stream(), **TWO)),
    Kind("2 workers, shuffle buffer", lambda: loader(Buffer(), **TWO)),
    Kind("3 workers, uneven", lambda: loader(Uneven(), batch_size=2, num_workers=3)),
    Kind("persistent", lambda: loader(Noisy(), shuffle=True, **STAY), epochs=3),
    Kind("persistent, own generators", lambda: loader(
        Own(), shuffle=True, **STAY), epochs=3, begin=set_epoch),
    Kind("persistent, cut short", lambda: loader(Own(), shuffle=True, **STAY), epochs=3, limit=2),
    Kind("persistent, generator given", lambda: with_generator(Noisy(), **STAY), epochs=3),
    Kind("persistent, shuffle buffer", lambda: loader(Buffer(), **STAY)),
    Kind("persistent, stream with a state_dict", lambda: loader(
        Rounds(), num_workers=3, persistent_workers=True), epochs=3),
    Kind("persistent, stream cut short", lambda: loader(Rounds(), **STAY), epochs=3, limit=2),
]  # fmt: skip


def plain(batch: Any) -> Any:
    """Comparable by ==."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, dict):
        return {k: plain(v) for k, v in batch.items()}
    return [plain(b) for b in batch] if isinstance(batch, list | tuple) else batch


def through_a_file(value: Any) -> Any:
    """As a checkpoint comes back."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def draw() -> None:
    """As dropout does, and whatever else a training does between two batches."""
    torch.rand(1)
    np.random.rand()
    random.random()


class Run:
    """Reads a loader as a training loop does, which draws random numbers of its own."""

    def __init__(self, kind: Kind, loader: Any) -> None:
        self.kind, self.loader, self.tape = kind, loader, list[Any]()
        self.iterator: Any = None
        self.place: Place = 0, 0

    def go(self, at: Callable[[Place], bool] | None = None) -> bool:
        """To the end, or to where ``at`` says True; it is asked before every batch."""
        (epoch, done), kind = self.place, self.kind
        while epoch < kind.epochs:
            if self.iterator is None:
                kind.begin(self.loader, epoch)
                self.iterator = iter(self.loader)
                draw()
            while True:
                self.place = epoch, done
                if at is not None and at(self.place):
                    return True
                batch = END if done == kind.limit else next(self.iterator, END)
                if batch is END:
                    break
                self.tape.append((epoch, done, plain(batch)))
                draw()
                done += 1
            self.iterator, epoch, done = None, epoch + 1, 0
            if at is not None and at((epoch, -1)):
                self.place = epoch, 0
                return True
        return False

    def finish(self) -> tuple[list[Any], Any]:
        """What was read, and the RNG; ends the workers."""
        self.iterator = None
        if (pool := getattr(self.loader, "_iterator", None)) is not None:
            pool._shutdown_workers()
        return self.tape, get_rng()


def capture(run: Run, place: Place) -> Any:
    """The state of a run at a place; at (epoch, -1) it stands between two iterations."""
    rng = get_rng()
    state = run.loader.otf_state(iterating=place[1] >= 0)
    return through_a_file({"loader": state, "rng": rng})


def resume(run: Run, place: Place, state: Any, set_around: Callable[..., None]) -> None:
    """Bring a new run to the place."""
    epoch, done = place
    if done >= 0:
        run.kind.begin(run.loader, epoch)
    run.loader.otf_load(state["loader"])
    if done >= 0:
        run.iterator = iter(run.loader)
    set_around(run.loader, state["loader"]["around"], own=False)
    run.place = epoch, max(done, 0)
    set_rng(state["rng"])
