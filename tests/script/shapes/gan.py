"""Two networks and two optimizers in a class; the critic steps twice a batch."""

import sys

import digest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, z):
        return self.net(z)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


class Wgan:
    def __init__(self):
        self.g, self.c = Generator(), Critic()
        self.opt_g = torch.optim.RMSprop(self.g.parameters(), lr=5e-3)
        self.opt_c = torch.optim.RMSprop(self.c.parameters(), lr=5e-3)
        self.losses = []

    def critic_step(self, real):
        self.opt_c.zero_grad()
        fake = self.g(torch.randn(len(real), 3)).detach()
        loss = self.c(fake).mean() - self.c(real).mean()
        loss.backward()
        self.opt_c.step()
        with torch.no_grad():
            for p in self.c.parameters():
                p.clamp_(-0.1, 0.1)
        return loss.item()

    def train(self, loader, epochs):
        for epoch in range(epochs):
            for (real,) in loader:
                for _ in range(2):
                    c = self.critic_step(real)
                self.opt_g.zero_grad()
                g = -self.c(self.g(torch.randn(len(real), 3))).mean()
                g.backward()
                self.opt_g.step()
                self.losses.append((c, g.item()))
            print(
                f"epoch {epoch}: critic {self.losses[-1][0]:.6f} generator {self.losses[-1][1]:.6f}"
            )


torch.manual_seed(3)
gan = Wgan()
gan.train(DataLoader(TensorDataset(torch.randn(32, 2) + 2), batch_size=8, shuffle=True), 3)
digest.write(sys.argv[1], g=gan.g, c=gan.c, opt_g=gan.opt_g, opt_c=gan.opt_c, losses=gan.losses)
