"""A compiled model that goes through a loop in a function of the script, and no DataLoader."""

import sys

import digest
import torch
from torch import nn

torch.manual_seed(17)


def mix(layers, x):
    for n, layer in enumerate(layers):
        x = torch.relu(layer(x)) + n
    return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        return mix(self.layers, x)


net = Net()
model = torch.compile(net, backend="aot_eager", fullgraph=True)
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
x = torch.randn(24, 4)
for step in range(6):
    optimizer.zero_grad()
    loss = (model(x[step * 4 : step * 4 + 4]) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        print(step, f"{loss.item():.6f} {model(x[:4]).sum().item():.6f}")
digest.write(sys.argv[1], net=net, optimizer=optimizer)
