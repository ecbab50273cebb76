"""Leaves in mid-epoch as its first argument says: by an exit, an error, or an interrupt."""

import atexit
import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def leave(how):
    for way in how.split(","):
        if way == "exit":
            sys.exit(3)
        elif way == "zero":
            sys.exit(0)
        elif way == "words":
            sys.exit("no more data")
        elif way == "error":
            raise RuntimeError("a step has failed")
        elif way == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif way == "term":
            os.kill(os.getpid(), signal.SIGTERM)


def main():
    torch.manual_seed(24)
    x = torch.randn(40, 3)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        for step, (inputs,) in enumerate(DataLoader(TensorDataset(x), batch_size=4)):
            optimizer.zero_grad()
            (model(inputs) - inputs).pow(2).mean().backward()
            optimizer.step()
            if step == 3:
                leave(sys.argv[1])
    finally:
        print("finally")


atexit.register(print, "atexit")
main()
