"""Strategies by name and by class: they are their parents, and keep clocks."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

import otf_lightning
from otf_lightning import strategies
from otf_lightning.strategies import PHASES, PhaseClocks, register
from tests.no_harm import digest
from tests.no_harm.configs import Net, _train, _trainer, _val

CLASSES = {
    otf_lightning.OTFSingleDeviceStrategy: SingleDeviceStrategy,
    otf_lightning.OTFDDPStrategy: DDPStrategy,
    otf_lightning.OTFFSDPStrategy: FSDPStrategy,
    otf_lightning.OTFModelParallelStrategy: ModelParallelStrategy,
    otf_lightning.OTFFSDP2Strategy: ModelParallelStrategy,
}


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", **{**quiet, **options})


def test_every_name_of_the_parents_has_one_with_the_same_arguments() -> None:
    parents = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy)
    plain = {name: row for name, row in StrategyRegistry.items() if row["strategy"] in parents}
    assert {"ddp", "ddp_spawn", "ddp_notebook", "fsdp_cpu_offload", "single_device"} <= set(plain)
    for name, row in plain.items():
        ours = StrategyRegistry[f"otf_{name}"]
        assert issubclass(ours["strategy"], row["strategy"])
        assert ours["init_params"] == row["init_params"]
    found = {name for name in StrategyRegistry if name.startswith("otf_")}
    assert found == {f"otf_{name}" for name in plain} | {"otf_model_parallel", "otf_fsdp2"}


@pytest.mark.parametrize("ours", CLASSES)
def test_a_class_takes_the_arguments_of_its_parent(ours: Any) -> None:
    parent = inspect.signature(CLASSES[ours].__init__).parameters
    assert list(inspect.signature(ours.__init__).parameters) == list(parent)
    assert pickle.loads(pickle.dumps(ours)) is ours  # a spawned process looks for it


def test_a_name_may_be_written_in_capitals_and_is_unknown_before_the_import() -> None:
    assert isinstance(trainer(strategy="OTF_DDP").strategy, otf_lightning.OTFDDPStrategy)
    row = StrategyRegistry.pop("otf_ddp")
    try:
        with pytest.raises(ValueError, match="invalid strategy name: `strategy='otf_ddp'`"):
            trainer(strategy="otf_ddp")
    finally:
        register()
    assert StrategyRegistry["otf_ddp"] == row


def test_a_single_device_is_that_of_the_accelerator_where_none_is_given() -> None:
    plain = StrategyRegistry.get("otf_single_device")
    assert plain.root_device == torch.device("cpu")
    plain.parallel_devices = [torch.device("cuda", 3)]
    assert plain.root_device == torch.device("cuda", 3)
    given = otf_lightning.OTFSingleDeviceStrategy("cuda:1")
    given.parallel_devices = [torch.device("cuda", 0)]
    assert given.root_device == torch.device("cuda", 1)
    assert trainer(strategy="otf_single_device").strategy.root_device == torch.device("cpu")


@pytest.mark.parametrize("how", ["otf_fsdp", "otf_fsdp_cpu_offload", "class"])
def test_fsdp_is_refused_on_the_cpu_in_the_words_of_lightning(how: str) -> None:
    said = []
    asked: Any = otf_lightning.OTFFSDPStrategy() if how == "class" else how
    for strategy in ("fsdp", asked):
        with pytest.raises(ValueError, match="requires a GPU accelerator") as caught:
            trainer(strategy=strategy, devices=2)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_fsdp_is_made_where_there_is_a_gpu() -> None:
    strategy = otf_lightning.OTFFSDPStrategy(cpu_offload=True, sharding_strategy="SHARD_GRAD_OP")
    strategy.accelerator = CUDAAccelerator()
    strategy.cluster_environment = L.fabric.plugins.environments.LightningEnvironment()
    strategy.parallel_devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    strategy._configure_launcher()
    assert strategy.launcher is not None
    assert strategy.cpu_offload.offload_params


@pytest.mark.parametrize("name", ["otf_model_parallel", "otf_fsdp2"])
def test_a_precision_is_refused_by_name_as_lightning_does_by_instance(name: str) -> None:
    said = []
    for strategy in (ModelParallelStrategy(), name):
        with pytest.raises(ValueError, match="does not support") as caught:
            trainer(strategy=strategy, devices=2, precision="64-true")
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert trainer(strategy=name, devices=2, precision="bf16-true").strategy.clocks.on


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, (8, 1)), ({"tensor_parallel_size": 2}, (4, 2)), ({"data_parallel_size": 2}, (2, 1))],
)
def test_fsdp2_is_data_parallel_over_all_ranks(
    given: dict[str, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda _: None)
    strategy = otf_lightning.OTFFSDP2Strategy(**given)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 4, 2
    strategy.setup_environment()
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == expected


# Clocks.


def test_a_moment_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0, 10, 14, 20, 23, 100])
    monkeypatch.setattr(strategies.time, "perf_counter_ns", lambda: next(now) * 10**9)
    clocks = PhaseClocks()
    outer = clocks.switch("optimizer")
    closure = clocks.switch(None)
    forward = clocks.switch("forward")
    clocks.switch(forward)
    clocks.switch(closure)
    clocks.switch(outer)
    assert (outer, closure, forward) == (None, "optimizer", None)
    totals = clocks.totals()
    assert totals == {**dict.fromkeys(PHASES, 0.0), "optimizer": 10.0 + 77.0, "forward": 6.0}
    clocks.reset()
    assert set(clocks.totals().values()) == {0.0}


def test_only_what_belongs_to_the_step_of_a_batch_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0]
    monkeypatch.setattr(strategies.time, "perf_counter_ns", lambda: now_s[0] * 10**9)

    class Base:
        lightning_module = None

        def takes(self, seconds: int) -> None:
            now_s[0] += seconds

        batch_to_device = training_step = backward = barrier = reduce = takes

        def optimizer_step(self, seconds: int, closure: Any) -> None:
            closure()
            now_s[0] += seconds

    clocked = strategies.with_clocks(Base, "Clocked")()
    clocked.training_step(100)  # a check of health: no batch was fetched for it
    clocked.clocks.fetched(None)
    clocked.batch_to_device(1)

    def closure() -> None:
        clocked.training_step(2)
        now_s[0] += 50  # gradients are set to zero, hooks are called
        clocked.backward(4)

    clocked.optimizer_step(8, closure)
    clocked.batch_to_device(100)  # of a validation
    clocked.training_step(100)
    expected = {"transfer": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 8.0}
    assert clocked.clocks.totals() == {**dict.fromkeys(PHASES, 0.0), **expected}


def fitted(strategy: Any) -> tuple[dict[str, Any], L.Trainer]:
    L.seed_everything(7, verbose=False)
    run = _trainer([], strategy=strategy, max_epochs=1)
    run.fit(Net(), _train(), _val())
    return digest.of(run), run


def test_one_device_trains_the_same_and_is_timed() -> None:
    bare, _ = fitted("auto")
    clocked, run = fitted("otf_single_device")
    assert clocked == bare
    totals = run.strategy.clocks.totals()
    assert all(totals[phase] > 0 for phase in PHASES if phase != "barrier")
    off = otf_lightning.OTFSingleDeviceStrategy()
    off.clocks.on = False
    again, run = fitted(off)
    assert again == bare
    assert set(run.strategy.clocks.totals().values()) == {0.0}


@pytest.mark.timeout(180)
def test_two_ranks_of_otf_ddp_are_those_of_ddp_and_their_steps_are_timed(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugin.clocked", str(tmp_path)],
        cwd=root, env={**os.environ, "PYTHONPATH": f"{root}/src:{root}"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        plain, ours = (
            json.loads((tmp_path / f"{name}.{rank}.json").read_text())
            for name in ("ddp", "otf_ddp")
        )
        assert (plain["kind"], ours["kind"]) == ("DDPStrategy", "OTFDDPStrategy")
        assert ours["digest"] == plain["digest"]
        assert all(ours["clocks"][phase] > 0 for phase in PHASES)
        assert sum(ours["clocks"].values()) < ours["seconds"]
    journal = next((tmp_path / "runs/p/r/journal").glob("*.jsonl")).read_text().splitlines()
    steps = [e for line in journal if (e := json.loads(line))["type"] == "trainStep"]
    assert steps
    for step in steps:
        assert all(step["metrics"][f"otf/{phase}_ms"] >= 0 for phase in PHASES)
        assert step["metrics"]["otf/forward_ms"] > 0
