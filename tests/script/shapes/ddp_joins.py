"""Two ranks of which one has more batches than the other, within join()."""

import os
import sys

import digest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

KEPT = []


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(13)
    x = torch.randn(12 + 8 * rank, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    model = DistributedDataParallel(nn.Linear(4, 1))
    KEPT.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        with model.join():
            for inputs, target in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), target).backward()
                optimizer.step()
    digest.write(f"{sys.argv[1]}.{os.environ['RANK']}", model=model)


if __name__ == "__main__":
    main()
