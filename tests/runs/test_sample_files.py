"""What is known of samples becomes a file that pandas, spreadsheets and scripts read."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import sample_rows
from otf_core.runs.render import MAX_VALUES, columns_of
from otf_core.runs.sample_files import ENDINGS, refuse_without_arrow, sample_file
from otf_core.runs.sample_rows import FETCHED, ROWS, SampleRows
from otf_core.runs.table import NO_CLASS, SampleTable, fingerprint_of
from tests.runs.scans import subject

KINDS = {"sample_index": int, "loss": float, "text": str, "seen": bool}
COLUMNS: Mapping[str, list[Any]] = {
    "sample_index": [0, 5, 2**62],
    "loss": [0.1 + 0.2, math.nan, math.inf],
    "text": ['say "hi",\nü', None, ""],
    "seen": [True, None, False],
}


def written(form: str, columns: Mapping[str, list[Any]] = COLUMNS, parts: int = 2) -> bytes:
    file = io.BytesIO()
    target = sample_file(form, file, KINDS)
    for _ in range(parts):
        target.write(columns)
    target.end()
    return file.getvalue()


def rows(form: str, data: bytes) -> list[dict[str, Any]]:
    if form == "csv":
        return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    if form == "json":
        return list(json.loads(data))
    read = pyarrow.parquet.read_table if form == "parquet" else pyarrow.feather.read_table
    return list(read(io.BytesIO(data)).to_pylist())


@pytest.mark.parametrize("form", ENDINGS)
def test_values_come_back(form: str) -> None:
    found = rows(form, written(form))
    assert len(found) == 6
    first, second, third = found[:3]
    if form == "csv":
        assert [float(r["loss"]) for r in (first, third)] == [0.1 + 0.2, math.inf]
        assert [r["text"] for r in found[:3]] == ['say "hi",\nü', "", ""]
        assert [r["sample_index"] for r in found[:3]] == ["0", "5", str(2**62)]
        assert (second["loss"], [r["seen"] for r in found[:3]]) == ("nan", ["True", "", "False"])
        return
    assert [r["text"] for r in found[:3]] == COLUMNS["text"]
    assert [r["seen"] for r in found[:3]] == COLUMNS["seen"]
    assert [r["sample_index"] for r in found[:3]] == COLUMNS["sample_index"]
    assert first["loss"] == 0.1 + 0.2
    if form == "json":
        assert (second["loss"], third["loss"]) == (None, None)
    else:
        assert math.isnan(second["loss"])
        assert third["loss"] == math.inf


@pytest.mark.parametrize("form", ENDINGS)
def test_without_rows_it_is_a_file_too(form: str) -> None:
    assert rows(form, written(form, parts=0)) == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_only_in_csv_a_text_that_is_a_formula_is_made_harmless(start: str) -> None:
    text = f"{start}HYPERLINK(0)"
    columns = {**COLUMNS, "text": [text, f"a{text}", None], "loss": [-1.0, 0.0, 0.0]}
    [first, second, _] = rows("csv", written("csv", columns, 1))
    assert (first["text"], second["text"], first["loss"]) == (f"'{text}", f"a{text}", "-1.0")
    for form in ("json", "parquet", "feather"):
        assert rows(form, written(form, columns, 1))[0]["text"] == text
    kinds = {f"{start}1": int}
    file = io.BytesIO()
    sample_file("csv", file, kinds)
    assert next(csv.reader(io.StringIO(file.getvalue().decode(), newline=""))) == [f"'{start}1"]


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_without_pyarrow_it_is_refused_with_what_helps(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError, match="pip install 'otf-lightning") as caught:
        refuse_without_arrow(form)
    assert (caught.value.code, caught.value.allowed) == (ErrorCode.UNSUPPORTED, ["csv", "json"])
    for other in ("csv", "json"):
        refuse_without_arrow(other)
        assert written(other)


# The columns of a sample.


class Odd:
    pass


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((torch.tensor([1.0, 2.0]), 3), {"x_0": 1.0, "x_1": 2.0, "label": 3}),
        ((torch.ones(MAX_VALUES + 1), torch.tensor(3)), {"label": 3}),
        ((np.array([[True, False]]), np.int64(2)), {"x_0": True, "x_1": False, "label": 2}),
        (("a text", 1), {"text": "a text", "label": 1}),
        ("\udcff", {"text": "\\udcff"}),
        ({"text": "t", "label": 4, "n": 2.5}, {"text": "t", "label": 4, "n": 2.5}),
        ({"a": {"label": 1, "b": [1, 2]}}, {"a.label": 1, "a.b_0": 1, "a.b_1": 2}),
        ((torch.ones(1), torch.zeros(2), 0.5), {"x": 1.0, "x_0": 0.0, "x_1": 0.0, "label": 0.5}),
        (("one", "two"), {"text": "one", "text-2": "two"}),
        ([1, 2.5], {"x_0": 1, "x_1": 2.5}),
        (torch.tensor(3), {"x": 3}),
        (torch.tensor([1.5, math.nan], dtype=torch.bfloat16), {"x_0": 1.5, "x_1": math.nan}),
        (None, {"x": None}),
        (Odd(), {}),
        ({"image": torch.rand(3, 32, 32), "made": Odd()}, {}),
        (torch.ones(2, dtype=torch.complex64), {}),
        ([["a", ["b"]]], {"text": "a", "text-2": "b"}),
    ],
)
def test_a_sample_has_the_columns_that_are_plain(sample: Any, expected: dict[str, Any]) -> None:
    found = columns_of(sample)
    assert repr(sorted(found.items())) == repr(sorted(expected.items()))  # nan, and the types


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"kind": "row", "names": ["a", "b"], "values": [1, "t"], "label": 2},
         {"a": 1, "b": "t", "label": 2}),
        ({"kind": "row", "values": [1, 2]}, {"x_0": 1, "x_1": 2}),
        ({"kind": "text", "text": "t" * 5000}, {"text": "t" * 5000}),
        ({"kind": "image", "url": "data:", "label": 1}, {"label": 1}),
        ("t", {"text": "t"}),
        ({"mine": 1}, {"mine": 1}),
    ],
)  # fmt: skip
def test_what_a_hook_makes_of_it_is_the_sample(shown: Any, expected: dict[str, Any]) -> None:
    assert columns_of(object(), lambda _: shown) == expected


def test_lists_that_hold_themselves_end() -> None:
    endless: list[Any] = ["a"]
    endless.append(endless)
    assert columns_of(endless)["text"] == "a"
    mapping: dict[str, Any] = {}
    mapping["m"] = mapping
    assert columns_of(mapping) == {}


# Rows.


class Given:
    """A data set of these samples, that counts what it is asked for."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.asked = samples, list[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.samples[index]


