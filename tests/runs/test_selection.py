"""One selection says everywhere the same, and is refused where it is of something else."""

from __future__ import annotations

import builtins
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import selection as sel
from otf_core.runs.table import Fingerprint, SampleTable, fingerprint_of
from tests.exact.digest import exact

DATA = Fingerprint(10, "Numbers", "a")
LOSSES = [0.5, 0.1, 2.0, 0.1, math.inf, 0.9, math.nan, 0.3, 1.0, 0.7]


def table(losses: list[float] | None = None, **columns: Any) -> SampleTable:
    found = np.array(LOSSES if losses is None else losses, dtype=np.float64)
    data = Fingerprint(len(found), "Numbers", "a")
    return SampleTable(data, np.arange(len(found), dtype=np.int64), found, **columns)


def ids(payload: Any, of: SampleTable | None = None) -> list[int]:
    found: list[int] = sel.resolve(sel.decode_selection(payload), of or table()).tolist()
    return found


def quantile(low: float, high: float) -> dict[str, Any]:
    return {"kind": "quantile", "metric": "per_sample_loss", "from": low, "to": high}


def region(low: float, high: float) -> dict[str, Any]:
    return {"kind": "region", "minLoss": low, "maxLoss": high}


def these(*numbers: int) -> dict[str, Any]:
    return {"kind": "indices", "ids": list(numbers)}


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (these(7, 3, 3), [3, 7]),
        (quantile(0.0, 0.3), [1, 3, 7]),  # equal losses in the order of ids
        (quantile(0.7, 1.0), [2, 4, 6]),  # no number is worst, above infinity
        (quantile(0.9, 1.0), [6]),
        (region(0.3, 0.9), [0, 5, 7, 9]),  # both bounds are among them
        (region(1.5, math.inf), [2, 4]),
        ({"kind": "union", "of": [these(1), region(1.0, 2.0)]}, [1, 2, 8]),
        ({"kind": "intersection", "of": [quantile(0.5, 1.0), region(0.0, 1.0)]}, [5, 8]),
        ({"kind": "complement", "of": quantile(0.2, 1.0)}, [1, 3]),
        ({"kind": "complement", "of": {"kind": "complement", "of": these(4, 5)}}, [4, 5]),
    ],
)
def test_it_means_these_samples(payload: Any, found: list[int]) -> None:
    assert ids(payload) == found


LEAVES = [
    these(1, 2),
    quantile(0.85, 1.0),
    region(0.8, 2.5),
    {"kind": "kmeans", "k": 3, "target_clusters": [1], "feature": "loss", "seed": 0},
    {"kind": "label_noise", "at_most": 5},
]


@pytest.mark.parametrize(
    "payload",
    [
        *LEAVES,
        {"kind": "union", "of": LEAVES},
        {"kind": "complement", "of": {"kind": "intersection", "of": LEAVES}},
    ],
)
def test_the_wire_form_comes_back_as_it_was_sent(payload: Any) -> None:
    assert sel.to_wire(sel.decode_selection(payload)) == payload


def test_what_the_dashboards_send_is_taken_and_what_is_not_known_passed_over() -> None:
    sent = '{"kind":"kmeans","k":2,"target_clusters":[0],"feature":"loss","colour":"red"}'
    assert sel.decode_selection(json.loads(sent)) == sel.KMeans(2, [0])
    assert sel.decode_selection({"kind": "quantile", "from": 0, "to": 1}) == sel.Quantile(0.0, 1.0)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (3, "selection"),
        ({}, "selection.kind"),
        ({"kind": "best"}, "selection.kind"),
        ({"kind": "indices"}, "selection.ids"),
        ({"kind": "indices", "ids": [1, -1]}, "selection.ids[1]"),
        ({"kind": "indices", "ids": [2**80]}, "selection.ids[0]"),
        (quantile(-0.1, 1.0), "selection.from"),
        (quantile(0.9, 0.5), "selection.from"),
        (region(2.0, 1.0), "selection.minLoss"),
        ({**quantile(0.0, 1.0), "metric": "accuracy"}, "selection.metric"),
        ({"kind": "kmeans", "k": 2, "target_clusters": [2]}, "selection.target_clusters"),
        ({"kind": "kmeans", "k": 0, "target_clusters": [0]}, "selection.k"),
        ({"kind": "union", "of": []}, "selection.of"),
        ({"kind": "union", "of": [these(1), quantile(0.5, 0.1)]}, "selection.of[1].from"),
        ({"kind": "complement", "of": {"kind": "region", "minLoss": 1}}, "selection.of.maxLoss"),
    ],
)
def test_what_is_no_selection_is_refused_with_its_place(payload: Any, field: str) -> None:
    with pytest.raises(CommandError) as error:
        sel.decode_selection(payload)
    assert (error.value.code, error.value.field) == (ErrorCode.BAD_PAYLOAD, field)


