"""A small real model on real data, for the demo, the examples and the tests of users.

scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, ten classes, part of the package.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

CLASSES = 10


class LitDigits(L.LightningModule):
    """A convolutional net with BatchNorm and dropout.

    Shapes: images_B1HW (8 x 8, values 0 to 1) to logits_BC with C = 10.

    Args:
        lr: of Adam, decayed by a cosine over the whole run.
        width: channels of the first layer.
    """

    def __init__(self, lr: float = 2e-3, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * 16, CLASSES),
        )
        self.loss = nn.CrossEntropyLoss()
        self.train_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.val_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.test_acc = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, images_B1HW: torch.Tensor) -> torch.Tensor:  # noqa: N803 -- shape letters
        logits_BC: torch.Tensor = self.net(images_B1HW)  # noqa: N806 -- shape letters
        return logits_BC

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "train", self.train_acc)

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "val", self.val_acc)

    def test_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "test", self.test_acc)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _step(self, batch: Any, name: str, accuracy: MulticlassAccuracy) -> torch.Tensor:
        images, labels = batch
        logits = self(images)
        loss: torch.Tensor = self.loss(logits, labels)
        accuracy(logits, labels)
        self.log(f"{name}_loss", loss, prog_bar=True)
        self.log(f"{name}_acc", accuracy, prog_bar=True)
        return loss


class Digits(L.LightningDataModule):
    """The digits, split by a fixed seed into 1,257 to train, 270 to validate, 270 to test."""

    def __init__(self, batch_size: int = 32, seed: int = 1234) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        """Load and split; the same for every stage.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed; it brings the images.
        """
        try:
            from sklearn.datasets import load_digits  # noqa: PLC0415, RUF100 -- only who uses it needs it
        except ModuleNotFoundError as error:
            msg = f"the digits are scikit-learn's, found no {error.name}: pip install scikit-learn"
            raise ModuleNotFoundError(msg, name=error.name) from error

        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(
            torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0,
            torch.tensor(labels),
        )
        split = torch.Generator().manual_seed(self.seed)
        self.train, self.val, self.test = random_split(data, [1257, 270, 270], generator=split)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 90)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, 90)
