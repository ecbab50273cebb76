"""An optimizer that asks for the loss itself, several times a step."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(4)
x = torch.linspace(-1, 1, 32).unsqueeze(1)
loader = DataLoader(TensorDataset(x, torch.sin(3 * x)), batch_size=16)
model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
opt = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
for epoch in range(3):
    for inputs, target in loader:

        def closure(inputs=inputs, target=target):
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), target)
            loss.backward()
            return loss

        loss = opt.step(closure)
        print(f"{epoch} {loss.item():.6f}")
digest.write(sys.argv[1], model=model, opt=opt)
