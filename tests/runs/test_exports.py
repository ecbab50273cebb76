"""A held run gives out its samples, weights and paths of checkpoints, and is as it was."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from otf_core.errors import CommandError
from otf_core.runs.exports import write_weights
from otf_core.state.checkpoint_file import Manifest, read_checkpoint, write_checkpoint
from otf_core.state.weights_file import open_weights
from tests.no_harm.configs import Net, digits
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runs import fits
from tests.runs.fits import SIDES, Side, fresh

HELD = 4
FORMS = ("csv", "json", "parquet", "feather")

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "home"
    found.mkdir()
    monkeypatch.setenv("HOME", str(found))
    return found


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        return [{name: float(cell) for name, cell in row.items()} for row in found]
    if path.suffix == ".json":
        return list(json.loads(path.read_text()))
    read = {".parquet": pyarrow.parquet.read_table, ".feather": pyarrow.feather.read_table}
    return list(read[path.suffix](path).to_pylist())


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_all_that_is_given_out_is_right_and_the_run_is_as_it_was(
    side: Side, tmp_path: Path, home: Path
) -> None:
    expected = side.bare(fresh())
    module = fresh()
    with side.fitting(tmp_path / "runs", module, HELD) as (run, held):
        pause_in(run, held, HELD)
        said = asks(run, "export_subset")
        page = asks(run, "samples")
        files = {}
        worst = {"kind": "quantile", "from": 0.9, "to": 1.0}
        for form in FORMS:
            asked = {"run_id": "r", "format": form, "out_path": str(home / f"worst.{form}")}
            files[form] = asks(run, "export_subset", {**asked, "selection": worst})
        some = asks(run, "export_subset", {"subset_indices": [9, 3, 3], "_trace": "no-trace"})
        val = asks(run, "export_subset", {"on": "val", "format": "json"})
        weights = asks(run, "export_weights", {"out_path": str(home / "w.safetensors")})
        live = {name: t.clone() for name, t in module.state_dict().items()}
        paths = asks(run, "prepare_export", {"dir": str(home / "into"), "owners": ["r"]})
        all_paths = asks(run, "spill_all", {"latest_only": False})
        assert asks(run, "status")["state"] == "paused"
        told = [e for e in run.dashboard.events() if e["type"] == "artifact_created"]
        asks(run, "resume")
        found = side.digest(run.outcome())
    assert found == expected

    exports = tmp_path / "runs" / Path(said["out_path"]).relative_to(tmp_path / "runs")
    assert exports.parent.name == "exports"
    assert exports.name == "r-step5-train.csv"
    assert (said["ok"], said["rows"], said["format"], said["export_all"]) == (
        True,
        192,
        "csv",
        True,
    )
    table = rows_of(exports)
    assert [row["sample_index"] for row in table] == [*range(192)]
    assert [row["loss"] for row in table] == page["losses"]
    assert [row["label"] for row in table] == digits()[:][1].tolist() == page["labels"]
    assert [row["prediction"] for row in table] == page["predictions"]
    assert {f"x_{n}" for n in range(64)} < table[0].keys()

    worst_ids = sorted(np.argsort(page["losses"], kind="stable")[173:].tolist())
    first = rows_of(Path(files["csv"]["out_path"]))
    for form in FORMS:
        assert files[form]["out_path"] == str(home / f"worst.{form}")
        assert (files[form]["rows"], files[form]["export_all"]) == (19, False)
        table = rows_of(home / f"worst.{form}")
        assert [row["sample_index"] for row in table] == worst_ids
        assert table == first
    assert (some["rows"], some["received_indices"], some["export_all"]) == (2, 3, False)
    table = rows_of(Path(some["out_path"]))
    assert [(r["sample_index"], r["loss"]) for r in table] == [
        (n, page["losses"][n]) for n in (3, 9)
    ]
    assert val["rows"] == 64
    images = [[row[f"x_{n}"] for n in range(64)] for row in rows_of(Path(val["out_path"]))]
    assert torch.equal(torch.tensor(images), digits(64)[:][0])
    assert [(e.get("rows"), Path(e["path"]).name) for e in told][-3:] == [
        (2, "r-step5-train-2.csv"), (64, "r-step5-val.json"), (None, "w.safetensors"),
    ]  # fmt: skip

    read = load_file(weights["out_path"])
    assert read.keys() == live.keys()
    assert all(torch.equal(read[name], live[name]) for name in live)
    assert (weights["step"], weights["tensors"], weights["tied"]) == (5, len(live), [])
    assert (paths["ckpt"]["run"], paths["ckpt"]["step"], paths["snapshots"]) == ("r", 5, [])
    assert Path(paths["ckpt"]["path"]).is_file()
    assert [each["step"] for each in all_paths] == [5, 0]
    assert {each["owner"] for each in all_paths} == {"r"}
    assert all_files(home) == ["w.safetensors", *(f"worst.{form}" for form in sorted(FORMS))]


def test_what_cannot_be_is_refused_before_anything_is_looked_at(
    side: Side, tmp_path: Path, home: Path
) -> None:
    expected = side.bare(fresh())
    (home / "mine.csv").write_text("mine")
    (home / "out").symlink_to(tmp_path)
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("export_subset", {"out_path": "/etc/x.csv"}, "bad_payload", "a file below"),
        ("export_subset", {"out_path": str(home / "out" / "x.csv")}, "bad_payload", "a file below"),
        ("export_subset", {"out_path": str(home / "mine.csv")}, "bad_payload", "is there already"),
        ("export_subset", {"out_path": str(home / "x.csv"), "format": "json"}, "bad_payload", ""),
        ("export_subset", {"format": "xlsx"}, "bad_payload", "format"),
        ("export_subset", {"run_id": "nobody"}, "not_found", "nobody"),
        ("export_subset", {"subset_indices": []}, "bad_payload", "at least 1"),
        ("export_subset", {"subset_indices": [192]}, "bad_payload", "0 to 191"),
        ("export_subset", {"subset_indices": [-1]}, "bad_payload", "0 to 191"),
        ("export_subset", {"subset_indices": [2**63]}, "bad_payload", ""),
        ("export_subset", {"subset_indices": [1], "selection": {}}, "bad_payload", "one of them"),
        ("export_subset", {"selection": {"kind": "other"}}, "bad_payload", "selection"),
        ("export_subset", {"on": "../x"}, "bad_payload", "train, val, test"),
        ("prepare_export", {"owners": ["r", "../r"]}, "not_found", "../r"),
        ("export_weights", {"checkpoint": "../x"}, "not_found", "has no checkpoint"),
        ("export_weights", {"run_id": "nobody"}, "not_found", "nobody"),
        ("export_weights", {"out_path": str(home / "w.pt")}, "bad_payload", "safetensors"),
    ]  # fmt: skip
    with side.fitting(tmp_path / "runs", fresh(), HELD) as (run, held):
        pause_in(run, held, HELD)
        before = all_files(tmp_path)
        for cmd, payload, code, words in cases:
            found, detail = refused(run, cmd, payload)
            assert (found, words in detail) == (code, True), (cmd, payload, found, detail)
        assert [f for f in all_files(tmp_path) if not f.endswith(".jsonl")] == [
            f for f in before if not f.endswith(".jsonl")
        ]
        assert not [e for e in run.dashboard.events() if e["type"] == "progress"]
        asks(run, "resume")
        assert side.digest(run.outcome()) == expected


class Waits(fits.Augmented):
    """Waits in the middle of an export: the scan has gone over it once before."""

    def __init__(self) -> None:
        super().__init__()
        reached, go = threading.Event(), threading.Event()
        self.events = lambda: (reached, go)

    def __getitem__(self, index: int) -> Any:
        if index == 100 and any(t.name == "wait" for t in threading.enumerate()):
            reached, go = self.events()
            reached.set()
            assert go.wait(30)
        return super().__getitem__(index)


@pytest.mark.parametrize("when", ["scanned", "written"])
def test_cancelled_at_any_moment_nothing_is_there_and_the_run_is_as_it_was(
    side: Side, when: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: list[Waits] = []

    def loader() -> DataLoader[Any]:
        data.append(Waits())
        return DataLoader(data[-1], batch_size=16, shuffle=True)

    monkeypatch.setattr(fits, "train_loader", loader)
    expected = side.bare(fresh())
    over = threading.Event()
    with side.fitting(tmp_path / "runs", fresh(), HELD) as (run, held):
        pause_in(run, held, HELD)
        if when == "written":
            asks(run, "scan")
        waiting = threading.Thread(target=over.wait, args=(60,), name="wait")
        waiting.start()
        try:
            asked = run.dashboard.send("export_subset", {"out_path": str(home / "x.csv")})
            reached, go = data[-1].events()
            assert reached.wait(30)
            asks(run, "cancel", {"request_id": asked})
            go.set()
            reply = run.dashboard.reply_to(asked)
        finally:
            over.set()
            waiting.join()
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert "cancelled after" in reply["detail"]
        assert all_files(home) == []
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        assert side.digest(run.outcome()) == expected


class Raising(Net):
    def render_sample(self, sample: Any) -> Any:
        msg = "no luck"
        raise RuntimeError(msg)


def test_a_hook_that_raises_costs_the_export_and_nothing_else(
    side: Side, tmp_path: Path, home: Path
) -> None:
    expected = side.bare(fresh(Raising))
    with side.fitting(tmp_path / "runs", fresh(Raising), HELD) as (run, held):
        pause_in(run, held, HELD)
        code, detail = refused(run, "export_subset", {"out_path": str(home / "x.csv")})
        assert (code, "no luck" in detail) == ("internal", True)
        assert all_files(home) == []
        asks(run, "resume")
        assert side.digest(run.outcome()) == expected


class Told(Net):
    def render_sample(self, sample: Any) -> Any:
        return {"kind": "text", "text": f"=sum({int(sample[0].sum()) * 0})", "label": 5}


def test_what_a_hook_makes_of_a_sample_is_exported(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path / "runs", fresh(Told), HELD) as (run, held):
        pause_in(run, held, HELD)
        said = [asks(run, "export_subset", {"format": form}) for form in ("csv", "json")]
        asks(run, "resume")
        run.outcome()
    lines = Path(said[0]["out_path"]).read_text().splitlines()
    assert lines[0] == "sample_index,loss,label,prediction,text"
    assert lines[1].endswith(",'=sum(0)")
    assert json.loads(Path(said[1]["out_path"]).read_text())[0]["text"] == "=sum(0)"


@pytest.mark.parametrize("cmd", ["export_subset", "export_weights"])
def test_a_full_disk_refuses_and_the_run_is_as_it_was(
    side: Side, cmd: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = side.bare(fresh())
    real = Path.open

    def full(self: Path, *args: Any, **more: Any) -> Any:
        file = real(self, *args, **more)
        if self.name.startswith(".otf-"):
            file.close()
            file = real(Path("/dev/full"), "wb", buffering=0)
        return file

    ending = "csv" if cmd == "export_subset" else "safetensors"
    with side.fitting(tmp_path / "runs", fresh(), HELD) as (run, held):
        pause_in(run, held, HELD)
        asks(run, "export_subset")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", full)
            code, detail = refused(run, cmd, {"out_path": str(home / f"x.{ending}")})
        assert (code, "no space left on device" in detail) == ("not_allowed_now", True), detail
        assert all_files(home) == []
        asks(run, cmd, {"out_path": str(home / f"x.{ending}")})
        asks(run, "resume")
        assert side.digest(run.outcome()) == expected


def test_the_paths_of_all_runs_are_those_of_whole_files(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path / "runs", fresh(), HELD, 6) as (run, held):
        pause_in(run, held, HELD)
        asks(run, "fork", {"run_name": "f"})
        asks(run, "resume")
        pause_in(run, held, 6)
        found = asks(run, "prepare_export", {"dir": "x", "latest_only": True, "owners": ["r", "f"]})
        everything = asks(run, "prepare_export", {"latest_only": False})
        others = asks(run, "prepare_export", {"owners": ["r"]})
        spilled = asks(run, "spill_all", {"dir": "x", "latest_only": True})
        of_parent = asks(run, "export_weights", {"run_id": "r"})
        code, detail = refused(run, "export_subset", {"run_id": "r"})
        assert (code, "switch_run" in detail) == ("not_allowed_now", True)
        before = [found["ckpt"], *found["snapshots"], *everything["snapshots"], *spilled]
        for each in before:
            path = Path(each["path"])
            assert path.is_file()
            assert not path.is_symlink()
            assert read_checkpoint(path)[0]["otf"]["step"] == each["step"]
        asks(run, "resume")
        run.outcome()
    assert (found["ckpt"]["run"], found["ckpt"]["step"]) == ("f", 7)
    [snapshot] = found["snapshots"]
    assert (snapshot["owner"], snapshot["step"]) == ("r", 5)
    assert snapshot["ckpt_id"].startswith("r-5-")
    assert (others["ckpt"]["run"], others["snapshots"]) == ("r", [])
    assert {(each["owner"], each["step"]) for each in spilled} == {("r", 5), ("f", 7)}
    steps = sorted((each["owner"], each["step"]) for each in everything["snapshots"])
    assert ("r", 0) in steps
    assert found["ckpt"]["path"] not in [each["path"] for each in everything["snapshots"]]
    assert (of_parent["run_id"], of_parent["step"]) == ("r", 5)


def test_a_run_that_trains_is_exported_between_two_batches(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path / "runs", fresh(), HELD) as (run, held):
        held.wait_for(HELD)
        asked = [
            run.dashboard.send(cmd) for cmd in ("export_subset", "prepare_export", "spill_all")
        ]
        asks(run, "ping")  # by then they are heard
        held.let_go(HELD)
        said = [run.dashboard.reply_to(each)["data"] for each in asked]
        assert side.digest(run.outcome()) == expected
    assert (said[0]["applied_step"], said[1]["ckpt"]["step"], said[2][0]["step"]) == (5, 5, 5)


class Odd(Net):
    """Weights of every kind: tied, half, not contiguous, and a state that is none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.more = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        self.more["b"].weight = self.more["a"].weight
        self.narrow = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.across = nn.Parameter(torch.randn(2, 5).t())
        self.register_buffer("count", torch.tensor(3))

    def get_extra_state(self) -> Any:
        return {"mine": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_odd_weights_load_into_a_model_of_the_same_kind(side: Side, tmp_path: Path) -> None:
    module = fresh(Odd)
    with side.fitting(tmp_path / "runs", module, HELD) as (run, held):
        pause_in(run, held, HELD)
        said = asks(run, "export_weights")
        live = {name: t for name, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
        live = {name: t.clone() for name, t in live.items()}
        asks(run, "resume")
        run.outcome()
    assert Path(said["out_path"]).name == "r-5-pause.safetensors"
    assert (said["tied"], said["left_out"]) == (
        [["more.a.weight", "more.b.weight"]], ["_extra_state"],
    )  # fmt: skip
    read = load_file(said["out_path"])
    other = fresh(Odd)
    assert other.load_state_dict(read, strict=False).missing_keys == ["_extra_state"]
    assert all(torch.equal(other.state_dict()[name], live[name]) for name in live)
    with safe_open(said["out_path"], framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["run_id"], metadata["step"], metadata["checkpoint"]) == ("r", "5", "5-pause")
    assert json.loads(metadata["tied"]) == said["tied"]


@pytest.mark.parametrize(
    ("owners", "names"), [(["net"], ["weight"]), (["a", "b"], ["a.weight", "b.weight"])]
)
def test_names_are_those_of_the_model_where_there_is_one(
    owners: list[str], names: list[str], tmp_path: Path
) -> None:
    weights = {owner: {"weight": torch.full((2,), float(n))} for n, owner in enumerate(owners)}
    path = tmp_path / "5-ring.ckpt"
    write_checkpoint({"state_dict": weights, "otf": {}}, path)
    of = Manifest(id="5-ring", run_id="r", step=5, epoch=0, ts=0.0, kind="ring")
    with open_weights(path) as found:
        with (tmp_path / "w").open("wb") as file:
            assert write_weights(file, found, of, lambda: False)["tensors"] == len(owners)
        with pytest.raises(CommandError, match="cancelled"):
            write_weights(io.BytesIO(), found, of, lambda: True)
    read = load_file(tmp_path / "w")
    assert [(name, read[name].tolist()) for name in sorted(read)] == [
        (name, [float(n)] * 2) for n, name in enumerate(names)
    ]
