"""A trainer class with meters, two progress bars inside one another, and averaged weights."""

import sys

import digest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


class Meter:
    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value, n):
        self.sum += value * n
        self.count += n

    @property
    def mean(self):
        return self.sum / max(self.count, 1)


class Trainer:
    def __init__(self, model, loader, lr):
        self.model, self.loader = model, loader
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.average = AveragedModel(model)
        self.history = []

    def train_epoch(self, epoch):
        meter = Meter()
        for x, y in tqdm(self.loader, desc=f"epoch {epoch}", leave=False, mininterval=0):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.average.update_parameters(self.model)
            meter.update(loss.item(), len(x))
        self.scheduler.step()
        self.history.append(meter.mean)

    def fit(self, epochs):
        for epoch in tqdm(range(epochs), mininterval=0):
            self.train_epoch(epoch)
            print(f"epoch {epoch}: {self.history[-1]:.6f}")


torch.manual_seed(10)
x = torch.randn(40, 3)
trainer = Trainer(
    nn.Linear(3, 1), DataLoader(TensorDataset(x, x[:, :1]), batch_size=8, shuffle=True), 0.1
)
trainer.fit(3)
digest.write(
    sys.argv[1],
    model=trainer.model,
    average=trainer.average,
    optimizer=trainer.optimizer,
    scheduler=trainer.scheduler.state_dict(),
    history=trainer.history,
)
