"""``OTF_AUTO=1``: every Trainer has the callback, and no script has a line of otf."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities import registry

from otf_core import auto
from otf_lightning import OnTheFlyCallback, attach_lightning
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val

ROOT = Path(__file__).resolve().parents[2]
GROUP = "lightning.pytorch.callbacks_factory"


def declared(group: str = GROUP) -> dict[str, str]:
    """The entry points that an installation has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = project["entry-points"][group]
    return found


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Have Lightning find it as an installation does; so many times."""

    def install(n: int) -> None:
        points = [EntryPoint(name, value, GROUP) for name, value in declared().items()] * n
        monkeypatch.setattr(
            registry, "entry_points", lambda group: points if group == GROUP else []
        )

    install(1)
    monkeypatch.setenv("OTF_AUTO", "1")
    options = {"save_dir": str(tmp_path / "runs"), "dashboard": "off", "project": "auto"}
    monkeypatch.setenv("OTF_OPTIONS", json.dumps(options))
    return install


def runs(tmp_path: Path) -> list[str]:
    return sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("run.json"))


def own(tmp_path: Path) -> OnTheFlyCallback:
    return OnTheFlyCallback("mine", "own", save_dir=tmp_path / "runs", dashboard="off")


ASKED = """
import os, sys
import lightning as L
L.Trainer(accelerator="cpu", logger=False)
assert not {name for name in sys.modules if name.startswith("otf_lightning")}
print(sorted(name for name in sys.modules if name.startswith("otf_core")))
os.environ["OTF_AUTO"] = "1"
trainer = L.Trainer(accelerator="cpu", logger=False)
print([type(c).__name__ for c in trainer.callbacks if hasattr(c, "is_otf")])
"""


@pytest.mark.timeout(180)
def test_an_installation_is_found_and_does_nothing_unless_asked(tmp_path: Path) -> None:
    groups = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
    lines = [f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in declared(g).items()) for g in groups]
    info = tmp_path / "otf_lightning-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otf-lightning\nVersion: 0.2.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    env.pop("OTF_AUTO", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASKED],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['otf_core', 'otf_core.auto']", "['AutoCallback']"]
    said = [line for line in done.stderr.splitlines() if "otf" in line.lower()]
    assert said == ["Adding 1 callbacks from entry point 'otf': AutoCallback"]  # by Lightning
    assert [path.name for path in tmp_path.iterdir()] == [info.name]


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_nothing_else_turns_it_on(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTF_OPTIONS", "not even read")
    monkeypatch.delenv("OTF_AUTO", raising=False)
    if value is not None:
        monkeypatch.setenv("OTF_AUTO", value)
    assert auto.callbacks() == []
    assert auto.callbacks_elsewhere() == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("times")
def test_a_script_without_a_line_of_otf_is_a_run_and_trains_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    found = digest.of(_fit([], Net()))
    monkeypatch.delenv("OTF_AUTO")
    torch.manual_seed(3)
    bare = digest.of(_fit([], Net()))

    assert runs(tmp_path) == ["runs/auto/Net"]
    assert found == bare


@pytest.mark.parametrize("installed", [1, 2])
def test_it_gives_way_to_the_scripts_own(
    installed: int, times: Callable[[int], None], tmp_path: Path
) -> None:
    times(installed)
    _fit([own(tmp_path)], Net())
    assert runs(tmp_path) == ["runs/mine/own"]


@pytest.mark.usefixtures("times")
def test_it_gives_way_to_one_that_the_module_brings(tmp_path: Path) -> None:
    class Brings(Net):
        def configure_callbacks(self) -> list[L.Callback]:
            return [own(tmp_path)]

    _fit([], Brings())
    assert runs(tmp_path) == ["runs/mine/own"]


@pytest.mark.usefixtures("times")
def test_it_gives_way_to_one_that_is_attached(tmp_path: Path) -> None:
    trainer, model = _trainer([]), Net()
    attach_lightning(
        trainer=trainer, project="mine", run_name="own", save_dir=tmp_path / "runs", dashboard="off"
    )
    trainer.fit(model, _train(), _val())
    assert runs(tmp_path) == ["runs/mine/own"]


def test_installed_twice_there_is_one_run(times: Callable[[int], None], tmp_path: Path) -> None:
    times(2)
    _fit([], Net())
    assert runs(tmp_path) == ["runs/auto/Net"]


@pytest.mark.usefixtures("times")
def test_a_fit_that_fails_beside_the_scripts_own_leaves_nothing_behind(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        _fit([own(tmp_path)], Fails())
    assert runs(tmp_path) == ["runs/mine/own"]


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("every 10min", "OTF_OPTIONS was asked to be 'every 10min'; allowed: a JSON object"),
        ("[1]", "OTF_OPTIONS was asked to be '[1]'; allowed: a JSON object"),
        ('{"chekpoint_every": 5}', "OTF_OPTIONS has chekpoint_every; allowed: project, run_name"),
        ('{"telemetry": "some"}', "telemetry was asked to be 'some'; allowed: full, basic, off"),
    ],
)
def test_options_that_are_not_allowed_are_refused_with_those_that_are(
    options: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTF_OPTIONS", options)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- its text is compared below
        _trainer([])
    assert str(refused.value).startswith(said)


def test_a_trainer_of_another_package_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert declared("pytorch_lightning.callbacks_factory") == {
        "otf": "otf_core.auto:callbacks_elsewhere"
    }
    monkeypatch.setenv("OTF_AUTO", "1")
    assert auto.callbacks_elsewhere() == []
    assert "allowed: a Trainer of lightning" in capsys.readouterr().err


def test_two_of_a_script_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was given 2 callbacks of otf; allowed: one"):
        _fit([own(tmp_path), own(tmp_path)], Net())
    assert not runs(tmp_path)


SCRIPT = """
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
L.Trainer(accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False,
          enable_progress_bar=False, enable_model_summary=False).fit(BoringModel())
"""


@pytest.mark.long
@pytest.mark.timeout(180)
def test_otf_fit_names_the_better_way_for_a_lightning_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "otf_core.cli.otf_fit", "--dashboard", "off", "train.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path,
        capture_output=True, text=True, check=True, timeout=170,
    )  # fmt: skip
    assert "not from these; OTF_AUTO=1 with python in place of otf-fit is exact" in done.stderr


def test_digits_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    from otf_lightning.digits import Digits

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        Digits().setup("fit")
