"""The loss of each sample is the one it has alone, by whichever rule, and leaves no trace."""

from __future__ import annotations

import inspect
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import figures
from otf_core.runs.losses import RECOGNISED
from otf_core.runs.samples import Progress, Rule, Scan
from otf_core.runs.subject import Subject
from otf_core.runs.table import SampleTable
from tests.exact.digest import exact
from tests.runs.scans import CLASSES, SIZE, WIDTH, Rows, cross_entropy, one_by_one, subject


def scanned(made: Subject, **more: Any) -> tuple[SampleTable, Scan]:
    scan = Scan(made, **more)
    assert scan.work().finished
    return scan.table(), scan


def losses(made: Subject, **more: Any) -> torch.Tensor:
    found = scanned(made, **more)[0].losses
    assert found is not None
    assert found.dtype == np.float64
    return torch.from_numpy(found)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


# The second rule: a loss of torch.


def onehot(y: torch.Tensor) -> torch.Tensor:
    return F.one_hot(y, CLASSES).float()


def weighted(net: Any, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(net(x), y, torch.arange(1.0, CLASSES + 1), label_smoothing=0.1)


MODULES: dict[str, Any] = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), lambda y: y),
    "MSELoss": (nn.MSELoss(), onehot),
    "L1Loss": (nn.L1Loss(), onehot),
    "SmoothL1Loss": (nn.SmoothL1Loss(beta=0.3), onehot),
    "HuberLoss": (nn.HuberLoss(delta=0.3), onehot),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), onehot),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), onehot),
    "MultiMarginLoss": (nn.MultiMarginLoss(), lambda y: y),
    "SoftMarginLoss": (nn.SoftMarginLoss(), lambda y: 2 * onehot(y) - 1),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), onehot),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_loss_module_is_recognised(name: str) -> None:
    loss, of = MODULES[name]
    made = subject(lambda net, batch: loss(net(batch[0]), of(batch[1])))
    table, scan = scanned(made)
    assert scan.rule is Rule.STEP
    assert close(torch.from_numpy(table.losses), one_by_one(made))


