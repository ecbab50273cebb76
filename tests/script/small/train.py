"""A script as people write it; ``seen`` is the test's eye, which a real one has not."""

import seen
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.testing.own import Net, data

model = Net(seen.width)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
loader = DataLoader(data(48, 1), batch_size=8, shuffle=True)
val_loader = DataLoader(data(16, 2), batch_size=8)
losses = []
seen.watch(model, optimizer, schedule, losses)

for _epoch in range(seen.epochs):
    model.train()
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        val_loss = sum(nn.functional.cross_entropy(model(x), y) for x, y in val_loader)
