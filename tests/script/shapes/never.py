"""Only evaluates."""

import sys

import digest
import torch
from torch import nn

torch.manual_seed(23)
model = nn.Linear(3, 3)
with torch.no_grad():
    print(f"{model(torch.ones(2, 3)).sum().item():.6f}")
digest.write(sys.argv[1], model=model)
