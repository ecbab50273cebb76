"""One of each kind that a script may hold, all of which change and are printed."""

import argparse
import collections
import copy
import dataclasses
import enum
import functools
import itertools
import random
import sys
import textwrap
from pathlib import Path

import digest
import numpy as np
import state_of
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Seen = collections.namedtuple("Seen", "step loss")


class Phase(enum.Enum):
    WARM = 1
    COOL = 2


class Meter:
    made = 0

    def __init__(self, name):
        self.name, self.values, self.owner = name, [], None
        Meter.made += 1

    def add(self, value):
        self.values.append(round(value, 4))


class Log(list):
    def __init__(self):
        super().__init__()
        self.lines = 0


@dataclasses.dataclass
class Best:
    loss: float
    at: int


class Slotted:
    __slots__ = ("turns",)

    def __init__(self):
        self.turns = 0


class Chunks(DataLoader):
    """Its iteration is its own."""

    def __iter__(self):
        number = len(self)
        for batch in super().__iter__():
            number -= 1
            yield number, batch


class Countdown:
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return self

    def __next__(self):
        self.n -= 1
        return self.n


def counter():
    count = 0

    def add():
        nonlocal count
        count += 1
        return count

    return add


def orders(n):
    """The order is drawn once, and stays between two items."""
    order = torch.randperm(n)
    for i in range(n):
        yield int(order[i])


torch.manual_seed(3)
random.seed(3)
np.random.seed(3)
args = argparse.Namespace(rate=0.1, steps=0)
x, y = torch.randn(24, 4), torch.randn(24, 1)
shuffle = torch.Generator().manual_seed(1)
loader = Chunks(TensorDataset(x, y), batch_size=6, shuffle=True, generator=shuffle)
other = DataLoader(TensorDataset(x), batch_size=5, shuffle=True)
net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
params = list(net.parameters())
view = params[0].data[:1]
optimizer = torch.optim.Adam(params, lr=args.rate)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
average = torch.zeros(4)
drawn, numbers = random.Random(2), np.random.default_rng(2)
totals = np.zeros(3)
meter, log, best, slotted, add = Meter("loss"), Log(), Best(9.0, 0), Slotted(), counter()
meter.owner = log
recent = collections.deque(maxlen=3)
by_phase, names = collections.defaultdict(list), collections.Counter()
wrapper, where, phase, seen, kept = (
    textwrap.TextWrapper(width=0),
    Path("0"),
    Phase.WARM,
    None,
    set(),
)
noted = functools.partial(meter.add)
order, ticks, raw, serial = orders(40), itertools.count(5), bytearray(2), itertools.count(7)
table = torch.zeros(600, 600)  # over 1 MiB, and never touched
copied = gone = None
squash, weigh = torch.relu, lambda loss: loss
text = "ab" * (1 << 20)
for epoch, _, down, cold in zip(range(3), ticks, Countdown(50), map(abs, range(-9, 0))):
    pairs = enumerate(other)
    for number, (inputs, targets) in loader:
        print("from", where, phase, seen, gone is None, squash.__name__, weigh(1))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        value = loss.item()
        noted(value)
        average += params[0].detach().mean() * torch.rand(4)
        totals[number % 3] += value
        recent.append((drawn.random(), numbers.random(), random.random(), np.random.rand()))
        by_phase[phase.name].append(next(order))
        names.update(phase.name[0])
        kept.add(args.steps % 4)
        log.append(add())
        log.lines += 1
        slotted.turns += 2
        args.steps += 1
        wrapper.width += 3
        raw[number % 2] += 1
        where = Path(str(args.steps))
        phase = Phase.COOL if args.steps % 2 else Phase.WARM
        seen = Seen(args.steps, value)
        state_of.TOTAL += 1
        if gone is None:
            gone = net.register_forward_hook(print)
            gone.remove()
            squash, weigh = torch.tanh, lambda loss: loss * 2
        if value < best.loss:
            best = Best(value, args.steps)
            copied = copy.deepcopy(net)
        if number % 2:
            print("pair", next(pairs, None))
        view *= 0.99
        print(epoch, number, cold, down, f"{value:.6f}", recent, by_phase, names, sorted(kept))
        print(log, log.lines, slotted.turns, wrapper.width, where, phase, seen, state_of.TOTAL)
        print(meter.values, meter.owner is log, Meter.made, best, totals, average, args, len(text))
        print(raw, next(serial))
    print("epoch", epoch, scheduler.get_last_lr(), net.training, float(table.sum()))
    Meter("another")
digest.write(sys.argv[1], net=net, optimizer=optimizer, copied=copied, average=average)
