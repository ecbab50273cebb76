"""A training that is captured and put back goes on as if nothing had been."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from otf_core.errors import CommandError
from otf_core.state import training as state
from otf_core.state.training import OPTIMIZER_OWN, PARTS, Pieces, TrainingState
from tests.state.loader_kinds import seed_all
from tests.state.trainings import (
    KINDS,
    Net,
    Training,
    begun,
    exact,
    loaded,
    rows,
    saved,
    went,
)


@pytest.fixture(autouse=True)
def workers_end(
    monkeypatch: pytest.MonkeyPatch, queues_have_ended: None
) -> Iterator[list[Training]]:
    """Those of every training of the test."""
    made: list[Training] = []
    init = Training.__init__
    monkeypatch.setattr(Training, "__init__", lambda self: (made.append(self), init(self))[1])
    yield made
    while made:
        made.pop().close()


TURNS = 14  # 6 batches and an end, twice
PLACES = (0, 1, 4, 6, 7, 8, 13, 14)


def undisturbed(kind: str) -> tuple[Any, Any, dict[int, bytes]]:
    """Its end, what it told, and its state behind each turn; capturing is no disturbance."""
    whole = went(begun(kind))
    watched = begun(kind)
    kept = {0: saved(watched)}
    for turn, _ in enumerate(watched.turns(), start=1):
        kept[turn] = saved(watched)
    assert watched.digest() == whole.digest()
    assert watched.told == whole.told
    assert max(kept) == TURNS
    return whole.digest(), whole.told, kept


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_new_objects_go_on_as_if_nothing_had_been(kind: str) -> None:
    digest, told, kept = undisturbed(kind)
    for turn in PLACES if kind != "Workers" else (4, 7, 9):
        again = begun(kind, seed=99)
        snapshot = loaded(kept[turn])
        again.state.check(snapshot)
        applied = again.state.apply(snapshot)
        assert applied.lost == applied.left_out == applied.saved == []
        went(again)
        assert again.told == told[len(told) - len(again.told) :], (kind, turn)
        assert again.digest() == digest, (kind, turn)
        again.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["Training", "Accumulating", "Owned", "Workers", "Unfreezing"])
def test_a_training_goes_back_in_place(kind: str) -> None:
    digest, _, kept = undisturbed(kind)
    again = went(begun(kind), 9)
    for turn in (3, 7, 3):
        again.state.apply(loaded(kept[turn]))
        turns = again.turns()
        next(turns)
        next(turns)
    assert went(again).digest() == digest


@pytest.mark.parametrize("kind", ["Training", "Owned", "Workers"])
def test_put_back_again_before_the_first_batch_takes_what_was_done_in_between(kind: str) -> None:
    digest, _, kept = undisturbed(kind)
    again = begun(kind, seed=99)
    snapshot = loaded(kept[4])
    again.state.apply(snapshot)
    again.net.eval()
    again.net.calls = 1000
    seed_all(5)
    again.optimizer.param_groups[0]["lr"] = 77.0
    again.state.apply(snapshot, again=True)
    assert went(again).digest() == digest


# Part -> what notices that it was not put back, and where.
NOTICES = {
    "model": ("Training", 4),
    "loose parameters": ("TwoModels", 4),
    "objects": ("Owned", 4),
    "scaler": ("Scaled", 4),
    "schedulers": ("Training", 4),
    "counters": ("Training", 8),
    "optimizers": ("Training", 4),
    "optimizer attributes": ("CountingOptimizer", 4),
    "buffers": ("Training", 4),
    "requires_grad": ("Unfreezing", 8),
    "gradients": ("Accumulating", 4),
    "plain attributes": ("Owned", 4),
    "data attributes": ("Owned", 4),
    "module attributes": ("Training", 4),
    "positions": ("Training", 4),
    "rng": ("Training", 4),
}


def test_every_part_has_a_training_that_would_notice() -> None:
    assert NOTICES.keys() == {part.name for part in PARTS} - {"parameters"}


@pytest.mark.parametrize("name", NOTICES)
def test_a_training_notices_that_a_part_was_not_put_back(name: str) -> None:
    kind, turn = NOTICES[name]
    whole, there = went(begun(kind)), went(begun(kind), turn)
    again = begun(kind, seed=99)
    off = tuple(
        dataclasses.replace(part, apply=lambda _giving, _saved: None) if part.name == name else part
        for part in PARTS
    )
    with mock.patch.object(state, "PARTS", off):
        again.state.apply(loaded(saved(there)))
    try:
        went(again)
    except (RuntimeError, AssertionError):
        return  # to raise is to notice
    same = whole.told[len(whole.told) - len(again.told) :] == again.told
    assert not (same and again.digest() == whole.digest())


def refusal(training: Training, snapshot: Any) -> str:
    before = training.digest()
    with pytest.raises(CommandError) as caught:
        training.state.check(snapshot)
    assert training.digest() == before
    return caught.value.detail


def test_another_model_is_refused_by_the_names_that_differ() -> None:
    other = begun("Training")
    other.net.last = nn.Linear(8, 2)
    other.optimizer.param_groups[0]["params"] = list(other.net.parameters())
    said = refusal(other, loaded(saved(begun("Training"))))
    assert said == (
        "The checkpoint is of another model: last.bias [1] (here [2]), last.weight [1, 8] "
        "(here [2, 8]); the run is as it was."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizers": []}, "The checkpoint has 1 optimizers, this run 0; the run is as it was."),
        (
            {"schedulers": []},
            "The checkpoint has 1 learning-rate schedules, this run 0; the run is as it was.",
        ),
        (
            {"scaler": torch.amp.GradScaler("cpu")},
            "The checkpoint has 0 gradient scalers, this run 1; the run is as it was.",
        ),
        (
            {"readings": {}},
            "The checkpoint has 1 training loaders, this run 0; the run is as it was.",
        ),
        (
            {"kind": "the Runner"},
            "The checkpoint is of tests, this run is of the Runner; allowed: one of its own; "
            "the run is as it was.",
        ),
    ],
)
def test_another_training_is_refused(change: dict[str, Any], said: str) -> None:
    other = begun("Training")
    for name, value in change.items():
        setattr(other.pieces, name, value)
    assert refusal(other, loaded(saved(begun("Training")))) == said


def test_a_snapshot_of_lightning_is_refused_by_name() -> None:
    snapshot = {"otf": {"exact": {"format": 2, "parameters": {}}}}
    said = refusal(begun("Training"), snapshot)
    assert said.startswith("The checkpoint is of Lightning, this run is of tests; ")


def test_a_snapshot_of_another_format_and_a_file_of_somebody_else_are_refused() -> None:
    snapshot = loaded(saved(begun("Training")))
    snapshot["otf"]["exact"]["format"] = 0
    assert refusal(begun("Training"), snapshot).endswith("of format 1 was asked for, found 0.")
    said = refusal(begun("Training"), {"state_dict": {}})
    assert said == "A checkpoint with exact state of tests was asked for, found none."


def test_the_weights_lie_in_the_file_as_the_script_would_have_saved_them() -> None:
    one = begun("Training")
    snapshot = loaded(saved(one))
    fresh = Net()
    fresh.load_state_dict(snapshot["state_dict"])
    assert exact(fresh.state_dict()) == exact(one.net.state_dict())
    two = loaded(saved(begun("TwoModels")))
    assert list(two["state_dict"]) == ["net", "other"]


def test_what_the_script_gives_as_text_stays_the_scripts() -> None:
    there, here = begun("Owned"), begun("Owned")
    for training, folder in ((there, "/old"), (here, "/new")):
        training.net.folder = folder  # type: ignore[assignment]
        training.stopper.folder = folder  # type: ignore[attr-defined]
        training.state = TrainingState(training.pieces)
    applied = here.state.apply(loaded(saved(there)))
    assert here.net.folder == here.stopper.folder == "/new"  # type: ignore[attr-defined]
    assert applied.left_out == [
        "net.folder, which is '/new' here (it was '/old')",
        "stopper.folder, which is '/new' here (it was '/old')",
    ]


def test_what_cannot_be_stored_is_told_and_left_as_it_is() -> None:
    training = begun("Owned")
    training.stopper.lock = open  # type: ignore[attr-defined]  # called, and not changed by it
    training.stopper.odd = iter([1])  # type: ignore[attr-defined]
    went(training, 2)
    training.state.exactness()
    next(training.stopper.odd)  # type: ignore[attr-defined]
    why, left_out = training.state.exactness()
    assert why == ["stopper.odd (list_iterator) changes, and cannot be stored"]
    assert left_out == []


def test_a_value_that_cannot_be_stored_is_named_and_not_put_back() -> None:
    training = begun("Owned")
    training.number = open  # type: ignore[assignment]
    snapshot = loaded(saved(training))
    assert training.state.exactness()[1] == ["number.value: builtin_function_or_method"]
    again = begun("Owned")
    again.state.apply(snapshot)
    assert again.number == 0


def test_a_loader_that_is_not_reproducible_is_a_reason() -> None:
    loader = DataLoader(rows(), num_workers=2, in_order=False)
    pieces = Pieces(kind="tests", modules={"": Net()}, loaders={"val": loader})
    why, _ = TrainingState(pieces).exactness()
    assert why == [
        "DataLoader: in_order=False: which batch comes next depends on the speed of the workers"
    ]


def test_a_scheduler_that_cannot_be_stored_refuses_the_checkpoint() -> None:
    training = begun("Training")
    training.scheduler.odd = iter([1])
    with pytest.raises(CommandError) as caught:
        training.state.capture()
    assert caught.value.detail == (
        "Saving was asked, but lr_schedulers.odd: list_iterator cannot be stored without pickle."
    )


def test_the_sizes_are_those_of_weights_optimizer_states_and_gradients() -> None:
    training = went(begun("Training"), 2)
    weights = sum(t.numel() * t.element_size() for t in training.net.state_dict().values())
    params = sum(4 * p.numel() for p in training.net.parameters())
    steps = 4 * len(list(training.net.parameters()))  # Adam counts for each
    total = sum(nbytes for nbytes, _ in training.state.sizes())
    assert total == weights + 2 * params + steps + params


def test_the_batches_of_an_epoch_are_part_of_the_environment() -> None:
    assert begun("Training").state.environment() == {"data": 6}
    assert begun("Streamed").state.environment() == {}


def test_what_every_optimizer_has_is_known_by_name() -> None:
    assert vars(torch.optim.SGD([torch.zeros(1)])).keys() <= OPTIMIZER_OWN


def test_nothing_of_ours_makes_an_optimizer_when_it_is_imported() -> None:
    code = (
        "import otf_core.script.control, otf_core.own_loop, otf_core.runner, torch; "
        "made = [k for k in torch.optim.Optimizer.__subclasses__() if 'step' in vars(k) "
        "and hasattr(k.step, 'hooked')]; print(made)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
