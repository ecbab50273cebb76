"""Fits of both frameworks, looked at under way: they go on bit for bit as if they had not been."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger

from otf_core.errors import CommandError
from otf_core.health import checks
from otf_core.health.budget import CancelledError
from otf_core.runner import Runner
from otf_core.runner import health as of_runner
from otf_lightning import health as of_lightning
from tests.exact import data, digest
from tests.exact.configs import Setup
from tests.exact.models import Net
from tests.exact.runs import AtGate
from tests.exact.table import CONFIGS
from tests.exact.tape import Tape, read
from tests.exact.ways import SIDES

AT = (0, 7)  # gates; the second is in the middle of the second epoch
STEPPING = ("throughput_health", "activations_health", "numerics_health", "determinism_health")
# Whose batches come in another order each time, whoever looks.
NOT_THE_SAME_TWICE = ("out_of_order", "runner_out_of_order")
BOTH = (
    "augmented_in_process",
    "counting_sampler",
    "own_batch_sampler",
    "stream_with_state",
    "own_iter",
    "data_module_with_state",
    "data_module_without_state_dict",
    "accumulation_with_clipping",
    "chained_schedules",
    "reads_old_gradients",
    "float64_state_under_bf16_weights",
    "auroc",
    "conv_with_batch_norm_and_dropout",
    "freezes_once",
    "odd_attributes",
    "ema",
)
OF_ONE = (
    "two_loaders_cycle",
    "reloaded_every_epoch",
    "fp16_with_a_scaler",
    "stochastic_weight_averaging",
    "unfreezing",
    "runner_plain_pieces",
    "runner_parameter_in_no_module",
    "runner_lbfgs",
    "runner_skips_batches",
)
SLICE = {*BOTH, *(f"runner_{name}" for name in BOTH), *OF_ONE}
Act = Callable[[Any, Any], None]  # with what stands at a gate, and it as a Subject


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queues_have_ended: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTF_DASHBOARD", "off")


def subject_of(held: Any) -> Any:
    if hasattr(held, "trainer"):
        return of_lightning.FitSubject(held.trainer, [(0, 1.0)])
    return of_runner.FitSubject(held.run, [(0, 1.0)])


def trained(name: str, folder: Path, act: Act = lambda *_: None) -> tuple[Any, Any]:
    """The end of a fit, and all that it has told."""
    config = CONFIGS[name]
    folder.mkdir()
    tape = Tape(folder / "tape.jsonl")

    def at_gate(held: Any) -> None:
        if held.gates in AT:
            act(held, subject_of(held))

    side = SIDES[config.side]
    ended = side.fit(config, folder, tape, side.AtGate(at_gate, tape))
    tape.close()
    return ended.digest, read(folder / "tape.jsonl")


@functools.cache
def bare(name: str) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return trained(name, Path(folder) / "bare")


def compare(name: str, folder: Path, act: Act) -> None:
    (expected, told), (found, told_too) = bare(name), trained(name, folder / "looked at", act)
    assert digest.differences(expected, found) == []
    assert told_too == told


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SLICE else pytest.mark.long)
        for name in CONFIGS
        if name not in NOT_THE_SAME_TWICE
    ],
)
def test_every_check_leaves_a_fit_as_it_was(name: str, tmp_path: Path) -> None:
    found = dict.fromkeys(checks.CHECKS, 0)

    def act(held: Any, subject: Any) -> None:
        for check in checks.CHECKS:
            try:
                wire = checks.run(check, subject, {"budget_steps": 2}).to_wire()
            except CommandError:
                continue
            assert wire["text"]
            assert wire.get("left_changed", []) == []
            found[check] += 1

    compare(name, tmp_path, act)
    assert found["dist_health"]


def run_all(held: Any, subject: Any, error: type[Exception], **options: Any) -> None:
    for check in STEPPING:
        with pytest.raises(error):
            checks.run(check, subject, {"budget_steps": 3}, **options)


CANCELLED_OR_FAILED = [
    prefix + name
    for prefix in ("", "runner_")
    for name in (
        "conv_with_batch_norm_and_dropout",
        "augmented_in_process",
        "accumulation_with_clipping",
        "data_module_without_state_dict",
    )
]


@pytest.mark.parametrize("name", CANCELLED_OR_FAILED)
def test_a_check_that_is_cancelled_leaves_a_fit_as_it_was(name: str, tmp_path: Path) -> None:
    def act(held: Any, subject: Any) -> None:
        for check in STEPPING:
            steps = {"budget_steps": 3}
            asked: list[None] = []

            def counted(asked: list[None] = asked) -> bool:
                asked.append(None)
                return False

            checks.run(check, subject, steps, cancelled=counted)
            last = len(asked)  # between the batches, or the layers, of the end
            for at in (1, 2, last):
                times = iter(range(1, last + 1))
                with pytest.raises(CancelledError):
                    checks.run(
                        check, subject, steps, cancelled=lambda at=at, it=times: next(it) == at
                    )

    compare(name, tmp_path, act)


@pytest.mark.parametrize("where", ["forward", "backward", "data"])
@pytest.mark.parametrize("name", CANCELLED_OR_FAILED)
def test_a_users_hook_that_raises_leaves_a_fit_as_it_was(
    name: str, where: str, tmp_path: Path
) -> None:
    def raises(*_: Any) -> Any:
        raise ArithmeticError

    def act(held: Any, subject: Any) -> None:
        module = next(iter(subject.modules.values()))
        last = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
        if where == "data":
            collate = subject.loaders[0].collate_fn
            subject.loaders[0].collate_fn = lambda samples: raises(collate(samples))
            run_all(held, subject, ArithmeticError)
            subject.loaders[0].collate_fn = collate
            return
        if where == "forward":
            handle = last[-1].register_forward_hook(raises)
            run_all(held, subject, ArithmeticError)
        else:
            handle = last[-1].register_full_backward_hook(raises)
            for check in ("throughput_health", "numerics_health", "determinism_health"):
                with pytest.raises(ArithmeticError):
                    checks.run(check, subject, {"budget_steps": 3})
        handle.remove()
        for each in last:  # torch remembers that there was a hook of this kind
            each._is_full_backward_hook = None

    compare(name, tmp_path, act)


def found_in(name: str, folder: Path, what: Callable[[Any], Any]) -> Any:
    found: list[Any] = []
    trained(name, folder / name, lambda held, subject: found.append(what(subject)))
    return found


@pytest.mark.parametrize("name", ["conv_with_batch_norm_and_dropout", "bf16_mixed", "two_by_hand"])
def test_both_frameworks_find_the_same(name: str, tmp_path: Path) -> None:
    name = {"two_by_hand": "manual"}.get(name, name)

    def what(subject: Any) -> Any:
        found = {}
        for check in ("activations_health", "numerics_health", "determinism_health"):
            try:
                found[check] = checks.run(check, subject, {}).to_wire()
            except CommandError as refused:
                found[check] = refused.detail
        return found

    one, other = (found_in(prefix + name, tmp_path, what) for prefix in ("", "runner_"))
    assert len(one) == len(AT)
    assert one == other


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manual", "Manual steps its optimizers by hand (automatic_optimization=False)"),
        ("runner_manual", "Manual steps its optimizers by hand (automatic_optimization=False)"),
        ("own_loader_with_state", "OwnPosition keeps its own position"),
        ("runner_own_loader_with_state", "OwnPosition keeps its own position"),
    ],
)
def test_what_cannot_run_a_step_alone_is_refused_by_name(
    name: str, said: str, tmp_path: Path
) -> None:
    def what(subject: Any) -> str:
        with pytest.raises(CommandError) as refused:
            checks.run("activations_health", subject, {})
        return refused.value.detail

    for detail in found_in(name, tmp_path, what):
        assert said in detail


@pytest.mark.parametrize("name", ["manual", "runner_manual"])
def test_numerics_of_a_module_that_steps_by_hand_are_those_at_rest(
    name: str, tmp_path: Path
) -> None:
    for found in found_in(name, tmp_path, lambda s: checks.run("numerics_health", s, {})):
        assert found.ok
        assert found.fields["tensors"] > 4
        assert "No batch was run: Manual steps its optimizers by hand" in found.text


class Fetches(Net):
    def training_step(self, dataloader_iter: Any) -> Any:
        (x, y), _, _ = next(dataloader_iter)
        return torch.nn.functional.cross_entropy(self.net(x), y)


def fit_of(model: Any, look: Callable[[Any], None], tmp_path: Path, **options: Any) -> L.Trainer:
    """A fit of Lightning with a look at its fourth gate."""
    tape = Tape(tmp_path / "tape.jsonl")

    def act(held: Any) -> None:
        if held.gates == 3:
            look(held.trainer)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[AtGate(act, tape)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **options},
    )
    setup = Setup(model, data.loader(), data.val_loader())
    trainer.fit(setup.model, setup.train, setup.val)
    tape.close()
    return trainer


def run_of(model: Any, look: Callable[[Any], None]) -> Any:
    """The same of the Runner."""
    runner = Runner(device="cpu", max_epochs=1, progress=False)

    def prepare(run: Any) -> None:
        def tick() -> bool:
            if run.counters.total_batches == 3:
                look(run)
            return False

        run.between_batches = tick

    runner.prepare = prepare  # type: ignore[method-assign]
    runner.fit(model, train_loader=data.loader(), val_loader=data.val_loader())
    return runner.run


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_a_step_that_fetches_its_batches_itself_is_refused(tmp_path: Path) -> None:
    told: list[str] = []

    def look(trainer: Any) -> None:
        with pytest.raises(CommandError) as refused:
            checks.run("determinism_health", of_lightning.FitSubject(trainer), {})
        told.append(refused.value.detail)

    fit_of(Fetches(), look, tmp_path)
    assert "fetches its batches itself (dataloader_iter)" in told[0]


class Watches(Logger):
    """What a module tells its logger by hand."""

    name, version = "watches", 0

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, step: int) -> None:
        self.told.append(step)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class TellsByHand(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.logger.experiment.add_image(self.global_step)  # type: ignore[union-attr]
        self.trainer.should_stop = self.trainer.should_stop or looking[0]
        return super().training_step(batch, batch_idx)


looking = [False]


def test_loggers_profilers_and_a_wish_to_stop_do_not_hear_of_it(tmp_path: Path) -> None:
    logger = Watches()

    def look(trainer: Any) -> None:
        looking[0] = True
        before = copy.deepcopy(trainer.profiler.recorded_durations)
        for check in STEPPING:
            checks.run(check, of_lightning.FitSubject(trainer), {})
        assert trainer.profiler.recorded_durations == before
        assert (trainer.loggers, trainer.should_stop) == ([logger], False)
        looking[0] = False

    trainer = fit_of(TellsByHand(), look, tmp_path, logger=logger, profiler="simple")
    assert logger.told == list(range(trainer.global_step))


def test_the_batch_of_a_check_weighs_nothing_that_is_logged_later() -> None:
    def look(run: Any) -> None:
        book = run.book
        before = book.active, dict(vars(book.active)), book.last_fx
        checks.run("activations_health", of_runner.FitSubject(run), {})
        assert (book.active, dict(vars(book.active)), book.last_fx) == before

    run_of(Net(), look)


class Owner:
    """No module, and its training step changes what it holds."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(64, 10)
        self.calls, self.seen, self.mean = 0, [0.0], torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.calls += 1
        self.seen.append(float(x.mean()))
        self.mean += x.mean()
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def test_the_object_around_several_modules_is_as_it_was() -> None:
    model = Owner()

    def look(run: Any) -> None:
        before = (model.calls, list(model.seen), model.mean.clone())
        for check in STEPPING:
            checks.run(check, of_runner.FitSubject(run), {})
        assert (model.calls, model.seen, model.mean) == before

    run_of(model, look)
    assert model.calls == len(model.seen) - 1 == 6


