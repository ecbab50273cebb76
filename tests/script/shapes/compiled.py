"""A compiled model."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(12)
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
model = torch.compile(net, backend="aot_eager")
x = torch.randn(24, 4)
loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=8, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(2):
    for inputs, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), target)
        loss.backward()
        optimizer.step()
        print(epoch, f"{loss.item():.6f}")
digest.write(sys.argv[1], net=net, optimizer=optimizer)
