"""``otf-fit pkg.mod:Class``: a module without a loop, from the command line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otf_core.cli import otf_fit
from otf_core.state.checkpoint_file import read_checkpoint
from tests.exact.digest import exact

MODULE = '''
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    MADE = []


    class Net(nn.Module):
        """A line through points."""

        def __init__(self, lr: float = 0.1, width: int = 4, *, wide: bool = False,
                     words: list[str] | None = None, untyped=3):
            torch.manual_seed(3)
            super().__init__()
            MADE.append(self)
            self.given = {"lr": lr, "width": width, "wide": wide, "words": words,
                          "untyped": untyped}
            self.lr, self.batches = lr, 0
            self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.1), nn.Linear(width, 1))

        def training_step(self, batch, batch_idx):
            self.batches += 1
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.lr)


    class Data:
        def __init__(self, batch_size: int = 8):
            self.batch_size = batch_size

        def train_dataloader(self):
            x = torch.arange(160.0).reshape(40, 4) / 160
            return DataLoader(TensorDataset(x), self.batch_size, shuffle=True)


    NOTHING = 3
'''
Fit = Callable[..., Any]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Fit:
    """Types a command; returns its exit code, what it said, and the model it has made."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/points.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "pkg/broken.py").write_text("import there_is_no_such_thing\n")
    monkeypatch.setattr(sys, "path", sys.path[:])
    importlib.invalidate_caches()

    def typed(*argv: str) -> Any:
        for name in ("pkg", "pkg.points", "pkg.broken"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "argv", ["otf-fit", *argv])
        code: Any = 0
        try:
            otf_fit.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        assert out == ""
        made = getattr(sys.modules.get("pkg.points"), "MADE", None)
        return code, err, made[-1] if made else None

    yield typed
    for name in ("pkg", "pkg.points", "pkg.broken"):
        sys.modules.pop(name, None)


THIS = ("pkg.points:Net", "--data", "pkg.points:Data", "--max-epochs", "1", "--device", "cpu")


def test_arguments_are_those_of_the_signatures(fit: Fit) -> None:
    code, _, net = fit(
        *THIS, "--model.lr=0.5", "--model.width", "6", "--model.wide", "--data.batch_size", "20",
        "--model.words", "[a, b]",
    )  # fmt: skip
    assert code == 0
    assert net.given == {"lr": 0.5, "width": 6, "wide": True, "words": ["a", "b"], "untyped": 3}
    assert net.batches == 2
    _, _, net = fit("pkg.points:Net", "--data=pkg.points:Data", "--max_epochs=1", "--device=cpu")
    assert net.given == {"lr": 0.1, "width": 4, "wide": False, "words": None, "untyped": 3}
    assert net.batches == 5


@pytest.mark.parametrize(("asked", "batches"), [("1", 1), ("1.0", 5), ("0.5", 2), ("3", 3)])
def test_an_int_is_batches_and_a_float_a_share(asked: str, batches: int, fit: Fit) -> None:
    code, err, net = fit(*THIS, "--limit-train-batches", asked)
    assert (code, net.batches) == (0, batches), err


def test_yaml_is_taken_and_the_command_line_is_stronger(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "max_epochs: 3\nlimit_train_batches: 2\nmodel:\n  lr: 0.25\n  width: 3\n"
        "data:\n  batch_size: 4\n"
    )
    code, err, net = fit(
        "pkg.points:Net", "--data", "pkg.points:Data", "--device", "cpu",
        "--config", "run.yaml", "--model.width", "5",
    )  # fmt: skip
    assert code == 0, err
    assert (net.given["lr"], net.given["width"], net.batches) == (0.25, 5, 6)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--model.depth", "3"), "model.depth"),
        (("--max-epoch", "3"), "max_epoch"),
        (("--model.lr", "quick"), "lr"),
        (("--model.lr",), "lr"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--telemetry", "loud"), "telemetry"),
        (("--keep-checkpoints", "0"), "keep_checkpoints was asked to be 0; allowed: 1 or more"),
        (("--limit-val-batches", "1.5"), "limit_val_batches=1.5; allowed: an int, or a float"),
        (("--precision", "64-true"), "the Runner does not support precision"),
    ],
)
def test_what_is_not_allowed_is_said_and_nothing_is_trained(
    argv: tuple[str, ...], said: str, fit: Fit, tmp_path: Path
) -> None:
    code, err, _ = fit(*THIS, *argv)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "otf_runs").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere.points:Net", "there is no module 'nowhere' here or in "),
        ("pkg.nowhere:Net", "there is no module 'pkg.nowhere' here or in "),
        ("pkg.points:Nets", "found none; pkg.points has Net, Data"),
        ("pkg.points:NOTHING", "pkg.points has Net, Data"),
    ],
)
def test_a_class_that_is_not_there_is_said(place: str, said: str, fit: Fit) -> None:
    code, err, _ = fit(place)
    assert code == 2
    assert said in err
    code, err, _ = fit("pkg.points:Net", "--data", place)
    assert code == 2
    assert said in err


def test_an_import_error_of_the_module_is_its_own(fit: Fit) -> None:
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_thing"):
        fit("pkg.broken:Net")


def test_a_fit_that_the_runner_refuses_ends_with_3(fit: Fit) -> None:
    code, err, _ = fit("pkg.points:Net", "--max-epochs", "1")
    assert (code, "nobody has a loader to train with" in err) == (3, True)
    code, err, _ = fit(*THIS, "--resume", "gone.ckpt")
    assert (code, "where there is no file" in err) == (3, True)


def test_a_flag_alone_is_true(fit: Fit) -> None:
    code, err, net = fit(*THIS, "--pause-at-start", "--max-pause", "0.05", "--progress=false")
    assert (code, net.batches) == (0, 5), err


def weights(folder: Path, step: int) -> Any:
    [path] = folder.glob(f"*/*/checkpoints/{step}-final.ckpt")
    return exact(dict(read_checkpoint(path)[0]["state_dict"]))


def test_resume_auto_goes_on_exactly(fit: Fit, tmp_path: Path) -> None:
    assert fit(*THIS, "--max-epochs", "2", "--save-dir", "whole")[0] == 0
    parts = (*THIS, "--save-dir", "parts", "--resume", "auto", "--checkpoint-every", "3")
    code, _, net = fit(*parts, "--max-epochs", "-1", "--max-steps", "7")
    assert (code, net.batches) == (0, 7)
    code, err, net = fit(*parts, "--max-epochs", "2")
    assert (code, net.batches) == (0, 10), err
    assert "resumed from step 7" in err
    assert weights(tmp_path / "parts", 10) == weights(tmp_path / "whole", 10)


@pytest.mark.timeout(60)
def test_the_command_itself_needs_no_lightning(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(tmp_path), str(root / "src")))
    done = subprocess.run(
        [sys.executable, "-m", "otf_core.cli.otf_fit", *THIS],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "otf: Net epoch 0 ended at step 5: loss" in done.stderr
    assert (tmp_path / "otf_runs").is_dir()
