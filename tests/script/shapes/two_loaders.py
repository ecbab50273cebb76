"""Two loaders side by side, one of an iterable data set."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Stream(IterableDataset):
    def __iter__(self):
        for n in range(24):
            yield torch.full((4,), float(n)) / 24 + torch.rand(4)


torch.manual_seed(5)
labelled = DataLoader(
    TensorDataset(torch.randn(32, 4), torch.randn(32, 2)), batch_size=8, shuffle=True
)
stream = DataLoader(Stream(), batch_size=6)
net = nn.Linear(4, 2)
optimizer = torch.optim.SGD([{"params": [net.weight]}, {"params": [net.bias], "lr": 0.01}], lr=0.1)
for epoch in range(3):
    for step, ((x, y), noise) in enumerate(zip(labelled, stream)):
        loss = nn.functional.mse_loss(net(x), y) + 0.1 * net(noise).pow(2).mean()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        print(epoch, step, f"{loss.item():.6f}")
digest.write(sys.argv[1], net=net, optimizer=optimizer)
