"""Trains in a thread that outlives the main module; another one uses a loader meanwhile."""

import sys
import threading

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(21)
x = torch.randn(24, 3)
model = nn.Linear(3, 3)
began, looked = threading.Event(), threading.Event()


def train():
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        for (inputs,) in DataLoader(TensorDataset(x), batch_size=8):
            optimizer.zero_grad()
            (model(inputs) - inputs).pow(2).mean().backward()
            optimizer.step()
            began.set()
            looked.wait(20)
    threading.main_thread().join()
    digest.write(sys.argv[1], model=model, optimizer=optimizer)


threading.Thread(target=train).start()
began.wait(20)
print(sum(len(inputs) for (inputs,) in DataLoader(TensorDataset(x), batch_size=5)))
looked.set()
