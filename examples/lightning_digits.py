"""A Lightning script as people write it; the one line of otf is the callback.

python examples/lightning_digits.py                  # in one terminal
otf dashboard                                        # in another: see it, hold it, change it
"""

import argparse

import lightning as L

from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small net on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--save-dir", default="otf_runs", help="where the run's folder is made")
    parser.add_argument("--dashboard", default="auto", help="auto, spawn, off, or host:port")
    args = parser.parse_args()

    L.seed_everything(7, verbose=False)
    model, data = LitDigits(lr=args.lr), Digits(batch_size=args.batch_size)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices=1,
        callbacks=[OnTheFlyCallback(save_dir=args.save_dir, dashboard=args.dashboard)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    accuracy = float(trainer.callback_metrics["test_acc"])
    print(f"test accuracy {accuracy:.3f} after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