def test_one_without_an_end_is_refused() -> None:
    payload: Any = these(1)
    for _ in range(5_000):
        payload = {"kind": "complement", "of": payload}
    with pytest.raises(CommandError) as error:
        sel.decode_selection(payload)
    assert error.value.code is ErrorCode.BAD_PAYLOAD


@given(
    st.lists(st.floats(0, 9) | st.just(math.nan), min_size=1, max_size=60),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_neighbouring_shares_have_every_sample_once(losses: list[float], cuts: list[float]) -> None:
    known = table(losses)
    shares = [0.0, *sorted(cuts), 1.0]
    found = [sel.Quantile(low, high).ids(known) for low, high in itertools.pairwise(shares)]
    assert sorted(np.concatenate(found).tolist()) == list(range(len(losses)))


@pytest.mark.parametrize("percent", range(101))
def test_a_share_has_as_many_as_it_says(percent: int) -> None:
    known = table([float(n) for n in range(100)])
    assert len(sel.Quantile(0.0, percent / 100).ids(known)) == percent
    assert len(sel.Quantile(percent / 100, 1.0).ids(known)) == 100 - percent


@given(
    st.lists(st.integers(0, 9), max_size=10),
    st.lists(st.integers(0, 9), max_size=10),
)
def test_what_is_not_in_either_is_in_neither(a: list[int], b: list[int]) -> None:
    known = table()
    one, other = sel.Indices(a), sel.Indices(b)
    neither = sel.Complement(sel.Union([one, other])).ids(known)
    both = sel.Intersection([sel.Complement(one), sel.Complement(other)]).ids(known)
    assert neither.tolist() == both.tolist() == sorted(set(range(10)) - set(a) - set(b))


# Refusals.


def refused(call: Any) -> CommandError:
    with pytest.raises(CommandError) as error:
        call()
    return error.value


@pytest.mark.parametrize("payload", [these(), region(50.0, 60.0), quantile(0.5, 0.5)])
def test_one_that_means_nothing_is_refused(payload: Any) -> None:
    error = refused(lambda: ids(payload))
    assert error.code is ErrorCode.BAD_PAYLOAD
    assert "means none of 10 samples" in error.detail


def test_a_sample_that_is_not_there_is_named() -> None:
    error = refused(lambda: ids(these(3, 10)))
    assert (error.field, error.allowed) == ("ids", {"min": 0, "max": 9})
    assert "Sample 10 was chosen of a data set with 10" in error.detail
    error = refused(lambda: sel.resolve(sel.Indices([-1]), table()))
    assert "Sample -1" in error.detail


def test_what_is_not_known_yet_is_asked_for() -> None:
    payload = {
        "kind": "union",
        "of": [
            {"kind": "kmeans", "k": 2, "target_clusters": [0], "feature": "net.0"},
            {"kind": "label_noise"},
        ],
    }
    error = refused(
        lambda: sel.resolve(sel.decode_selection(payload), SampleTable.of_all(DATA)),
    )
    assert error.code is ErrorCode.NOT_ALLOWED_NOW
    assert error.allowed == ["classes", "features:net.0", "loss"]
    assert sel.resolve(sel.Indices([4]), SampleTable.of_all(DATA)).tolist() == [4]


class Files(Dataset[int]):
    """Has names, counts its reads and keeps what was read."""

    def __init__(self, size: int, prefix: str = "a") -> None:
        self.names = [f"{prefix}{n}" for n in range(size)]
        self.reads, self.kept = 0, dict[int, int]()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> int:
        self.reads += 1
        self.kept[index] = index
        return index


def numbers(size: int, seed: int = 0) -> TensorDataset:
    torch.manual_seed(seed)
    return TensorDataset(torch.randn(size, 3), torch.randint(0, 3, (size,)))


def test_a_data_set_is_known_again_without_being_asked_for_samples() -> None:
    files = Files(200)
    first = fingerprint_of(files)
    assert (first.size, files.reads) == (200, 0)
    for n in range(200):
        files[n]
    assert fingerprint_of(files) == first
    assert fingerprint_of(numbers(30)) == fingerprint_of(numbers(30))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Files(200), Files(200, "b")),
        (numbers(30), numbers(30, seed=1)),
        (Subset(numbers(30), range(10)), Subset(numbers(30), range(10, 20))),
        (Subset(Files(9), [1, 2]), Subset(Files(9, "b"), [1, 2])),
        (ConcatDataset([Files(3), Files(3)]), ConcatDataset([Files(3), Files(3, "b")])),
    ],
)
def test_another_data_set_of_the_same_kind_and_size_is_told_apart(one: Any, other: Any) -> None:
    a, b = fingerprint_of(one), fingerprint_of(other)
    assert (a.size, a.kind) == (b.size, b.kind)
    assert a.digest != b.digest


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (numbers(20), "which has shrunk: it had 30 samples and has 20"),
        (numbers(31), "which has grown: it had 30 samples and has 31"),
        (Files(30), "it was TensorDataset, here is Files"),
        (numbers(30, seed=1), "both are TensorDataset with 30 samples, which differ"),
    ],
)
def test_a_choice_of_another_data_set_is_refused(here: Any, said: str) -> None:
    data = numbers(30)
    made_of = fingerprint_of(data)
    chosen = sel.indices_of(np.array([2, 5]), made_of)
    assert sel.decode_selection(sel.to_wire(chosen)) == chosen
    known = SampleTable.of_all(made_of)
    assert sel.resolve(chosen, known, data).tolist() == [2, 5]
    for error in (
        refused(lambda: sel.resolve(chosen, known, here)),
        refused(lambda: sel.resolve(chosen, SampleTable.of_all(fingerprint_of(here)))),
    ):
        assert error.code is ErrorCode.BAD_PAYLOAD
        assert said in error.detail


