"""A scan of a fit's own sets finds each sample's loss, and the fit is bit for bit as without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from otf_core.errors import CommandError, ErrorCode
from otf_core.runner import Runner
from otf_core.runner.run import Run
from otf_core.runner.samples import subject_of
from otf_core.runs.samples import Rule, Scan
from tests.exact import data
from tests.exact.digest import differences, exact
from tests.exact.models import CLASSES, Manual, Net
from tests.runner.shapes import SHAPES, Metrics, Shape
from tests.runner.test_meanwhile import AT, NAMES
from tests.runner.test_safe_point import trained

Ask = Callable[[Run], Any]


def asking(ask: Ask, told: list[Any]) -> Any:
    """Ask at three safe points."""

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if run.counters.total_batches in AT:
                told.append(ask(run))
            return False

        run.between_batches = tick

    return prepare


def scanned(run: Run, name: str = "train", **more: Any) -> Scan:
    scan = Scan(subject_of(run, name, **more))
    scan.work()
    return scan


# Streams and steps by hand have rules of their own, below.
SCANNED = [n for n in NAMES if n != "stream, accumulation"]


@pytest.mark.parametrize("name", SCANNED)
def test_it_leaves_no_trace(name: str) -> None:
    shape = SHAPES[name]
    told: list[Scan] = []

    def ask(run: Run) -> Scan:
        scan = Scan(subject_of(run, "train"))
        list(scan.slices(0.0))
        scanned(run, "val")
        return scan

    assert differences(trained(shape), trained(shape, asking(ask, told))) == []
    assert len(told) == 3
    for scan in told:
        # The odd one multiplies its loss, from some step on.
        assert scan.rule is Rule.STEP or name == "odd attributes", scan.told
        assert len(scan.table()) == scan.data.size


@pytest.mark.parametrize("name", SCANNED)
def test_nor_where_the_slices_lie_between_its_batches(name: str) -> None:
    told: list[Scan] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if not told:
                told.append(Scan(subject_of(run, "train")))
            told[0].work(0.0)
            return False

        run.between_batches = tick

    shape = SHAPES[name]
    assert differences(trained(shape), trained(shape, prepare)) == []
    assert len(told[0].table()) > data.BATCH


@pytest.mark.parametrize("how", ["cancelled", "raises", "alone"])
def test_nor_where_it_is_cancelled_or_the_users_code_raises(how: str) -> None:
    class Counting(Metrics):
        scanning = False

        def __init__(self) -> None:
            super().__init__()
            self.steps, self.of_steps = 0, [0]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            self.of_steps.append(self.steps)
            torch.rand(2), np.random.rand()
            if self.scanning:
                self.trainer.should_stop = True
            if self.scanning and how == "raises" and batch_idx == 2:
                raise KeyError("of the user's")
            loss = super().training_step(batch, batch_idx) * (1 + 1e-3 * self.steps)
            first: Any = self.net[0]
            return loss + 0.01 * first.weight.square().sum() if how == "alone" else loss

    def ask(run: Run) -> Scan:
        scan = Scan(subject_of(run, "train"))
        asked = iter([False] * 2 + [True] * 2)
        Counting.scanning = True
        try:
            if how == "raises":
                with pytest.raises(KeyError):
                    scan.work()
            else:
                scan.work(None, (lambda: next(asked)) if how == "cancelled" else lambda: False)
        finally:
            Counting.scanning = False
        return scan

    told: list[Scan] = []
    shape = Shape(Counting)
    assert differences(trained(shape), trained(shape, asking(ask, told))) == []
    assert len(told) == 3
    for scan in told:
        assert len(scan.table()) == {"cancelled": 1, "raises": 2 * data.BATCH}.get(how, data.N)


def test_losses_are_those_of_the_module_in_eval_mode() -> None:
    found: list[Any] = []

    def ask(run: Any) -> None:
        scan = scanned(run)
        assert scan.told == "by training_step of Net, its cross_entropy for each sample"
        run.module.eval()
        x, y = data.digits().tensors
        with torch.no_grad():
            expected = cross_entropy(run.module.net(x), y, reduction="none")
        run.module.train()
        found.append((scan.table(), expected, y))

    trained(Shape(Net, {"max_epochs": 1}), asking(ask, []))
    for table, expected, y in found:
        assert np.allclose(table.losses, expected, atol=1e-6)
        assert table.labels.tolist() == y.tolist()


def test_plain_pieces_can_be_scanned() -> None:
    model = nn.Linear(64, CLASSES)
    tables: list[Any] = []
    runner = Runner(device="cpu", max_epochs=1)

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if not tables:
                scan = scanned(run)
                assert scan.told.startswith("by training_step of Linear, its cross_entropy")
                x, y = data.digits().tensors
                expected = cross_entropy(model(x), y, reduction="none").detach()
                assert np.allclose(scan.table().losses, expected, atol=1e-6)  # type: ignore[arg-type]
                tables.append(scan.table())
            return False

        run.between_batches = tick

    runner.prepare = prepare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner.fit(
        model, optimizer=optimizer, loss_fn=nn.CrossEntropyLoss(), train_loader=data.loader()
    )
    assert tables


class Trainee:
    """No module, but has one; what it counts, it trains by."""

    def __init__(self) -> None:
        self.net = nn.Linear(64, CLASSES)
        self.counts = {"steps": 0}
        self.mean = torch.zeros(CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scores = self.net(x)
        self.counts["steps"] += 1
        self.mean += scores.detach().mean(0)
        return cross_entropy(scores * (1 + 1e-3 * self.counts["steps"]) + self.mean * 1e-3, y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def test_an_object_that_is_no_module_keeps_its_attributes() -> None:
    def end(prepare: Any) -> Any:
        torch.manual_seed(3)
        trainee = Trainee()
        runner = Runner(device="cpu", max_epochs=1)
        runner.prepare = prepare
        runner.fit(trainee, train_loader=data.loader())
        weights = {n: exact(p) for n, p in trainee.net.named_parameters()}
        return weights, exact(trainee.counts), exact(trainee.mean), exact(torch.get_rng_state())

    told: list[Scan] = []
    assert end(asking(scanned, told)) == end(lambda run: None)
    assert told[0].told == "by training_step of Trainee, its cross_entropy for each sample"


def test_the_test_set_is_asked_for_without_the_fit_being_told() -> None:
    sizes: list[int] = []
    shape = SHAPES["loaders of the module, tested"]

    def ask(run: Run) -> None:
        told: list[Any] = []

        def process(loader: Any) -> Any:
            told.append(loader)
            return loader

        run.process_loader = process
        sizes.append(scanned(run, "test").data.size)
        assert (told, run.testing.loaders, run.process_loader) == ([], None, process)

    assert differences(trained(shape), trained(shape, asking(ask, []))) == []
    assert len(set(sizes)) == 1
    assert sizes[0] > 0


def test_one_of_several_loaders_is_chosen() -> None:
    sizes: list[list[int]] = []

    def ask(run: Run) -> None:
        sizes.append([scanned(run, "val", loader=n).data.size for n in (0, 1)])
        with pytest.raises(CommandError) as error:
            subject_of(run, "val", loader=2)
        assert error.value.field == "loader"

    trained(SHAPES["two loaders to validate"], asking(ask, []))
    assert sizes
    assert all(len(set(found)) == 2 or found[0] > 0 for found in sizes)


def test_mixed_precision_is_that_of_the_fit() -> None:
    dtypes: set[torch.dtype] = set()

    class Sees(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            dtypes.add(self.net(batch[0]).dtype)
            return super().training_step(batch, batch_idx)

    told: list[Scan] = []
    trained(Shape(Sees, {"precision": "bf16-mixed", "max_epochs": 1}), asking(scanned, told))
    assert dtypes == {torch.bfloat16}
    assert {scan.rule for scan in told} == {Rule.STEP}


class ManualValidated(Manual):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return cross_entropy(self.net(batch[0]), batch[1])


class ManualHooked(Manual):
    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (ManualValidated, "by validation_step of ManualValidated, its cross_entropy"),
        (ManualHooked, "by the module's per_sample_loss"),
    ],
)
def test_steps_by_hand_are_not_called(module: Any, told: str) -> None:
    scans: list[Scan] = []
    shape = Shape(module, {"max_epochs": 1})
    assert differences(trained(shape), trained(shape, asking(scanned, scans))) == []
    assert scans[0].told.startswith(told)


class ManualAlone(Manual):
    validation_step = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("shape", "name", "code", "said"),
    [
        (Shape(ManualAlone, val=None), "train", ErrorCode.UNSUPPORTED, "steps optimizers by hand"),
        (
            Shape(Net, train=lambda: data.loader(data.Stream())),
            "train",
            ErrorCode.UNSUPPORTED,
            "Stream is an iterable data set",
        ),
        (
            Shape(Net, train=data.Batches),
            "train",
            ErrorCode.UNSUPPORTED,
            "Batches is no DataLoader",
        ),
        (
            Shape(Net, train=lambda: DataLoader(data.digits(), batch_size=None), val=None),
            "test",
            ErrorCode.UNSUPPORTED,
            "there is no loader for it; allowed: test_dataloader",
        ),
        (Shape(Net), "all", ErrorCode.BAD_PAYLOAD, "allowed: train, val, test"),
    ],
)
def test_what_cannot_be_scanned_is_refused(
    shape: Shape, name: str, code: ErrorCode, said: str
) -> None:
    errors: list[CommandError] = []

    def ask(run: Run) -> None:
        with pytest.raises(CommandError) as error:
            scanned(run, name)
        errors.append(error.value)

    shape.options = {"max_epochs": 1, **shape.options}
    trained(shape, asking(ask, []))
    assert errors
    assert {error.code for error in errors} == {code}
    assert said in errors[0].detail
