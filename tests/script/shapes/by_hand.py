"""No optimizer at all: the parameters are moved by hand."""

import sys

import digest
import torch
from torch import nn

torch.manual_seed(7)
model = nn.Linear(3, 1)
data = torch.randn(30, 3)
lr = 0.1
for epoch in range(2):
    for batch in range(0, 30, 6):
        model.zero_grad()
        x = data[batch : batch + 6]
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-lr)
        print(epoch, batch, f"{loss.item():.6f}")
digest.write(sys.argv[1], model=model)
