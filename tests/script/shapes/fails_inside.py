"""Errors that come through the loader and through backward."""

import sys

import torch
from torch.utils.data import DataLoader, Dataset


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise KeyError("sample 2")
        return torch.ones(2)


w = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([w], lr=0.1)
try:
    for x in DataLoader(Broken()):
        (w * x).sum().backward()
        optimizer.step()
except KeyError as error:
    print(type(error).__name__)
if sys.argv[1] == "backward":
    (w * 2).backward()
for x in DataLoader(Broken()):
    pass