def rows_of(
    samples: list[Any], cancelled: Callable[[], bool] = lambda: False, **columns: Any
) -> tuple[SampleRows, list[dict[str, Any]], Given]:
    data = Given(samples)
    made = subject(dataset=data)
    ids = np.arange(len(samples), dtype=np.int64)
    table = SampleTable(fingerprint_of(data), ids, ids / 2, **columns)
    found = SampleRows(table, made, cancelled)
    parts: dict[str, list[Any]] = {name: [] for name in found.kinds}
    for done, part in found.parts():
        assert list(part) == list(found.kinds)
        for name, column in part.items():
            parts[name] += column
        assert {len(column) for column in parts.values()} == {done}
    return (
        found,
        [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)],
        data,
    )


def test_rows_have_what_the_scan_knows_and_what_is_the_samples_own() -> None:
    labels, predictions = np.array([1, NO_CLASS]), np.array([NO_CLASS, 2])
    found, table, _ = rows_of([("a", 7), ("b", 8)], labels=labels, predictions=predictions)
    assert found.kinds == {
        "sample_index": int, "loss": float, "label": int, "prediction": int, "text": str,
    }  # fmt: skip
    assert table == [
        {"sample_index": 0, "loss": 0.0, "label": 1, "prediction": None, "text": "a"},
        {"sample_index": 1, "loss": 0.5, "label": None, "prediction": 2, "text": "b"},
    ]