def test_a_stream_has_no_samples_by_index() -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    for data, said in ((Stream(), "Stream is an iterable data set"), (3, "int has no __getitem__")):
        error = refused(lambda data=data: fingerprint_of(data))
        assert error.code is ErrorCode.UNSUPPORTED
        assert said in error.detail


# Clusters.


def test_clusters_are_numbered_by_their_loss() -> None:
    pytest.importorskip("sklearn")
    losses = [5.0, 0.1, 1.0, 5.1, 0.2, 1.1, math.nan]
    drawn = exact(np.random.get_state())
    kinds = {
        number: ids({"kind": "kmeans", "k": 3, "target_clusters": [number]}, table(losses))
        for number in range(3)
    }
    assert kinds == {0: [1, 4], 1: [2, 5], 2: [0, 3]}
    assert exact(np.random.get_state()) == drawn


def test_clusters_of_a_layer_do_not_count_units_and_leave_out_what_is_not_finite() -> None:
    pytest.importorskip("sklearn")
    losses = [1.0, 2.0, 1.0, 2.0, 1.0]
    features = np.array([[0, 1e6], [1, 1e6], [0.1, 0], [0.9, 0], [math.inf, 0]], dtype=np.float32)
    of = table(losses, features={"net.1": features})
    chosen = sel.KMeans(4, [0, 1], "net.1")
    assert sorted(chosen.clusters(of).tolist()) == [-1, 0, 1, 2, 3]
    assert sel.resolve(chosen, of).tolist() == [0, 2]
    assert chosen.clusters(of).tolist() == chosen.clusters(of).tolist()