STEPS = {
    "cross_entropy": cross_entropy,
    "nll_loss": lambda net, b: F.nll_loss(net(b[0]).log_softmax(1), b[1]),
    "soft targets": lambda net, b: F.cross_entropy(net(b[0]), onehot(b[1])),
    "kl_div": lambda net, b: F.kl_div(
        net(b[0]).log_softmax(1), onehot(b[1]) * 0.9 + 0.025, reduction="batchmean"
    ),
    "bce": lambda net, b: F.binary_cross_entropy(net(b[0]).sigmoid(), onehot(b[1])),
    "in a dict": lambda net, b: {"loss": cross_entropy(net, b), "other": 3},
    "by hand": lambda net, b: F.cross_entropy(net(b[0]), b[1], reduction="none").mean(),
    "with a second one": lambda net, b: (
        F.mse_loss(net(b[0]), onehot(b[1])),
        F.cross_entropy(net(b[0]), b[1]),
    )[1],
    "a copy": lambda net, b: cross_entropy(net, b) * 1.0,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_recognised(name: str) -> None:
    made = subject(STEPS[name])
    table, scan = scanned(made)
    assert scan.rule is Rule.STEP
    assert "training_step of Net, its " in scan.told
    assert close(torch.from_numpy(table.losses), one_by_one(made))


def test_every_recognised_loss_can_be_asked_for_each_sample() -> None:
    for name in RECOGNISED:
        parameters = inspect.signature(getattr(F, name)).parameters
        assert "reduction" in parameters, name


def test_class_weights_weigh_a_sample_and_not_the_batch() -> None:
    made = subject(weighted)
    [net] = made.modules.values()
    data = made.dataset
    net.eval()
    with torch.no_grad():
        expected = F.cross_entropy(
            net(data.x),
            data.y,
            torch.arange(1.0, CLASSES + 1),
            label_smoothing=0.1,
            reduction="none",
        )
    net.train()
    assert close(losses(made), expected.double())


class Tokens(Dataset[Any]):
    """Sequences with padding; the last has nothing else."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(3, WIDTH, generator=generator)
        y = torch.randint(0, CLASSES, (3,), generator=generator)
        y[3 - index % 4 :] = -100
        if index == 6:
            y[:] = -100
        return x, y


class PerToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        return found


@pytest.mark.parametrize("folded", [False, True])
def test_what_is_left_out_does_not_count(folded: bool) -> None:
    def step(net: Any, batch: Any) -> Any:
        x, y = batch
        if folded:
            return F.cross_entropy(net(x).view(-1, CLASSES), y.view(-1))
        return F.cross_entropy(net(x).transpose(1, 2), y)

    made = subject(step, PerToken(), dataset=Tokens(), batch_size=3)
    table, scan = scanned(made)
    assert scan.rule is Rule.STEP
    expected = one_by_one(made)
    assert expected.isnan().tolist() == [False, False, False, True, False, False, True]
    assert close(torch.from_numpy(table.losses), expected)
    assert table.labels is None


def test_a_sample_that_is_left_out_has_no_loss() -> None:
    data = Rows()
    data.y[[2, 9]] = -100
    for step in (cross_entropy, STEPS["nll_loss"], PENALISED["something added"]):
        made = subject(step, dataset=data)
        table, _ = scanned(made)
        assert np.isnan(table.losses).nonzero()[0].tolist() == [2, 9]  # type: ignore[arg-type]
        assert close(torch.from_numpy(table.losses), one_by_one(made))
        assert table.labels is not None
        assert table.labels[[2, 9]].tolist() == [-1, -1]


def test_parts_of_a_sample_that_do_not_lie_together_are_found_out() -> None:
    def time_first(net: Any, batch: Any) -> Any:
        x, y = batch
        return F.cross_entropy(net(x.transpose(0, 1)).reshape(-1, CLASSES), y.T.reshape(-1))

    made = subject(time_first, PerToken(), dataset=Tokens(), batch_size=4)
    table, scan = scanned(made)
    assert scan.rule is Rule.ALONE
    assert "does not have the parts of a sample together" in scan.told
    assert close(torch.from_numpy(table.losses), one_by_one(made))


# The third: one at a time, where the loss is something else.

PENALISED = {
    "something added": lambda net, b: cross_entropy(net, b) + 0.1 * net(b[0]).square().mean(),
    "something added in place": lambda net, b: cross_entropy(net, b).add_(0.5),
    "scores changed in place": lambda net, b: (
        s := net(b[0]),
        loss := F.mse_loss(s, onehot(b[1])),
        s.zero_(),
        loss,
    )[3],
    "two that weigh the same": lambda net, b: (
        cross_entropy(net, b) + F.mse_loss(net(b[0]), onehot(b[1]))
    ),
    "of their own": lambda net, b: (net(b[0]) - onehot(b[1])).abs().mean(),
    "weights by hand": lambda net, b: (
        F.cross_entropy(net(b[0]), b[1], reduction="none") * b[0][:, 0].exp()
    ).mean(),
    "the reduction of old": lambda net, b: F.mse_loss(
        net(b[0]), onehot(b[1]), reduce=True, size_average=True
    ),
}


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_another_loss_is_found_one_at_a_time_and_it_is_said(name: str) -> None:
    made = subject(PENALISED[name])
    table, scan = scanned(made)
    assert scan.rule is Rule.ALONE
    assert "one sample at a time, since its loss is something else" in scan.told
    assert close(torch.from_numpy(table.losses), one_by_one(made))


def test_from_the_batch_on_that_is_another_the_rest_is_one_at_a_time() -> None:
    def step(net: Any, batch: Any) -> Any:
        loss = cross_entropy(net, batch)
        return loss + 1 if float(batch[0][0, 0]) == float(Rows().x[10, 0]) else loss

    made = subject(step)
    scan = Scan(made)
    sizes = []
    while not scan.progress().finished:
        sizes.append(scan.work(0.0).done)
    assert sizes == [5, 10, 10, *range(11, SIZE + 1)]
    assert close(torch.from_numpy(scan.table().losses), one_by_one(made))


def test_a_step_that_skips_a_sample_leaves_it_without_a_loss() -> None:
    def step(net: Any, batch: Any) -> Any:
        return None if bool((batch[0] == Rows().x[7]).all(1).any()) else cross_entropy(net, batch)

    found = losses(subject(step))
    assert torch.isnan(found).nonzero().flatten().tolist() == [7]


# The first: the module's own.


def test_the_hook_of_the_module_goes_first() -> None:
    made = subject(hook=lambda batch: batch[0].square())
    table, scan = scanned(made)
    assert scan.rule is Rule.HOOK
    assert scan.told == "by the module's per_sample_loss"
    assert close(torch.from_numpy(table.losses), Rows().x.square().mean(1).double())
    assert close(losses(subject(None, hook=lambda batch: batch[0][:, 0])), Rows().x[:, 0].double())


# What a classifier says.


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "soft targets", "something added"])
def test_labels_and_predictions_are_those_of_the_loss(name: str) -> None:
    made = subject({**STEPS, **PENALISED}[name])
    table, _ = scanned(made)
    [net] = made.modules.values()
    net.eval()
    with torch.no_grad():
        chances = net(made.dataset.x).softmax(1)
    y = made.dataset.y
    others = chances.clone()
    others[range(SIZE), y] = -1
    assert table.labels is not None
    assert table.labels.tolist() == y.tolist()
    assert table.predictions.tolist() == chances.argmax(1).tolist()  # type: ignore[union-attr]
    assert table.rivals.tolist() == others.argmax(1).tolist()  # type: ignore[union-attr]
    for found, expected in (
        (table.confidence, chances[range(SIZE), y]),
        (table.rival_confidence, others.max(1).values),
    ):
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-6)
    assert figures.accuracy(table) == pytest.approx(float((chances.argmax(1) == y).float().mean()))


@pytest.mark.parametrize("logits", [True, False])
def test_of_two_classes_as_well(logits: bool) -> None:
    def step(net: Any, batch: Any) -> Any:
        score, y = net(batch[0])[:, :1], (batch[1] > 1).float()[:, None]
        if logits:
            return F.binary_cross_entropy_with_logits(score, y)
        return F.binary_cross_entropy(score.sigmoid(), y)

    made = subject(step)
    table, _ = scanned(made)
    [net] = made.modules.values()
    net.eval()
    with torch.no_grad():
        chance = net(made.dataset.x)[:, 0].sigmoid()
    assert table.labels.tolist() == (made.dataset.y > 1).long().tolist()  # type: ignore[union-attr]
    assert table.predictions.tolist() == (chance > 0.5).long().tolist()  # type: ignore[union-attr]


# Order, ids, slices.


@pytest.mark.parametrize("name", ["cross_entropy", "something added"])
@pytest.mark.parametrize("slice_s", [0.0, None])
def test_how_it_is_cut_into_slices_changes_nothing(name: str, slice_s: float | None) -> None:
    class Noisy(Rows):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.randn(WIDTH) * random.random() + float(np.random.rand()), y

    step = {**STEPS, **PENALISED}[name]
    whole = losses(subject(step, dataset=Noisy()))
    torch.manual_seed(99)
    scan = Scan(subject(step, dataset=Noisy()))
    told = list(scan.slices(slice_s))  # type: ignore[arg-type]
    assert torch.equal(torch.from_numpy(scan.table().losses), whole)
    assert told[-1].finished
    assert len(told) > 4 or slice_s is None


def test_ids_are_those_of_the_data_set_of_the_loader() -> None:
    part = Subset(Rows(), [20, 3, 7, 11])
    made = subject(dataset=part)
    assert losses(made).tolist() == losses(subject())[[20, 3, 7, 11]].tolist()
    table, _ = scanned(made, ids=np.array([3, 1]))
    assert table.ids.tolist() == [1, 3]
    assert table.losses.tolist() == losses(subject(), ids=np.array([3, 11])).tolist()  # type: ignore[union-attr]


def test_batches_are_made_by_the_users_own_hands() -> None:
    class Many(Rows):
        fetched: list[list[int]] = []  # noqa: RUF012 -- of this test alone

        def __getitems__(self, ids: list[int]) -> Any:
            self.fetched.append(ids)
            return [self[i] for i in ids]

    def collate(items: list[Any]) -> Any:
        return {"x": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}

    def step(net: Any, batch: Any) -> Any:
        return cross_entropy(net, (batch["x"] / 2, batch["y"]))

    doubled = losses(
        subject(
            step,
            dataset=Many(),
            collate=collate,
            transfer=lambda batch: {**batch, "x": batch["x"] * 2},
        )
    )
    assert close(doubled, losses(subject()))
    assert Many.fetched == [list(range(n, min(n + 5, SIZE))) for n in range(0, SIZE, 5)]


def test_it_tells_how_far_it_is_and_stops_where_somebody_cancels() -> None:
    now = iter(range(1000))
    scan = Scan(subject(), clock=lambda: float(next(now)))
    assert scan.progress() == Progress(
        0, SIZE, 0.0, None, "by training_step of Net, its loss for each sample"
    )
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    found = scan.work(None, cancelled)
    assert (found.done, found.total) == (10, SIZE)
    assert found.eta_s == pytest.approx(found.seconds / 10 * 13)
    assert scan.table().ids.tolist() == list(range(10))
    assert list(scan.slices(1.0, lambda: True)) == []
    assert scan.work().finished


def test_what_is_not_finite_stays_so_with_its_id() -> None:
    data = Rows()
    data.x[4], data.x[9] = math.nan, math.inf
    found = losses(subject(dataset=data))
    assert math.isnan(found[4])
    assert not math.isfinite(found[9])
    assert torch.isfinite(found).sum() == SIZE - 2


def test_half_precision_is_that_of_the_step() -> None:
    context = lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)  # noqa: E731
    table, scan = scanned(subject(context=context))
    assert scan.rule is Rule.STEP
    assert not torch.equal(torch.from_numpy(table.losses), losses(subject()))
    assert torch.allclose(torch.from_numpy(table.losses), losses(subject()), rtol=0.05, atol=0.05)


# Features.


def test_a_layers_activations_are_kept_as_features() -> None:
    for name in ("cross_entropy", "something added"):
        made = subject({**STEPS, **PENALISED}[name])
        table, _ = scanned(made, layer="body.2")
        [net] = made.modules.values()
        net.eval()
        with torch.no_grad():
            expected = net.body[:3](made.dataset.x)  # type: ignore[index,operator]
        assert torch.allclose(torch.from_numpy(table.features["body.2"]), expected, atol=1e-6)
        assert table.known() == {"loss", "classes", "features:body.2"}
        assert not net.body[2]._forward_hooks  # type: ignore[index,union-attr]


def test_features_of_images_are_their_mean_and_a_layer_that_is_not_there_is_named() -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.never = nn.Conv2d(1, 3, 1), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> Any:
            return self.conv(x.view(-1, 1, 2, 3)).flatten(1)

    def step(net: Any, batch: Any) -> Any:
        return F.cross_entropy(net(batch[0]), batch[1])

    made = subject(step, Image())
    table, _ = scanned(made, layer="conv")
    [net] = made.modules.values()
    with torch.no_grad():
        expected = net.conv(made.dataset.x.view(-1, 1, 2, 3)).mean((2, 3))  # type: ignore[operator]
    assert torch.allclose(torch.from_numpy(table.features["conv"]), expected, atol=1e-6)
    for layer, code in (("nowhere", ErrorCode.BAD_PAYLOAD), ("never", ErrorCode.UNSUPPORTED)):
        with pytest.raises(CommandError) as error:
            scanned(made, layer=layer)
        assert error.value.code is code
        assert layer in error.value.detail


# No trace.


def state(made: Subject) -> Any:
    [net] = made.modules.values()
    data = made.dataset
    return (
        {name: exact(value) for name, value in net.state_dict().items()},
        {name: module.training for name, module in net.named_modules()},
        {name: exact(p.grad) if p.grad is not None else None for name, p in net.named_parameters()},
        exact(torch.get_rng_state()),
        exact(np.random.get_state()),
        exact(random.getstate()),
        {name: exact(value) for name, value in vars(data).items()},
    )


class Counts(Rows):
    """Counts its reads, and draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.own = 0, torch.Generator().manual_seed(1)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        x, y = super().__getitem__(index)
        return x + torch.rand(WIDTH, generator=self.own) + torch.rand(()) + random.random(), y


class Cancels:
    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self) -> bool:
        self.after -= 1
        return self.after < 0


