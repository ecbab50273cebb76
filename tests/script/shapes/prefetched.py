"""A library's wrappers: a loader that fetches ahead, an accumulation over an uneven number of
batches, and an evaluation that asks its loader with gradients on.
"""

import sys
from pathlib import Path

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.append(str(Path(__file__).parents[1] / "libraries"))
import prefetch

torch.manual_seed(0)
data = TensorDataset(torch.randn(28, 4), torch.randint(2, (28,)))
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
loader = DataLoader(data, batch_size=4, shuffle=True)
validation = prefetch.Loader(DataLoader(data, batch_size=7))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
accumulation = prefetch.Accumulation(3)
optimizer, loader, scheduler = accumulation.prepare(optimizer, loader, scheduler)
for epoch in range(3):
    model.train()
    for x, y in loader:
        with accumulation.batch():
            loss = nn.functional.cross_entropy(model(x), y) / accumulation.n
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        print(f"{epoch} {loss.item():.6f} {optimizer.param_groups[0]['lr']:.5f}")
    model.eval()
    right = 0
    for x, y in validation:
        with torch.no_grad():
            right += int((model(x).argmax(1) == y).sum())
    print(f"{epoch} {right}")
digest.write(sys.argv[1], model=model, optimizer=optimizer.optimizer)
