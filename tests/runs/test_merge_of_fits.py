"""Checkpoints of real fits are merged into a live module, previewed and kept."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from otf_core.runs import merge
from otf_core.runs.batch_norm import recalibrate
from otf_core.runs.fisher import fisher_diagonal, write_fisher
from otf_core.runs.merging import Options
from otf_core.runs.weights import parameter_names, put, weights_aside
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.weights_file import open_weights
from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitDigits, list[Path]]:
    """A module, and the checkpoints: of a beginning, and of two runs that went on from it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("OTF_DASHBOARD", "off")
        for seed in (1, 2):
            torch.manual_seed(0)
            module = LitDigits()
            torch.manual_seed(seed)
            trainer = L.Trainer(
                accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
                callbacks=[OnTheFlyCallback(project=f"p{seed}", save_dir=folder)],
            )  # fmt: skip
            trainer.fit(module, Digits())
    found = ("p1/LitDigits/checkpoints/0-auto.ckpt", *(
        f"p{seed}/LitDigits/checkpoints/4-final.ckpt" for seed in (1, 2)
    ))  # fmt: skip
    return module, [folder / name for name in found]


def batches() -> list[Any]:
    data = Digits()
    data.setup("fit")
    return [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]


def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(module(batch[0]), batch[1])


def test_what_is_read_lazily_is_what_the_checkpoint_holds(
    fitted: tuple[LitDigits, list[Path]],
) -> None:
    for path in fitted[1]:
        state, manifest = read_checkpoint(path)
        assert manifest is not None
        with open_weights(path) as weights:
            assert weights.label == f"LitDigits/{manifest.id}"
            assert list(weights.shapes) == list(state["state_dict"])
            for name, tensor in state["state_dict"].items():
                assert torch.equal(weights.read(name), tensor)


def test_each_candidate_is_previewed_and_one_is_kept(
    fitted: tuple[LitDigits, list[Path]], tmp_path: Path
) -> None:
    live, (begun, *paths) = fitted
    modules, data = {"": live}, batches()
    before = {name: value.clone() for name, value in live.state_dict().items()}
    live.eval()

    def score(tensors: Any) -> float:
        put(modules, tensors)
        with torch.no_grad():
            return float(sum(loss(live, batch) for batch in data))

    with contextlib.ExitStack() as stack, weights_aside(modules) as aside:
        sources = [stack.enter_context(open_weights(path)) for path in paths]
        base = stack.enter_context(open_weights(begun))
        fishers = []
        for place, source in enumerate(sources):
            put(modules, merge.as_it_is(source))
            write_fisher(tmp_path / f"{place}.fisher", fisher_diagonal(live, data, loss))
            fishers.append(stack.enter_context(open_weights(tmp_path / f"{place}.fisher")))
        options = Options(base=base, fishers=fishers, parameters=parameter_names(modules))
        preview = {}
        for name in ("linear", "fisher", "ties", "soup"):
            merged = merge.run(name, sources, options, score)
            put(modules, merged.tensors())
            assert recalibrate(live, data, lambda m, batch: m(batch[0])).layers == 2
            preview[name] = score(())
        assert all(0 < found < 50 for found in preview.values())
        assert len(set(preview.values())) >= 3
    assert all(torch.equal(value, before[name]) for name, value in live.state_dict().items())

    with contextlib.ExitStack() as stack, weights_aside(modules) as aside:
        sources = [stack.enter_context(open_weights(path)) for path in paths]
        put(modules, merge.run("linear", sources, options).tensors())
        aside.keep()
    one, other = (read_checkpoint(path)[0]["state_dict"] for path in paths)
    name = "net.0.weight"
    mean = (one[name].double() + other[name].double()) / 2
    assert torch.equal(live.state_dict()[name], mean.float())