@pytest.mark.parametrize("how", ["whole", "cancelled", "step raises", "data raises", "hook raises"])
def test_it_leaves_no_trace(how: str) -> None:
    def step(net: Any, batch: Any) -> Any:
        net.seen = getattr(net, "seen", 0) + 1
        torch.rand(3), np.random.rand(), random.random()
        if how == "step raises" and net.seen == 3:
            raise KeyError("of the user's")
        return cross_entropy(net, batch)

    class Raises(Counts):
        def __getitem__(self, index: int) -> Any:
            if index == 12 and how == "data raises":
                raise KeyError("of the user's")
            return super().__getitem__(index)

    def raising(batch: Any) -> Any:
        torch.rand(3)
        raise KeyError("of the user's")

    made = subject(step, dataset=Raises(), hook=raising if how == "hook raises" else None)
    [net] = made.modules.values()
    net.train()
    net.body[1].eval()  # type: ignore[index,union-attr]
    before = state(made)
    scan = Scan(made)
    if "raises" in how:
        with pytest.raises(KeyError):
            scan.work()
        done = {"step raises": 10, "data raises": 10, "hook raises": 0}[how]
        assert scan.table().ids.tolist() == list(range(done))
        assert np.isfinite(scan.table().losses).all()  # type: ignore[arg-type]
    else:
        scan.work(None, Cancels(2) if how == "cancelled" else lambda: False)
    assert state(made) == before
    assert not hasattr(net, "seen")


