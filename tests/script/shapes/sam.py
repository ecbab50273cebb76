"""An optimizer that steps another one inside its step, and shares its groups."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        moved = []
        for group in self.param_groups:
            for p in group["params"]:
                e = p.grad * group["rho"] / (p.grad.norm() + 1e-12)
                moved.append((p, e))
                p.data.add_(e)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, e in moved:
            p.data.sub_(e)
        self.base.step()


torch.manual_seed(14)
x = torch.randn(32, 4)
loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=8, shuffle=True)
model = nn.Linear(4, 1)
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
for epoch in range(2):
    for inputs, target in loader:

        def closure():
            loss = nn.functional.mse_loss(model(inputs), target)
            loss.backward()
            return loss

        loss = closure()
        optimizer.step(closure)
        optimizer.zero_grad()
        print(epoch, f"{loss.item():.6f}")
digest.write(sys.argv[1], model=model, optimizer=optimizer.base)
