"""What modules log, under canonical names."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otf_core.telemetry import canonical
from otf_core.telemetry.canonical import Canonical, canonicalize_metrics, normalise, resolve


@pytest.mark.parametrize(
    ("logged", "name"),
    [
        ("loss", "loss"),
        ("train_loss", "loss"),
        ("train/loss", "loss"),
        ("Loss/train", "loss"),
        ("training-loss", "loss"),
        ("loss_step", "loss"),
        ("loss_epoch", "loss"),
        ("train_loss_step", "loss"),
        ("trainLoss", "loss"),
        ("TRAIN_LOSS", "loss"),
        ("val_loss", "val_loss"),
        ("val/loss", "val_loss"),
        ("valid_loss", "val_loss"),
        ("validation_loss", "val_loss"),
        ("val_loss/dataloader_idx_0", "val_loss"),
        ("val/loss_epoch/dataloader_idx_0", "val_loss"),
        ("accuracy", "accuracy"),
        ("acc", "accuracy"),
        ("train_acc", "accuracy"),
        ("train/acc_step", "accuracy"),
        ("train_MulticlassAccuracy", "accuracy"),
        ("test_loss", "test_loss"),
        ("test/acc", "test_accuracy"),
    ],
)
def test_every_spelling_finds_its_canonical_name(logged: str, name: str) -> None:
    assert resolve([logged]) == ((name, logged),)


def test_a_validation_accuracy_stands_in_where_no_training_accuracy_is_logged() -> None:
    assert resolve(["val/accuracy"]) == (
        ("accuracy", "val/accuracy"),
        ("val_accuracy", "val/accuracy"),
    )
    assert resolve(["val_acc", "train_acc_epoch"]) == (
        ("accuracy", "train_acc_epoch"),
        ("val_accuracy", "val_acc"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "val_loss/dataloader_idx_1",
        "total_loss",
        "loss_ce",
        "aux_train_loss",
        "lossy",
        "f1",
        "train",
        "step",
        "",
        "/dataloader_idx_0",
    ],
)
def test_what_could_mean_something_else_is_left_alone(name: str) -> None:
    assert resolve([name]) == ()


def test_of_a_training_metric_the_step_comes_before_the_plain_name_before_the_epoch() -> None:
    names = ["train_loss_epoch", "train_loss", "train_loss_step"]
    assert resolve(names) == (("loss", "train_loss_step"),)
    assert resolve(names[:2]) == (("loss", "train_loss"),)
    assert resolve(names[:1]) == (("loss", "train_loss_epoch"),)


def test_of_a_validation_metric_the_epoch_comes_before_the_step() -> None:
    names = ["val_loss_step", "val_loss_epoch", "val_loss"]
    assert resolve(names) == (("val_loss", "val_loss"),)
    assert resolve(names[:2]) == (("val_loss", "val_loss_epoch"),)
    assert resolve(names[:1]) == (("val_loss", "val_loss_step"),)


def test_of_equal_rank_the_canonical_spelling_wins_and_then_the_first_logged() -> None:
    assert resolve(["train_loss", "loss"]) == (("loss", "loss"),)
    assert resolve(["train/loss", "train_loss"]) == (("loss", "train/loss"),)
    assert resolve(["train_loss", "train/loss"]) == (("loss", "train_loss"),)


def test_the_order_of_the_result_is_that_of_the_rules() -> None:
    logged = ["test_acc", "test_loss", "val_acc", "acc", "val_loss", "loss"]
    assert [name for name, _ in resolve(logged)] == [rule.name for rule in canonical.RULES]


def test_values_become_numbers_and_what_is_none_becomes_null() -> None:
    metrics = {
        "train_loss": torch.tensor(0.5, requires_grad=True),
        "val_loss": torch.tensor([1.0, 2.0]),
        "acc": True,
        "val_acc": "0.9",
        "test_loss": 3,
        "test_acc": torch.tensor(1j),
        "other": 1.0,
    }
    assert canonicalize_metrics(metrics) == {
        "loss": 0.5,
        "val_loss": None,
        "accuracy": 1.0,
        "val_accuracy": None,
        "test_loss": 3.0,
        "test_accuracy": None,
    }


def test_picking_hands_the_values_on_untouched() -> None:
    value = object()
    assert Canonical().pick({"train_loss": value, "x": 1}) == {"loss": value}


def test_the_names_are_resolved_once_for_each_set_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def counting(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        asked.append(names)
        return resolve(names)

    monkeypatch.setattr(canonical, "resolve", counting)
    picker = Canonical()
    assert picker.pick({"loss": 1.0}) == {"loss": 1.0}
    assert picker.pick({"loss": 2.0}) == {"loss": 2.0}
    assert picker.pick({"loss": 2.0, "val_loss": 3.0}) == {"loss": 2.0, "val_loss": 3.0}
    assert asked == [("loss",), ("loss", "val_loss")]


def test_names_made_up_every_step_do_not_fill_the_memory() -> None:
    picker = Canonical()
    for step in range(3 * canonical.MAX_CACHED):
        picker.pick({f"loss_{step}": 0.0, "loss": 1.0})
        assert len(picker._known) <= canonical.MAX_CACHED


def test_a_name_that_is_no_text_is_taken_as_its_text() -> None:
    assert canonicalize_metrics({1: 2.0, "loss": 1.0}) == {"loss": 1.0}  # type: ignore[dict-item]


@given(st.lists(st.text(max_size=30)))
def test_any_names_give_pairs_of_a_known_and_a_logged_name(names: list[str]) -> None:
    known = {rule.name for rule in canonical.RULES}
    pairs = resolve(names)
    assert all(name in known and logged in names for name, logged in pairs)
    assert len({name for name, _ in pairs}) == len(pairs)


@given(st.sampled_from(sorted(canonical._TABLE)), st.sampled_from("/.- :_"), st.booleans())
def test_case_and_separators_make_no_difference(name: str, separator: str, upper: bool) -> None:
    written = name.replace("_", separator)
    assert normalise(written.upper() if upper else written) == name


@pytest.mark.parametrize("module", ["canonical", "metrics", "governor", "system"])
def test_loads_without_torch(module: str) -> None:
    code = f"import otf_core.telemetry.{module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
