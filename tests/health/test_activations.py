"""Planted faults of layers, each found by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.health import activations
from otf_core.health.hooks import open_modules
from tests.health.subjects import Plain, budget, loader, net


def checked(module: nn.Module, steps: int = 2, loss: Any = None, **options: Any) -> Any:
    return activations.check(Plain(module, loss=loss), budget(steps), **options)


def layer(found: Any, name: str) -> dict[str, Any]:
    [row] = [row for row in found.fields["top"] if row["layer"] == name]
    return dict(row)


def test_dead_units_are_counted_and_their_layer_is_the_worst() -> None:
    model = net(nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(5))
        model[2].bias.zero_()
        model[2].bias[:3] = -1e4
    found = checked(model)
    assert not found.ok
    assert found.fields["top"][0] == layer(found, "3")
    assert {k: layer(found, "3")[k] for k in ("dead", "units", "dead_frac")} == {
        "dead": 3,
        "units": 5,
        "dead_frac": 0.6,
    }
    assert layer(found, "1")["dead"] == 0
    assert found.fields["issues"] == ["3"]
    assert found.text.splitlines()[0] == "1 of 5 layers ought to be looked at, over 2 batches."
    assert "3 of 5" in found.text


def test_a_unit_that_lives_in_one_batch_of_several_is_not_dead() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    data = [torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, 2.0]])]
    subject = Plain(model, data, loss=lambda module, batch: module(batch).sum())
    found = activations.check(subject, budget(2))
    assert layer(found, "1")["dead"] == 1
    assert layer(found, "1")["zero_frac"] == 0.75
    assert activations.check(subject, budget(1)).fields["top"][0]["dead"] == 2


@pytest.mark.parametrize(
    ("kind", "scale", "is_saturated"),
    [
        (nn.Tanh(), 1e3, True),
        (nn.Sigmoid(), 1e3, True),
        (nn.Softsign(), 1e9, True),
        (nn.Hardtanh(-2, 2), 1e3, True),
        (nn.Tanh(), 1e-2, False),
        (nn.Sigmoid(), 1e-2, False),
        (nn.ReLU6(), 1e3, None),
        (nn.GELU(), 1e3, None),
    ],
)
def test_values_at_the_bounds_are_saturated(
    kind: nn.Module, scale: float, is_saturated: bool | None
) -> None:
    model = net(kind)
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
    found = checked(model)
    share = layer(found, "1")["saturated_frac"]
    assert share is None if is_saturated is None else (share > 0.9) is is_saturated
    if is_saturated is not None:
        assert ("1" in found.fields["issues"]) is is_saturated


def test_what_counts_as_a_bound_is_told_by_eps() -> None:
    model = nn.Sequential(nn.Tanh())
    subject = Plain(
        model, [torch.atanh(torch.tensor([0.5, 0.95]))], loss=lambda m, batch: m(batch).sum()
    )
    for eps, share in ((1e-3, 0.0), (0.1, 0.5), (0.6, 1.0)):
        found = activations.check(subject, budget(1), eps=eps)
        assert layer(found, "0")["saturated_frac"] == share


def test_a_layer_with_nan_is_the_worst_of_all() -> None:
    model = net(nn.ReLU())
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    found = checked(model)
    assert found.fields["issues"] == ["2"]
    assert layer(found, "2")["not_finite"] == 16


def test_channels_of_images_and_features_of_tokens_are_units() -> None:
    for module, shape, units in (
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), 4),
        (nn.Linear(7, 6), (2, 5, 7), 6),
    ):
        subject = Plain(
            nn.Sequential(module), [torch.randn(shape)], loss=lambda m, batch: m(batch).sum()
        )
        assert layer(activations.check(subject, budget(1)), "0")["units"] == units


def test_a_module_that_is_used_with_two_widths_has_the_units_of_both() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(6, 4), nn.Linear(4, 3), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.act(self.b(self.act(self.a(x))))

    assert layer(checked(Two()), "act")["units"] == 7


def test_only_so_many_are_told_and_all_are_counted() -> None:
    found = checked(net(nn.ReLU()), topk=1)
    assert len(found.fields["top"]) == 1
    assert found.fields["total_layers"] == 3


def test_dropout_and_what_only_reshapes_are_no_layers() -> None:
    model = net(nn.Dropout(), nn.Identity(), nn.Unflatten(1, (5, 1)), nn.Flatten())
    assert checked(model).fields["total_layers"] == 2


def test_a_copy_of_the_model_that_is_made_meanwhile_carries_no_hook() -> None:
    kept: list[nn.Module] = []

    def loss(module: nn.Module, batch: Any) -> Any:
        kept.append(copy.deepcopy(module))
        return module(batch[0]).sum()

    found = activations.check(Plain(net(), loss=loss), budget(1))
    kept[0](torch.zeros(1, 6))
    assert layer(found, "0")["zero_frac"] == 0.0


def test_a_compiled_module_is_left_alone() -> None:
    model = net(nn.ReLU())
    model[0]._compiled_call_impl = model[0].forward  # as module.compile() leaves it

    assert list(open_modules({"": model})) == ["Sequential", "1", "2"]
    assert list(open_modules({"": nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.ReLU())})) == [
        "Sequential",
        "1",
    ]


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.act = nn.ReLU()
        with torch.no_grad():
            self.a.bias.fill_(-1e4)
            self.b.weight.mul_(1e4)

    def forward(self, x: Any) -> Any:
        x = nn.functional.relu(self.a(x)) + x[:, :4]
        x = torch.tanh(self.b(x)).relu()
        return self.c(self.act(x)).sigmoid()


def test_activations_that_are_called_as_functions_are_seen_where_they_are_called() -> None:
    torch.manual_seed(0)
    found = checked(nn.ModuleDict({"body": Functions()}), loss=lambda m, b: m["body"](b[0]).sum())
    rows = {row["layer"]: row for row in found.fields["top"]}
    names = {"body.a", "body.b", "body.c", "body.act"}
    names |= {"body.relu", "body.tanh", "body.relu 2", "body.sigmoid"}
    assert rows.keys() == names
    assert (rows["body.relu"]["kind"], rows["body.relu"]["dead"]) == ("ReLU", 4)
    assert rows["body.tanh"]["saturated_frac"] > 0.9
    assert found.fields["issues"] == ["body.relu", "body.tanh"]
    assert found.fields["functions_seen"]


def test_a_function_outside_of_all_modules_is_named_by_the_class() -> None:
    found = checked(net(), loss=lambda m, batch: torch.relu(m(batch[0])).sum())
    assert "Sequential.relu" in [row["layer"] for row in found.fields["top"]]


def test_a_function_that_makes_the_data_is_none_of_the_model() -> None:
    data = loader(16, 8, collate_fn=lambda samples: torch.stack([x for x, _ in samples]).relu())
    subject = Plain(net(), data, loss=lambda m, batch: m(batch).sum())
    found = activations.check(subject, budget())
    assert [row["layer"] for row in found.fields["top"]] == ["0", "1"]


def test_beside_what_is_compiled_no_function_is_looked_at() -> None:
    model = net(nn.ReLU())
    model[0]._compiled_call_impl = model[0].forward
    found = checked(model, loss=lambda m, batch: torch.relu(m(batch[0])).sum())
    assert [row["layer"] for row in found.fields["top"]] == ["1", "2"]
    assert not found.fields["functions_seen"]
    assert found.text.endswith(activations.UNSEEN)