def test_where_no_classes_are_known_the_label_is_the_samples_own() -> None:
    found, table, _ = rows_of([("a", 0.5), ("b", 2)])
    assert found.kinds["label"] is float
    assert [row["label"] for row in table] == [0.5, 2.0]


def test_columns_that_are_called_as_ours_are_renamed() -> None:
    found, table, _ = rows_of([{"loss": 3, "label": 1, "sample_index": 9}])
    assert list(found.kinds) == ["sample_index", "loss", "label", "own_loss", "own_sample_index"]
    assert [*table[0].values()] == [0, 0.0, 1, 3, 9]


def test_images_are_not_asked_for_beyond_the_first() -> None:
    _, table, data = rows_of([(torch.zeros(3, 9, 9), "x" and torch.zeros(70))] * 300)
    assert (len(table), data.asked) == (300, [*range(FETCHED)])


def test_every_sample_is_asked_for_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_rows, "ROWS", 100)
    _, table, data = rows_of([(n, 0) for n in range(350)])
    assert data.asked == [*range(350)]
    assert [row["x"] for row in table] == [*range(350)]


def test_what_does_not_fit_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_rows, "ROWS", 100)
    samples: list[Any] = [{"n": 1, "t": "a"}] * 100
    samples += [{"n": 2.5, "t": 3}, {"n": "x", "t": None}, {"n": 2**70, "new": 1}, {"n": 5}]
    found, table, _ = rows_of(samples)
    assert [row["n"] for row in table[100:]] == [None, None, None, 5]
    assert [row["t"] for row in table[100:]] == ["3", None, None, None]
    assert found.left_out == 4
    assert ROWS > FETCHED


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2.5], float), ([1, True], str), ([1, "a"], str), ([None, 3], int), ([None, None], str),
     ([2**70, 1], float)],
)  # fmt: skip
def test_a_column_has_the_kind_that_has_room(values: list[Any], kind: type) -> None:
    found, table, _ = rows_of([{"v": value} for value in values])
    assert (found.kinds["v"], found.left_out) == (kind, 0)
    assert {type(row["v"]) for row in table} <= {kind, type(None)}


class Drawing(Given):
    def __getitem__(self, index: int) -> Any:
        return torch.randn(2) + float(np.random.rand()), 0


def test_what_a_data_set_draws_is_drawn_from_a_seed_of_its_own() -> None:
    data = Drawing([None] * 200)
    table = SampleTable(fingerprint_of(data), ids := np.arange(200), ids / 2)
    first, second = (
        [dict(part) for _, part in SampleRows(table, subject(dataset=data), lambda: False).parts()]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first[0]["x_0"])) == 200


def test_cancelled_it_ends_within_a_few_samples() -> None:
    data = Given([(n, 0) for n in range(10_000)])
    table = SampleTable(fingerprint_of(data), ids := np.arange(10_000), ids / 2)
    with pytest.raises(CommandError, match="cancelled after 256 of 10,000 rows"):
        SampleRows(table, subject(dataset=data), lambda: len(data.asked) >= 256)
    assert len(data.asked) == 256


def test_a_part_of_a_table_has_the_rows_of_its_samples() -> None:
    data = Given([(n, 0) for n in range(5)])
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    table = SampleTable(
        fingerprint_of(data), np.arange(5), np.arange(5) / 2, labels=np.arange(5) * 3,
        features={"layer": rows},
    )  # fmt: skip
    part = table.only(np.array([1, 4])).only(np.array([4]))
    assert (part.ids.tolist(), part.losses is not None and part.losses.tolist()) == ([4], [2.0])
    assert (part.labels is not None and part.labels.tolist()) == [12]
    assert (part.predictions, part.features["layer"].tolist()) == (None, [[8.0, 9.0]])
    assert part.data == table.data
