"""BatchNorm, dropout, a cosine schedule, a validation, and the best weights kept."""

import copy
import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
EPOCHS = 3
x = torch.randn(48, 6)
y = (x.sum(1) > 0).long()
train = DataLoader(TensorDataset(x[:32], y[:32]), batch_size=8, shuffle=True)
val = DataLoader(TensorDataset(x[32:], y[32:]), batch_size=8)
net = nn.Sequential(
    nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train))
best, best_weights = float("inf"), None
for epoch in range(EPOCHS):
    net.train()
    total = 0.0
    for i, (inputs, labels) in enumerate(train):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
        print(f"epoch {epoch} batch {i} loss {loss.item():.6f} lr {scheduler.get_last_lr()[0]:.6f}")
    net.eval()
    with torch.no_grad():
        val_loss = sum(nn.functional.cross_entropy(net(a), b).item() for a, b in val) / len(val)
    if val_loss < best:
        best, best_weights = val_loss, copy.deepcopy(net.state_dict())
    print(f"epoch {epoch} train {total / len(train):.6f} val {val_loss:.6f} best {best:.6f}")
digest.write(sys.argv[1], net=net, optimizer=optimizer, best=best_weights)
