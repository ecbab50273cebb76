"""Rates of dropout, what the user declares, hyperparameters, and how many batches make a step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from torch import nn

from otf_core import otf_param
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.steering.accumulation import accumulation_knob, steps_to_window
from otf_core.steering.attributes import Attributes, of_data, of_module
from otf_core.steering.declared import Declared
from otf_core.steering.params import Ended, Overwritten, Steering
from tests.steering.test_params import Box
from tests.steering.worlds import Run


class Model(nn.Module):
    """Of most layers that have a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plane = nn.Dropout(0.1), nn.Dropout2d(0.1)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.25)
        self.deep, self.flat = nn.LSTM(4, 4, num_layers=2, dropout=0.5), nn.GRU(4, 4)
        self.again = self.first
        self.alpha, self.count, self.on, self.how, self.none = 0.5, 2, False, "mean", None
        self.weights, self.table, self.fixed = [1.0, 2.0], {"a": {"b": 3.0}}, (1.0,)

    @property
    def computed(self) -> float:
        return 1.0


def steered(
    model: Any, *declared: Declared, data: Any = None, own: bool = False
) -> tuple[Steering, Attributes]:
    if own:
        model.otf_params = declared
    given = () if own else declared
    found = Attributes(lambda: [of_module(model), *of_data(data)], lambda: {"": model}, given)
    run = Run([])
    run.trainer_knobs = found.knobs  # type: ignore[method-assign]
    return Steering(run), found


def set_to(steering: Steering, path: str, value: Any, **more: Any) -> Any:
    return steering.apply(SetParam(path=path, value=value, **more), 1)


def refusal(steering: Steering, **asked: Any) -> CommandError:
    with pytest.raises(CommandError) as refused:
        steering.check(SetParam(**asked), 1)
    return refused.value


# Dropout.


def test_every_layer_with_a_rate_is_listed_once_and_all_together() -> None:
    rows = {row["path"]: row for row in steered(Model())[0].list()}
    assert {path: row["value"] for path, row in rows.items()} == {
        "model.dropout": [0.1, 0.1, 0.25, 0.5],
        "model.dropout.first": 0.1,
        "model.dropout.plane": 0.1,
        "model.dropout.attention": 0.25,
        "model.dropout.deep": 0.5,
    }
    for row in rows.values():
        assert (row["min"], row["max"], row["kind"]) == (0.0, 1.0, "float")
        assert (row["takes_effect"], row["owner"]) == ("next batch", "model")


def test_a_model_without_dropout_has_no_rate() -> None:
    assert steered(nn.Linear(2, 2))[0].list() == []


def test_one_rate_is_set_apart_from_all_and_each_is_undone() -> None:
    model = Model()
    steering, _ = steered(model)
    together = set_to(steering, "model.dropout", 0.75)
    assert (together.old, together.new) == ([0.1, 0.1, 0.25, 0.5], 0.75)
    apart = set_to(steering, "model.dropout.deep", 0.0)
    assert steering.watch(2) == []  # nobody else has written it
    assert (model.first.p, model.attention.dropout, model.deep.dropout) == (0.75, 0.75, 0.0)
    assert steering.undo(apart, 2).new == 0.75
    assert steering.undo(together, 3).new == [0.1, 0.1, 0.25, 0.5]
    assert steering.state()["knobs"] == {}
    halved = steering.apply(SetParam(path="model.dropout", mul=0.5), 4)
    assert halved.new == [0.05, 0.05, 0.125, 0.25]
    released = steering.apply(SetParam(path="model.dropout", release=True), 5)
    assert released.new == [0.1, 0.1, 0.25, 0.5]
    assert steering.undo(released, 5).new == [0.05, 0.05, 0.125, 0.25]


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, True, "0.5"])
def test_a_rate_is_a_share(value: Any) -> None:
    assert refusal(steered(Model())[0], path="model.dropout", value=value).field == "value"


def test_a_rate_is_set_until_a_step() -> None:
    model = Model()
    steering, _ = steered(model)
    set_to(steering, "model.dropout.first", 0.5, until=3)
    assert steering.watch(2) == []
    assert steering.watch(3) == [Ended("model.dropout.first", 0.5, 0.1, 3)]
    assert model.first.p == 0.1


# What is declared.