def test_more_clusters_than_samples_are_refused_and_equal_ones_are_not() -> None:
    pytest.importorskip("sklearn")
    error = refused(lambda: ids({"kind": "kmeans", "k": 11, "target_clusters": [0]}))
    assert (error.code, error.field) == (ErrorCode.BAD_PAYLOAD, "k")
    assert error.allowed == {"min": 1, "max": 8}
    assert ids({"kind": "kmeans", "k": 2, "target_clusters": [0]}, table([1.0] * 5)) == [
        0, 1, 2, 3, 4
    ]  # fmt: skip


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    error = refused(lambda: ids({"kind": "kmeans", "k": 2, "target_clusters": [0]}))
    assert error.code is ErrorCode.UNSUPPORTED
    assert "pip install 'otf-lightning[samples]'" in error.detail


# Label noise.


def classes(probabilities: list[list[float]], labels: list[int]) -> SampleTable:
    p, y = np.array(probabilities), np.array(labels)
    rows = np.arange(len(y))
    others = p.copy()
    others[rows, y] = -1
    return table(
        [0.0] * len(y),
        labels=y,
        confidence=p[rows, y],
        rivals=others.argmax(1),
        rival_confidence=others.max(1),
    )


def confident_joint(probabilities: list[list[float]], labels: list[int]) -> set[int]:
    """Equation 2 of the paper, word by word."""
    p = probabilities
    members = {j: [row[j] for row, y in zip(p, labels, strict=True) if y == j] for j in set(labels)}
    t = {j: sum(found) / len(found) for j, found in members.items()}
    suspects = set()
    for n, (row, y) in enumerate(zip(p, labels, strict=True)):
        counted = [j for j in t if row[j] >= t[j]]
        if counted and max(counted, key=lambda j: row[j]) != y:
            suspects.add(n)
    return suspects


NOISY = (
    [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.15, 0.85], [0.95, 0.05], [0.45, 0.55]],
    [0, 0, 1, 1, 0, 1, 1],
)


def test_doubtful_labels_are_those_of_the_confident_joint_most_doubtful_first() -> None:
    found = ids({"kind": "label_noise"}, classes(*NOISY))
    assert set(found) == confident_joint(*NOISY) == {4, 5}
    assert ids({"kind": "label_noise", "at_most": 1}, classes(*NOISY)) == [5]


@given(
    st.lists(
        st.tuples(st.integers(1, 127).filter(lambda n: n != 64), st.integers(0, 1)),
        min_size=4,
        max_size=40,
    )
)
def test_with_two_classes_they_are_just_those(rows: list[tuple[int, int]]) -> None:
    p = [[n / 128, 1 - n / 128] for n, _ in rows]  # sums of them are exact
    y = [label for _, label in rows]
    found = set(sel.LabelNoise().ids(classes(p, y)).tolist())
    assert found == confident_joint(p, y)


def test_who_has_no_label_is_no_suspect() -> None:
    known = classes(*NOISY)
    known.labels[4] = -1  # type: ignore[index]
    assert 4 not in ids({"kind": "label_noise"}, known)


# Pages.


def test_a_table_comes_in_pages_of_plain_values() -> None:
    known = table(labels=np.arange(10))
    pages = list(known.pages(4))
    assert [len(page["sample_indices"]) for page in pages] == [4, 4, 2]
    assert [page["start"] for page in pages] == [0, 4, 8]
    losses = [loss for page in pages for loss in page["losses"]]
    assert losses == [loss if math.isfinite(loss) else None for loss in LOSSES]
    assert pages[1]["labels"] == [4, 5, 6, 7]
    json.dumps(pages, allow_nan=False)
    assert [p["total"] for p in SampleTable.of_all(Fingerprint(0, "x", "")).pages()] == [0]
