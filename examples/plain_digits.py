"""A training script as people write it, with no trace of otf.

python examples/plain_digits.py                      # trains
otf-fit examples/plain_digits.py                     # trains as well; can be seen, held, changed
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def digits(batch_size: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(
        torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16,
        torch.tensor(labels),
    )
    split = torch.Generator().manual_seed(1234)
    train, val, test = random_split(data, [1257, 270, 270], generator=split)
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, 90), DataLoader(test, 90)


def accuracy(net: nn.Module, loader: DataLoader) -> float:
    net.eval()
    with torch.no_grad():
        hits = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in loader)
    net.train()
    return hits / len(loader.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small net on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    torch.manual_seed(7)
    train, val, test = digits(args.batch_size)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16 * 16, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train))
    for epoch in range(args.epochs):
        for images, labels in train:
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}, accuracy {accuracy(net, val):.3f}")
    print(f"test accuracy {accuracy(net, test):.3f}")


if __name__ == "__main__":
    main()
