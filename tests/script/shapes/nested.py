"""Functions in functions and classes in functions, in mid-epoch decisions and a generator."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Linear(width, width)

        def forward(self, x):
            return x + torch.tanh(self.inner(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(4) for _ in range(2)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    return Net()


def main():
    torch.manual_seed(8)
    data = DataLoader(
        TensorDataset(torch.randn(36, 4), torch.randint(0, 2, (36,))), batch_size=6, shuffle=True
    )
    state = {"net": build(), "seen": 0}

    def run():
        optimizer = torch.optim.SGD(state["net"].parameters(), lr=0.1, nesterov=True, momentum=0.9)

        def batches():
            for epoch in range(2):
                for batch in data:
                    yield epoch, batch

        def step(batch):
            x, y = batch
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(state["net"](x), y)
            loss.backward()
            optimizer.step()
            state["seen"] += len(x)
            return loss.item()

        for epoch, batch in batches():
            value = step(batch)
            if state["seen"] % 12 == 0:
                print(epoch, state["seen"], f"{value:.6f}")
        return optimizer

    optimizer = run()
    digest.write(sys.argv[1], net=state["net"], optimizer=optimizer)


main()
