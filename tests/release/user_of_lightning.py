"""What a user writes; type-checked strictly against the installed package, and run."""

from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import otf_core
from otf_core.client import Client, Run, connect
from otf_core.runner import Runner
from otf_lightning import OnTheFlyCallback, attach_lightning, show

Batch = list[torch.Tensor]


class Line(L.LightningModule):
    """y = ax + b."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        (x,) = batch
        return torch.as_tensor(self.net(x)).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(torch.ones(32, 2)), batch_size=8)


def with_lightning() -> Path | None:
    callback = OnTheFlyCallback(run_name="line", checkpoint_every="10min", dashboard="off")
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(Line(), loader())
    return callback.run_dir


def with_the_runner() -> None:
    Runner(max_epochs=1, run_name="runner", dashboard="off").fit(Line(), loader())


def with_a_loop() -> int:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = 0
    with otf_core.attach(
        model=model, optimizer=optimizer, train_loader=loader(), run_name="loop", dashboard="off"
    ) as session:
        for _ in session.epochs(1):
            for (x,) in loader():
                loss: torch.Tensor = model(x).pow(2).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # of torch
                optimizer.step()
                steps += 1
                if session.tick(loss=loss):
                    break
    return steps


def from_elsewhere(run: Run) -> float:
    held = run.pause()
    run.set("lr", 1e-4, until=5000)
    run.resume()
    return float(held["step"])


def by_name(name: str) -> Run:
    return connect(name)


def of(client: Client, trainer: L.Trainer) -> list[str]:
    attach_lightning(trainer=trainer, telemetry="basic")
    show(height=400)
    return [str(session["session_id"]) for session in client.live_sessions()]


if __name__ == "__main__":
    where = with_lightning()
    if where is None or not list(where.glob("journal/*.jsonl")):
        raise SystemExit("no journal")
    with_the_runner()
    if with_a_loop() != 4:
        raise SystemExit("not 4 steps")