def test_a_step_that_changes_weights_is_refused_and_they_are_put_back() -> None:
    def step(net: Any, batch: Any) -> Any:
        net.body[0].weight.mul_(0.9)
        return cross_entropy(net, batch)

    made = subject(step)
    before = state(made)
    with pytest.raises(CommandError) as error:
        Scan(made).work()
    assert error.value.code is ErrorCode.UNSUPPORTED
    assert "changes weights (body.0.weight)" in error.value.detail
    assert state(made) == before


def test_one_that_changes_them_later_is_told() -> None:
    def step(net: Any, batch: Any) -> Any:
        if torch.equal(batch[0][0], Rows().x[10]):
            net.body[0].weight.mul_(0.9)
        return cross_entropy(net, batch)

    with pytest.raises(CommandError) as error:
        Scan(subject(step)).work()
    assert error.value.code is ErrorCode.INTERNAL
    assert "are not as they were" in error.value.detail


# Refusals.


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("made", "more", "code", "said"),
    [
        (subject(dataset=Stream()), {}, ErrorCode.UNSUPPORTED, "Stream is an iterable data set"),
        (subject(None), {}, ErrorCode.UNSUPPORTED, "it steps optimizers by hand"),
        (subject(), {"ids": np.array([23])}, ErrorCode.BAD_PAYLOAD, "allowed: 0 to 22"),
        (subject(), {"ids": np.array([-1])}, ErrorCode.BAD_PAYLOAD, "allowed: 0 to 22"),
        (subject(), {"ids": np.array([], np.int64)}, ErrorCode.BAD_PAYLOAD, "allowed: 0 to 22"),
        (subject(lambda *_: None), {}, ErrorCode.UNSUPPORTED, "returned NoneType"),
        (subject(lambda net, b: net(b[0])), {}, ErrorCode.UNSUPPORTED, "returned (5, 4)"),
        (subject(hook=lambda b: b[0][:2]), {}, ErrorCode.UNSUPPORTED, "first dimension is 5"),
        (subject(hook=lambda b: 3), {}, ErrorCode.UNSUPPORTED, "found 3"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, more: Any, code: ErrorCode, said: str) -> None:
    with pytest.raises(CommandError) as error:
        scanned(made, **more)
    assert error.value.code is code
    assert said in error.value.detail


def test_a_data_set_that_has_shrunk_meanwhile_is_refused() -> None:
    data = Rows()
    scan = Scan(subject(dataset=data))
    scan.work(0.0)
    data.x = data.x[:20]
    with pytest.raises(CommandError) as error:
        scan.work()
    assert "had 23 samples when the scan began, and has 20" in error.value.detail


# Figures.


def test_figures_are_those_of_the_table() -> None:
    data = Rows()
    data.x[4] = math.nan
    table, _ = scanned(subject(dataset=data))
    assert table.losses is not None
    found = figures.figures_of(table, bins=4, worst_k=3)
    good = np.delete(table.losses, 4)
    assert (found["count"], found["not_finite"]) == (SIZE, 1)
    assert found["mean"] == pytest.approx(good.mean())
    assert [q["loss"] for q in found["quantiles"] if q["share"] in (0, 0.5, 1)] == pytest.approx(
        [good.min(), np.median(good), good.max()]
    )
    assert (len(found["histogram"]["edges"]), sum(found["histogram"]["counts"])) == (5, SIZE - 1)
    order = np.argsort(-good)[:2]
    assert [row["id"] for row in found["worst"]] == [4, *(order + (order >= 4)).tolist()]
    assert found["worst"][0]["loss"] is None
    assert found["worst"][1]["label"] == data.y[found["worst"][1]["id"]]
    assert [row["count"] for row in found["classes"]] == np.bincount(data.y).tolist()
    first = found["classes"][0]
    mine = (data.y == first["label"]).numpy() & np.isfinite(table.losses)
    assert first["mean"] == pytest.approx(table.losses[mine].mean())
    share = sum(row["accuracy"] * row["count"] for row in found["classes"]) / SIZE
    assert found["accuracy"] == pytest.approx(share)


def test_figures_of_nothing_are_none() -> None:
    table, _ = scanned(subject(hook=lambda batch: batch[0][:, 0] * math.nan))
    found = figures.figures_of(table)
    assert found["quantiles"] == found["histogram"]["counts"] == []
    assert (found["mean"], found["classes"], found["accuracy"]) == (None, None, None)
    assert len(found["worst"]) == SIZE


def test_a_loader_of_torch_finds_the_same() -> None:
    made = subject()
    [net] = made.modules.values()
    net.eval()
    total = 0.0
    with torch.no_grad():
        for batch in DataLoader(Rows(), 5):
            total += float(cross_entropy(net, batch)) * len(batch[0])
    assert float(losses(made).mean()) == pytest.approx(total / SIZE)
