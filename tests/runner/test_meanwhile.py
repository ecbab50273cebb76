"""A validation or a test in the middle of a fit leaves it bit for bit as it would have been."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from otf_core.errors import CommandError
from otf_core.runner import RunnerCallback, meanwhile
from otf_core.runner.run import Run
from tests.exact import data, models
from tests.exact.digest import differences
from tests.exact.models import Net
from tests.runner.shapes import SHAPES, IsTested, Metrics, OwnLoaders, Shape
from tests.runner.test_safe_point import trained

NAMES = (
    "plain",
    "cosine, batch norm",
    "metrics, tested",
    "metrics by step and epoch",
    "compute groups",
    "plateau in mid-epoch",
    "two loaders to validate",
    "logs everywhere",
    "odd attributes",
    "modes",
    "data module with all hooks, tested",
    "loaders of the module, tested",
    "stream, accumulation",
    "no sanity check",
)
AT = (0, 3, 8)


def asking(what: str, told: list[Any]) -> Any:
    """Ask at three safe points."""

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if run.counters.total_batches in AT:
                torch.rand(3)  # nobody draws here in a run that is not asked
                told.append(ask(run, what))
            return False

        run.between_batches = tick

    return prepare


def ask(run: Run, what: str) -> Any:
    batches: list[Any] = []

    def on_batch(*told: Any) -> None:
        batches.append(told)

    rng = torch.get_rng_state()
    found = (
        meanwhile.run_test(run, on_batch)
        if what == "test"
        else meanwhile.run_validation(run, None, on_batch)
    )
    assert torch.equal(rng, torch.get_rng_state())
    return found, batches


@pytest.mark.parametrize(
    ("what", "name"),
    [*(("validation", n) for n in NAMES), *(("test", n) for n in NAMES if "tested" in n)],
)
def test_it_leaves_no_trace(what: str, name: str) -> None:
    shape = SHAPES[name]
    told: list[Any] = []

    def drawing(run: Run) -> None:
        run.between_batches = lambda: bool(
            run.counters.total_batches in AT and torch.rand(3).sum() < 0
        )

    if what == "test" and shape.datamodule is None and shape.train is not None:
        shape = Shape(**{**vars(shape), "module": with_test_loader(shape.module)})
    assert differences(trained(shape, drawing), trained(shape, asking(what, told))) == []
    assert len(told) == 3
    for found, batches in told:
        assert found.metrics
        assert found.seconds > 0
        assert [b[0] for b in batches] == list(range(1, len(batches) + 1))


def with_test_loader(module: Any) -> Any:
    return type("Own", (module,), {"test_dataloader": lambda self: data.val_loader()})


def test_it_finds_what_the_fits_own_validation_finds() -> None:
    class Keeps(Metrics):
        found: dict[str, Any]

        def on_validation_end(self) -> None:
            if self.trainer.validating:
                self.found = {k: float(v) for k, v in self.trainer.callback_metrics.items()}

    modules: list[Keeps] = []

    def make() -> Keeps:
        modules.append(Keeps())
        return modules[-1]

    told: list[Any] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            # Behind the validation of the fourth batch, before the fifth.
            if run.counters.batches_done == 4:
                told.append(ask(run, "validation")[0])
            return False

        run.between_batches = tick

    trained(Shape(make, {"val_check_interval": 4, "max_epochs": 1}), prepare)
    [asked] = told
    own = modules[0].found
    assert {k: float(v) for k, v in asked.metrics.items()} == {k: own[k] for k in asked.metrics}
    assert asked.avg_loss == float(asked.metrics["val_loss"])


def test_the_mean_loss_is_that_of_the_batches() -> None:
    told: list[Any] = []
    trained(Shape(OwnLoaders, {"max_epochs": 1}, train=None, val=None), asking("test", told))  # type: ignore[arg-type]
    found, batches = told[0]
    assert [b[:2] for b in batches] == [(1, 3), (2, 3), (3, 3)]
    assert found.avg_loss == pytest.approx(sum(b[2] for b in batches) / 3)


def test_a_limit_is_of_this_validation_alone() -> None:
    told: list[Any] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if not told:
                meanwhile.run_validation(run, 1, lambda *batch: told.append(batch))
                assert run.limit_val_batches == 1.0
            return False

        run.between_batches = tick

    trained(Shape(Net, {"max_epochs": 1}), prepare)
    assert [t[:2] for t in told] == [(1, 1)]


def test_it_is_done_also_where_the_fit_validates_nothing() -> None:
    told: list[Any] = []
    trained(Shape(Net, {"max_epochs": 1, "limit_val_batches": 0}), asking("validation", told))
    assert [len(batches) for _, batches in told] == [2, 2]


def test_callbacks_take_part_in_a_test_and_not_in_a_validation() -> None:
    class Counts(RunnerCallback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_validation_end(self, run: Any) -> None:
            self.seen.append("validation")

        def on_test_end(self, run: Any) -> None:
            self.seen.append("test")

        def on_metrics(self, run: Any, metrics: Any, step: int) -> None:
            if run.stage != "train":
                self.seen.append(run.stage)

    counts = Counts()

    def prepare(run: Run) -> None:
        run.listen([counts])

        def tick() -> bool:
            if run.counters.total_batches == 2:
                ask(run, "validation")
                counts.seen.append("then")
                ask(run, "test")
            return False

        run.between_batches = tick

    shape = Shape(OwnLoaders, {"max_epochs": 1, "limit_val_batches": 0}, train=None, val=None)  # type: ignore[arg-type]
    trained(shape, prepare)
    assert counts.seen[:2] == ["then", "test"]
    assert set(counts.seen) == {"then", "test"}


@pytest.mark.parametrize(
    ("shape", "what", "said"),
    [
        (Shape(Net), "test", "test was asked, but Net has no test_step."),
        (
            Shape(IsTested),
            "test",
            "test was asked, but there is no loader for it; allowed: test_loa",
        ),
        (Shape(Net, val=None), "validation", "validation was asked, but there is no loader"),
    ],
)
def test_what_cannot_be_done_is_refused(shape: Shape, what: str, said: str) -> None:
    found: list[str] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            with pytest.raises(CommandError) as refused:
                ask(run, what)
            found.append(refused.value.detail)
            return True

        run.between_batches = tick

    trained(shape, prepare)
    assert [detail[: len(said)] for detail in found] == [said]


def test_what_it_raises_leaves_the_fit_as_it_was() -> None:
    class Raises(models.Conv):
        fails = False

        def on_validation_batch_end(
            self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            if self.fails:
                raise ArithmeticError

    def prepare(run: Run) -> None:
        def tick() -> bool:
            if run.counters.total_batches == 4:
                run.module.fails = True
                with pytest.raises(ArithmeticError):
                    ask(run, "validation")
                run.module.fails = False
                assert run.module.training
                assert all(m.training for m in run.module.modules())
            return False

        run.between_batches = tick

    shape = Shape(Raises)
    plain, failed = trained(shape), trained(shape, prepare)
    for end in (plain, failed):
        end["module"][""].pop("fails", None)
    assert differences(plain, failed) == []