class StepsSchedule(Net):
    """A schedule that the training step moves."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return [optimizer], [{"scheduler": schedule, "frequency": 99}]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("side", ["lightning", "runner"])
def test_a_schedule_that_the_training_step_moves_is_where_it_was(side: str, tmp_path: Path) -> None:
    looked: list[Any] = []

    def look(subject: Any) -> None:
        [schedule] = subject.others.values()
        rates = subject.optimizers["optimizer"].param_groups[0]
        before = dict(schedule.state_dict()), rates["lr"]
        for check in STEPPING:
            checks.run(check, subject, {})
            assert (schedule.state_dict(), rates["lr"]) == before
        looked.append(before)

    if side == "lightning":
        fit_of(StepsSchedule(), lambda t: look(of_lightning.FitSubject(t)), tmp_path)
    else:
        run_of(StepsSchedule(), lambda run: look(of_runner.FitSubject(run)))
    assert looked[0][1] == 0.05


class WantsToStop(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trainer.should_stop = self.trainer.should_stop or looking[0]
        return super().training_step(batch, batch_idx)


def test_a_wish_to_stop_is_not_heard_by_the_runner_either() -> None:
    def look(run: Any) -> None:
        looking[0] = True
        for check in STEPPING:
            checks.run(check, of_runner.FitSubject(run), {})
            assert not run.should_stop
        looking[0] = False

    assert run_of(WantsToStop(), look).counters.global_step == 6


def test_what_a_fit_is_like_is_found(tmp_path: Path) -> None:
    def what(subject: Any) -> Any:
        return {check: checks.run(check, subject, {}).fields for check in checks.CHECKS}

    for name in ("conv_with_batch_norm_and_dropout", "runner_conv_with_batch_norm_and_dropout"):
        for found in found_in(name, tmp_path, what):
            assert found["dist_health"]["world_size"] == 1
            assert found["throughput_health"]["steps_probed"] == 2
            assert found["activations_health"]["steps_probed"] == 2
            assert found["numerics_health"]["problems"] == []
            assert found["determinism_health"]["equal"]


class Poisoned(Net):
    """From some batch on a weight is none; the next step will spread it to all."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            with torch.no_grad():
                self.net[3].weight[0, 0] = math.nan


@pytest.mark.parametrize("side", ["lightning", "runner"])
def test_a_layer_that_is_poisoned_under_way_is_found(side: str, tmp_path: Path) -> None:
    found: list[Any] = []

    def look(subject: Any) -> None:
        found.append(checks.run("numerics_health", subject, {}).fields["origin"])

    if side == "lightning":
        fit_of(Poisoned(), lambda t: look(of_lightning.FitSubject(t)), tmp_path)
    else:
        run_of(Poisoned(), lambda run: look(of_runner.FitSubject(run)))
    assert found[0]["layer"] == "net.3"
    assert found[0]["because"].startswith("its weight")
