"""A training loop of plain PyTorch that writes down when its steps began: python, or otf-fit.

python benchmarks/tiny_script.py STEPS FILE
"""

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    steps, path = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    order = (torch.arange(16 * steps) % 128).tolist()
    data = TensorDataset(torch.randn(128, 64), torch.randint(0, 10, (128,)))
    clocks = np.zeros((3, steps))
    for n, (x, y) in enumerate(DataLoader(data, 16, sampler=order)):
        clocks[:, n] = time.thread_time(), time.perf_counter(), time.process_time()
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.save(path, np.diff(clocks))


if __name__ == "__main__":
    main()
