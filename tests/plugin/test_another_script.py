"""A run goes on in a script, or on a machine, where not all is as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, Dataset

from otf_core.state.data_tap import settled, tap, with_given
from otf_core.state.given import given, settle, unchanged
from otf_core.state.plain_values import Encoder
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, _val, digits
from tests.plugin.rig import unlogged


class Files(Dataset[Any]):
    """Rows that lie in a folder, one file each; counts what it has read."""

    def __init__(self, root: Path, *, size: int = 192, shuffled: int | None = None) -> None:
        self.root, self.folder, self.phase = root, str(root), "easy"
        self.files = [f"{root}/{i}.pt" for i in range(size)]
        if shuffled is not None:
            random.Random(shuffled).shuffle(self.files)
        self.read = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        assert Path(self.folder) == self.root
        self.read += 1
        if self.read == 20:
            self.phase = "hard"
        x, y = torch.load(self.files[i], weights_only=True)
        return x * (1.5 if self.phase == "hard" else 1.0) + 1e-4 * self.read, y


def stage(root: Path) -> Path:
    root.mkdir(parents=True)
    for i, row in enumerate(digits(192)):
        torch.save(row, root / f"{i}.pt")
    return root


class Patient(Net):
    def __init__(self, limit: int = 7, name: str = "a") -> None:
        super().__init__()
        self.limit, self.label, self.steps = limit, name, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return super().training_step(batch, batch_idx)


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def fit(
    data: Files, workers: int, *callbacks: L.Callback, net: L.LightningModule | None = None
) -> L.Trainer:
    torch.manual_seed(3)
    trainer = _trainer(list(callbacks))
    loader = DataLoader(data, batch_size=16, shuffle=True, num_workers=workers)
    trainer.fit(net or Patient(), loader, _val())
    return trainer


def ours(save_dir: Path, **options: Any) -> OnTheFlyCallback:
    return OnTheFlyCallback(
        "p", "r", save_dir=save_dir / "runs", dashboard="off", checkpoint_every=5, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_may_lie_somewhere_else_by_now(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = stage(tmp_path / "job-1"), stage(tmp_path / "job-2")
    expected = digest.of(fit(Files(first), workers))
    with pytest.raises(SystemExit):
        fit(Files(first), workers, ours(tmp_path), StopAt(8))
    for file in first.iterdir():
        file.unlink()

    data = Files(other)
    found = digest.of(fit(data, workers, ours(tmp_path, resume="auto")))

    assert unlogged(found) == unlogged(expected)
    assert data.root == other
    err = capfd.readouterr().err
    assert f"exact except dataset.root, which is '{other}' here (it was '{first}')" in err
    assert "dataset.files, which is another here" in err
    assert "phase" not in err, "the run has changed it"


def test_the_same_files_in_another_order_go_on_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = stage(tmp_path / "data")
    expected = digest.of(fit(Files(root, shuffled=1), 0))
    with pytest.raises(SystemExit):
        fit(Files(root, shuffled=1), 0, ours(tmp_path), StopAt(8))
    found = digest.of(fit(Files(root, shuffled=2), 0, ours(tmp_path, resume="auto")))
    assert unlogged(found) == unlogged(expected)
    assert "otf: dataset.files goes on as saved" in capfd.readouterr().err


def test_numbers_go_on_as_saved_and_text_is_the_scripts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = stage(tmp_path / "data")

    def stopper(patience: int) -> EarlyStopping:
        return EarlyStopping("val_loss", patience=patience)

    with pytest.raises(SystemExit):
        fit(Files(root), 0, stopper(3), ours(tmp_path), StopAt(8))
    net = Patient(limit=9, name="b")
    trainer = fit(Files(root), 0, stopper(5), ours(tmp_path, resume="auto"), net=net)
    assert (net.limit, net.label, net.steps) == (7, "b", 24)
    assert trainer.early_stopping_callback.patience == 3
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("otf: ")]
    assert "otf: EarlyStopping.patience goes on as saved: 3 (the script has 5)" in said
    assert "otf: limit goes on as saved: 7 (the script has 9)" in said
    assert any("label, which is 'b' here (it was 'a')" in line for line in said)


def test_what_a_run_has_changed_is_not_the_scripts() -> None:
    enc = Encoder()
    script = {"a": "x", "b": "x", "n": 1, "path": Path("p"), "l": ["u", "v"], "t": [1, 2]}
    first = given({"of": {name: enc(value) for name, value in script.items()}})
    assert sorted(first["of"]) == ["a", "b", "l", "n", "path"]
    now = {"of": {**first["of"], "a": "y"}}
    assert sorted(unchanged(first, now)["of"]) == ["b", "l", "n", "path"]
    here = given({"of": {"b": "z", "n": 2, "l": ["v", "u"], "path": enc(Path("q"))}})
    found = settle(unchanged(first, now), here)
    assert sorted(name for _, name in found.text) == ["b", "path"]
    assert found.told_numbers == [
        "of.n goes on as saved: 1 (the script has 2)",
        "of.l goes on as saved: ['u', 'v'] (the script has ['v', 'u'])",
    ]


def test_a_position_keeps_what_is_not_the_scripts() -> None:
    class Rows(Dataset[Any]):
        def __init__(self, name: str) -> None:
            self.name, self.n = name, 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> int:
            return i

    one, two = (tap(DataLoader(Rows(name))) for name in "ab")
    one.dataset.n = 5
    state, differ = settled(two, with_given(one, one.otf_state()))  # type: ignore[attr-defined]
    assert state["around"]["data"]["dataset"] == {"name": "b", "n": 5}
    assert differ.told_text == ["dataset.name, which is 'b' here (it was 'a')"]