@pytest.mark.parametrize("own", [True, False])
def test_what_is_declared_has_the_kind_of_its_value(own: bool) -> None:
    model = Model()
    steering, found = steered(
        model,
        otf_param("alpha", bounds=(0, 1), unit="of 1"),
        otf_param("count", bounds=(1, 4)),
        otf_param("on"),
        otf_param("how", choices=["mean", "sum"]),
        otf_param("none", kind="float"),
        otf_param("weights.1", bounds=(0.0, 3.0)),
        otf_param("table.a.b", takes_effect="next epoch"),
        own=own,
    )
    found.check()
    rows = {r["path"]: r for r in steering.list() if r["path"].startswith("attr.")}
    assert {path: (row["kind"], row["value"]) for path, row in rows.items()} == {
        "attr.alpha": ("float", 0.5), "attr.count": ("int", 2), "attr.on": ("bool", False),
        "attr.how": ("enum", "mean"), "attr.none": ("float", None),
        "attr.weights.1": ("float", 2.0), "attr.table.a.b": ("float", 3.0),
    }  # fmt: skip
    assert rows["attr.alpha"]["unit"] == "of 1"
    assert rows["attr.how"]["choices"] == ["mean", "sum"]
    assert rows["attr.table.a.b"]["takes_effect"] == "next epoch"
    for path, value in (
        ("alpha", 1.0), ("count", 4), ("on", True), ("how", "sum"), ("none", 0.5),
        ("weights.1", 0.25), ("table.a.b", -7.0),
    ):  # fmt: skip
        done = set_to(steering, f"attr.{path}", value)
        assert done.new == value
        assert type(done.new) is type(value)
    assert (model.alpha, model.count, model.on, model.how, model.none) == (1.0, 4, True, "sum", 0.5)
    assert (model.weights, model.table) == ([1.0, 0.25], {"a": {"b": -7.0}})
    for path, bad in (
        ("alpha", 1.5), ("count", 2.5), ("count", 5), ("count", True), ("on", 1), ("how", "max"),
        ("how", 3), ("none", "much"),
    ):  # fmt: skip
        assert refusal(steering, path=f"attr.{path}", value=bad).field == "value"
    assert refusal(steering, path="attr.alpha", to=1.0, over=3).field == "over"
    assert refusal(steering, path="attr.alpha", value=1.0, mode="scale").field == "mode"
    assert refusal(steering, path="attr.count", mul=0.3).field == "mul"
    assert steering.apply(SetParam(path="attr.count", mul=0.5), 1).new == 2


def test_a_whole_number_may_have_a_fraction_where_that_is_said() -> None:
    for declared in (otf_param("count", bounds=(0.0, 4)), otf_param("count", kind="float")):
        model = Model()
        assert set_to(steered(model, declared)[0], "attr.count", 2.5).new == 2.5
        assert model.count == 2.5


def test_text_without_choices_is_any_text_up_to_a_length() -> None:
    steering, _ = steered(Model(), otf_param("how"))
    assert set_to(steering, "attr.how", "x" * 1000).new == "x" * 1000
    assert refusal(steering, path="attr.how", value="x" * 1001).field == "value"
    assert refusal(steering, path="attr.how", value=3).field == "value"
    assert refusal(steering, path="attr.how", mul=3.0).field == "mul"


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (otf_param("beta"), "Model has no such attribute"),
        (otf_param("table.c"), "Model has no such attribute"),
        (otf_param("weights.7"), "Model has no such attribute"),
        (otf_param("none"), "it is None"),
        (otf_param("first"), "it is Dropout"),
        (otf_param("how", bounds=(0, 1)), "it is text; allowed: choices"),
        (otf_param("how", choices=["sum"]), "it is 'mean'; allowed: one of its choices sum"),
        (otf_param("on", bounds=(0, 1)), "it is bool"),
        (otf_param("how", kind="float"), "it is str"),
        (otf_param("fixed.0"), "lies in a tuple"),
        (otf_param("computed"), "a property without a setter"),
    ],
)
def test_what_cannot_be_set_is_refused_when_training_begins(declared: Declared, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        steered(Model(), declared)[1].check()


def test_one_name_is_declared_once() -> None:
    twice = steered(Model(), otf_param("alpha"), otf_param("alpha"))[1]
    with pytest.raises(ValueError, match="each name once"):
        twice.check()


def test_a_list_of_names_is_no_declaration() -> None:
    model = Model()
    model.otf_params = ["alpha"]  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Model\.otf_params was asked to be \['alpha'\]"):
        steered(model)[1].check()


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"name": ""}, TypeError),
        ({"name": "a..b"}, TypeError),
        ({"name": 3}, TypeError),
        ({"bounds": (1, 0)}, ValueError),
        ({"bounds": (0, math.inf)}, TypeError),
        ({"bounds": 3}, TypeError),
        ({"bounds": (0, True)}, TypeError),
        ({"choices": "ab"}, TypeError),
        ({"choices": []}, TypeError),
        ({"choices": ["a"], "bounds": (0, 1)}, ValueError),
        ({"kind": "tensor"}, ValueError),
        ({"kind": "bool", "bounds": (0, 1)}, ValueError),
        ({"takes_effect": "soon"}, ValueError),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(
    more: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="otf_param"):
        otf_param(**{"name": "alpha", **more})


class Data:
    def __init__(self) -> None:
        self.noise, self.alpha = 0.1, 7.0
        self._hparams = {"jitter": 0.5}


def test_what_the_model_lacks_is_looked_for_in_the_data() -> None:
    model, data = Model(), Data()
    steering, found = steered(model, otf_param("noise"), otf_param("alpha"), data=data)
    found.check()
    rows = {row["path"]: row for row in steering.list()}
    assert (rows["attr.noise"]["owner"], rows["attr.noise"]["takes_effect"]) == (
        "data", "next epoch",
    )  # fmt: skip
    assert (rows["attr.alpha"]["owner"], rows["attr.alpha"]["value"]) == ("model", 0.5)
    assert rows["hparams.jitter"]["owner"] == "data"


