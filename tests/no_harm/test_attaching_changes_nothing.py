"""Attaching changes nothing: bit for bit, for every kind of run, whoever is at the other end."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm.std import tqdm

from otf_core.telemetry.metrics import METRICS
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import CASES, Net, Tape
from tests.no_harm.peers import PEERS

GPU_ONLY = {"mem_vram", "gpu_util"}
# What a kind of run cannot have, and why.
WITHOUT = {
    "barebones": {"val_loss", "accuracy", "metrics"},  # Lightning logs nothing there
    "manual_with_two_optimizers": {"accuracy"},  # its module logs none
    "max_time": {"val_loss", "accuracy"},
    "max_steps": set(),
}


@pytest.fixture(autouse=True)
def _no_thread_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning-rate finder's progress bar starts one that outlives it."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def seeded(case: str, callbacks: list[Any], tmp: Path) -> Any:
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    tmp.mkdir(parents=True, exist_ok=True)
    return CASES[case](callbacks, tmp)


@functools.cache
def bare(case: str, tmp: Path) -> Any:
    return digest.of(seeded(case, [], tmp))


@pytest.fixture(scope="session")
def bare_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bare")


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_with_and_without(
    case: str, peer: str, tmp_path: Path, bare_dir: Path
) -> None:
    with PEERS[peer]() as address:
        callback = OnTheFlyCallback(save_dir=tmp_path / "runs", dashboard=address)
        attached = digest.of(seeded(case, [callback], tmp_path / "attached"))

    expected = bare(case, bare_dir / case)
    for part, value in expected.items():
        assert attached[part] == value, part
    journals = sorted((tmp_path / "runs").glob("*/*/journal/*.jsonl"))
    told = [[json.loads(line) for line in j.read_text().splitlines()] for j in journals]
    steps = [[e for e in run if e["type"] == "trainStep"] for run in told]
    assert any(steps), "nothing was attached"
    for run, its_steps in zip(told, steps, strict=True):
        assert [e["event_seq"] for e in run] == list(range(1, len(run) + 1))
        first = its_steps[0]["step"] if its_steps else 1
        assert [e["step"] for e in its_steps] == [first + n for n in range(len(its_steps))]
    assert steps[-1][-1]["global_step"] == attached["steps"][0]
    seen = {name for run in steps for e in run for name, v in e.items() if v not in (None, {})}
    wanted = {m.name for m in METRICS} - GPU_ONLY - WITHOUT.get(case, set())
    assert wanted <= seen


def test_the_digest_sees_one_changed_bit(tmp_path: Path) -> None:
    """The comparison above could fail: a draw, a weight, a logged value would show."""
    trainer = seeded("epochs", [], tmp_path / "a")
    before = digest.of(trainer)
    torch.rand(())
    assert digest.of(trainer)["torch"] != before["torch"]
    model = trainer.lightning_module
    assert isinstance(model, Net)
    with torch.no_grad():
        model.net[0].weight[0, 0] += 1e-7
    assert digest.of(trainer)["weights"] != before["weights"]
    assert isinstance(trainer.logger, Tape)
    trainer.logger.lines.pop()
    assert digest.of(trainer)["logged"] != before["logged"]
