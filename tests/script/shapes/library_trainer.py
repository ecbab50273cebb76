"""The loop that trains is a library's."""

import sys
from pathlib import Path

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.append(str(Path(__file__).parents[1] / "libraries"))
import prefetch

torch.manual_seed(0)
data = TensorDataset(torch.randn(24, 4), torch.randint(2, (24,)))
net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
loader = DataLoader(data, batch_size=4, shuffle=True)
trainer = prefetch.Trainer(net, optimizer, loader, DataLoader(data, batch_size=8))
trainer.train(2)
digest.write(sys.argv[1], net=net, optimizer=optimizer)
