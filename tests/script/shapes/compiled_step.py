"""The whole step is compiled, backward and optimizer too."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(15)
net = nn.Linear(4, 1)
x = torch.randn(24, 4)
loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=8, shuffle=True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)


@torch.compile(backend="aot_eager")
def step(inputs, target):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(net(inputs), target)
    loss.backward()
    optimizer.step()
    return loss


for epoch in range(2):
    for inputs, target in loader:
        print(epoch, f"{step(inputs, target).item():.6f}")
digest.write(sys.argv[1], net=net, optimizer=optimizer)
