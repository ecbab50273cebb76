"""Gradients of three batches, over the ends of epochs; a generator of its own, OneCycle."""

import random
import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(2)
random.seed(2)
generator = torch.Generator().manual_seed(5)
data = TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
model = nn.Linear(4, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)
micro = 0
for epoch in range(4):
    for x, y in loader:
        loss = nn.functional.mse_loss(model(x + random.random()), y) / 3
        loss.backward()
        micro += 1
        if micro % 3 == 0:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            print(f"{epoch} {micro} {loss.item():.6f} {optimizer.param_groups[0]['lr']:.6f}")
digest.write(sys.argv[1], model=model, optimizer=optimizer, generator=generator.get_state())
