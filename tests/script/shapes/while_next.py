"""``while True`` and ``next``: a loop that begins the loader anew by itself, and saves as it goes."""

import sys
from pathlib import Path

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(11)
loader = DataLoader(TensorDataset(torch.randn(24, 4)), batch_size=8, shuffle=True)
model = nn.Linear(4, 4)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
it = iter(loader)
iteration = 0
while True:
    try:
        (x,) = next(it)
    except StopIteration:
        it = iter(loader)
        (x,) = next(it)
    loss = (model(x) - x).pow(2).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    print(iteration, f"{loss.item():.6f}")
    iteration += 1
    if iteration % 4 == 0:
        torch.save(model, sys.argv[1] + ".model")
    if iteration >= 10:
        break
# One that goes on from behind the last save has saved nothing itself.
Path(sys.argv[1] + ".model").unlink(missing_ok=True)
digest.write(sys.argv[1], model=model, optimizer=optimizer)