def test_an_object_that_goes_is_no_longer_listed_and_stops_nobody() -> None:
    model = Model()
    steering, _ = steered(model, otf_param("alpha"))
    del model.alpha
    assert not [row for row in steering.list() if row["path"].startswith("attr.")]
    assert refusal(steering, path="attr.alpha", value=1.0).code is ErrorCode.NOT_FOUND


def test_a_script_that_writes_it_itself_has_it() -> None:
    model = Model()
    steering, _ = steered(model, otf_param("alpha"))
    done = set_to(steering, "attr.alpha", 0.75)
    model.alpha = 0.9
    assert steering.watch(2) == [Overwritten("attr.alpha", 0.75, 0.9, 2)]
    with pytest.raises(CommandError, match="written by the training script since") as refused:
        steering.undo(done, 2)
    assert refused.value.code is ErrorCode.NOT_ALLOWED_NOW
    assert model.alpha == 0.9


def test_another_state_brings_what_was_set_in_it_and_no_more() -> None:
    model, config = Model(), {"scale": 1.0}
    declared = (otf_param("alpha"), otf_param("scale", of=config), otf_param("count"))
    steering, _ = steered(model, *declared)
    set_to(steering, "attr.count", 3)
    kept = steering.state()
    set_to(steering, "attr.alpha", 0.75)
    set_to(steering, "attr.scale", 4.0)
    model.alpha = 0.25  # as the rest of the state has it, which is put back first
    steering.load(kept)
    assert (model.alpha, config["scale"], model.count) == (0.25, 1.0, 3)
    assert steering.state()["knobs"] == {"attr.count": 3}

    again = Model()
    again.count = 3  # of the state
    resumed, _ = steered(again, *declared)
    resumed.load(kept)
    assert resumed.apply(SetParam(path="attr.count", release=True), 1).new == 2


def test_of_hyperparameters_only_numbers_with_a_fraction_are_candidates() -> None:
    model = Model()
    model._hparams = {"smooth": 0.1, "depth": 3, "act": "relu", "lr": 0.1, "big": None}
    steering, _ = steered(model, otf_param("_hparams.depth"))
    listed = [row["path"] for row in steering.list() if "hparams" in row["path"]]
    assert listed == ["attr._hparams.depth", "hparams.smooth"]
    assert set_to(steering, "hparams.smooth", 5.5).new == 5.5
    assert model._hparams["smooth"] == 5.5
    for name, says in (("depth", "otf_param"), ("act", "otf_param"), ("lr", "allowed: lr")):
        said = refusal(steering, path=f"hparams.{name}", value=1.0)
        assert says in said.detail
        assert (said.code, said.field) == (ErrorCode.UNSUPPORTED, "path")


# How many batches make a step.


def windows(done: int, batches: int, now: int, then: int) -> int:
    """Counted batch by batch, as the loops do."""
    steps = 0
    for batch in range(done, batches):
        if batch % now == 0 and batch % then == 0:
            return steps
        steps += (batch + 1) % now == 0 or batch + 1 == batches
    return steps


def test_the_next_common_window_is_found() -> None:
    for batches, now, then in itertools.product(range(1, 14), range(1, 6), range(1, 6)):
        for done in range(batches + 1):
            found = steps_to_window(done, batches, now, then)
            expected = 0 if now == then else windows(done, batches, now, then)
            assert found == expected, (done, batches, now, then)
    assert steps_to_window(7, None, 2, 3) == 3  # behind batch 12
    assert steps_to_window(12, None, 2, 3) == 0


def test_within_a_window_it_is_neither_set_nor_undone_and_ends_behind_it() -> None:
    box, place = Box(1), [8]
    knob = accumulation_knob(box.read, box.write, lambda: (place[0], 24))
    steering = Steering(Run([], knobs={"accumulate": knob}))
    assert steering.earliest(SetParam(path="accumulate", value=4), 8) == 8
    place[0] = 9
    assert steering.earliest(SetParam(path="accumulate", value=4), 9) == 12
    with pytest.raises(CommandError, match="3 steps later") as refused:
        steering.apply(SetParam(path="accumulate", value=4), 9)
    assert (refused.value.code, box.value) == (ErrorCode.NOT_ALLOWED_NOW, 1)
    place[0] = 12
    done = steering.apply(SetParam(path="accumulate", value=4, until=13), 12)
    assert (done.new, box.value) == (4, 4)
    place[0] = 14
    with pytest.raises(CommandError, match="1 step later"):
        steering.undo(done, 12)
    assert steering.earliest(SetParam(path="accumulate", release=True), 12) == 13
    assert steering.watch(13) == []  # its step, and within a window
    place[0] = 16
    assert steering.watch(13) == [Ended("accumulate", 4, 1, 13)]
    for value in (0, 10_001, 1.5, True):
        assert refusal(steering, path="accumulate", value=value).field == "value"
