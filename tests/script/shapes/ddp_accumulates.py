"""Two ranks, each with random numbers of its own; some micro-batches do not synchronise."""

import contextlib
import os
import random
import signal
import sys

import digest
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import otf_core

KEPT = []  # gloo's threads may still let go of tensors when the last reference to a group goes
MICRO = int(os.environ.get("MICRO", "1"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x)


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(13)
    x = torch.randn(64, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    sampler = DistributedSampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    model = DistributedDataParallel(Net())
    KEPT.append(model)
    large = torch.full((600, 600), float(os.environ.get(f"LARGE_{rank}", "0")))
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(100 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    step, losses = 0, [large.mean().item()]
    if os.environ.get("FAILS") == str(rank):
        otf_core.register("nothing", lambda: os.stat("/nowhere") if step == 2 else 0, print)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for n, (inputs, target) in enumerate(loader, start=1):
            steps = n % MICRO == 0
            with contextlib.nullcontext() if steps else model.no_sync():
                noise = 0.01 * random.random() + 0.01 * np.random.rand()
                loss = nn.functional.mse_loss(model(inputs + noise), target) / MICRO
                loss.backward()
            losses.append(loss.item())
            if not steps:
                continue
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if os.environ.get("KILLED") in (f"{rank}:{step}", f"all:{step}"):
                os.kill(os.getpid(), signal.SIGKILL)
            mean = torch.tensor([losses[-1]])
            dist.all_reduce(mean)
            if rank == 0:
                print(step, epoch, f"{mean.item():.8f}", flush=True)
    digest.write(
        f"{sys.argv[1]}.{rank}",
        model=model,
        optimizer=optimizer,
        losses=losses,
        calls=model.module.calls,
    )


if __name__ == "__main__":
    main()
