"""Weights are read from a checkpoint piece by piece, as torch.load reads them whole."""

from __future__ import annotations

import os
import pathlib
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.state import weights_file
from otf_core.state.checkpoint_file import Manifest, write_checkpoint, write_manifest
from otf_core.state.weights_file import open_weights, tied

SHARED = torch.randn(5, 7)
FLAT = torch.randn(100)
TENSORS: dict[str, torch.Tensor] = {
    "embedding": SHARED,
    "head": SHARED,
    "view": FLAT[10:30].view(4, 5),
    "transposed": torch.randn(3, 4).t(),
    "every second": FLAT[::2],
    "expanded": torch.randn(3, 1).expand(3, 4),
    "channels last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "count": torch.tensor(3),
    "bfloat16": torch.randn(3, 3).bfloat16(),
    "float16": torch.randn(3).half(),
    "float64": torch.randn(3, dtype=torch.float64),
    "none": torch.empty(0, 3),
    "mask": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "parameter": nn.Parameter(torch.randn(2)),
}


def written(path: Path, weights: Any, **more: Any) -> Path:
    write_checkpoint({"state_dict": weights, "otf": {}, **more}, path)
    return path


def with_json(path: Path) -> Path:
    nbytes, sha256 = write_checkpoint({"state_dict": TENSORS, "otf": {}}, path)
    beside = Manifest(
        id=path.stem, run_id="r", step=1, epoch=0, ts=0.0, kind="ring", bytes=nbytes, sha256=sha256
    )
    write_manifest(path.parent, beside)
    return path


def refused(path: Path, field: str = "path") -> str:
    with pytest.raises(CommandError) as error, open_weights(path, field=field):
        pass
    assert (error.value.code, error.value.field) == (ErrorCode.BAD_PAYLOAD, field)
    assert path.name in error.value.detail
    return error.value.detail


def test_each_tensor_is_what_torch_loads(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", TENSORS)
    whole = torch.load(path, weights_only=True)["state_dict"]
    with open_weights(path) as weights:
        assert list(weights.shapes) == list(whole)
        assert weights.label == "a.ckpt"
        for name, expected in whole.items():
            found = weights.read(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.stride() == expected.stride()
            assert torch.equal(found, expected), name
            middle = expected.numel() // 2
            pieces = [weights.block(name, 0, middle), weights.block(name, middle, found.numel())]
            assert torch.equal(torch.cat(pieces), expected.detach().reshape(-1)), name


def test_of_a_run_it_is_called_by_its_run(tmp_path: Path) -> None:
    with open_weights(with_json(tmp_path / "1-ring.ckpt")) as weights:
        assert weights.label == "r/1-ring"


def test_what_is_one_tensor_is_found_under_all_its_names(tmp_path: Path) -> None:
    with open_weights(written(tmp_path / "a.ckpt", TENSORS)) as weights:
        assert tied(weights.shapes)[0] == ["embedding", "head"]
        assert len(tied(weights.shapes)) == len(TENSORS) - 1
    assert tied(TENSORS)[0] == ["embedding", "head"]


def test_what_is_no_plain_tensor_is_named(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse_coo()
    weights = {"w": torch.ones(2), "_extra_state": {"t": torch.ones(1)}, "sparse": sparse}
    with (
        torch.sparse.check_sparse_tensor_invariants(),
        open_weights(written(tmp_path / "a.ckpt", weights, optimizer={"s": sparse})) as found,
    ):
        assert list(found.shapes) == ["w"]
        assert found.others == ["_extra_state", "sparse"]
        torch.load(tmp_path / "a.ckpt", weights_only=True)  # looks at the sparse ones of this file


def test_of_several_modules_the_names_are_joined(tmp_path: Path) -> None:
    weights = {"encoder": {"w": torch.ones(2)}, "head": {"w": torch.zeros(2)}}
    with open_weights(written(tmp_path / "a.ckpt", weights)) as found:
        assert torch.equal(found.read("encoder.w"), torch.ones(2))
        assert list(found.shapes) == ["encoder.w", "head.w"]


def test_nothing_of_the_weights_is_read_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class SpiedOs:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def preadv(self, fd: int, buffers: list[Any], at: int) -> int:
            sizes.append(sum(len(each) for each in buffers))
            return os.preadv(fd, buffers, at)

    path = written(tmp_path / "a.ckpt", {"big": torch.zeros(100_000), "small": torch.zeros(10)})
    monkeypatch.setattr(weights_file, "os", SpiedOs())
    with open_weights(path) as weights:
        assert sizes == []
        weights.block("big", 5, 7)
        weights.read("small")
    assert sizes == [8, 40]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error, open_weights(tmp_path / "a.ckpt"):
        pass
    assert error.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("beside", [True, False])
def test_any_bit_that_has_changed_is_noticed(tmp_path: Path, beside: bool) -> None:
    path = with_json(tmp_path / "1-ring.ckpt")
    whole = path.read_bytes()
    if not beside:
        path.with_suffix(".json").unlink()
    with zipfile.ZipFile(path) as archive:
        [entry] = (e for e in archive.infolist() if e.filename.endswith("/data/0"))
    damaged = bytearray(whole)
    damaged[entry.header_offset + 200] ^= 1
    path.write_bytes(damaged)
    assert "is damaged" in refused(path, field="paths")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_is_half_written_is_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path / "a.ckpt", TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cannot be read as a checkpoint" in refused(path)


def repacked(path: Path, record: str, content: bytes) -> Path:
    """A file whose sums are right, with something else in one record."""
    new = path.with_name("repacked.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
        for entry in old.infolist():
            changed = entry.filename.endswith(f"/{record}")
            archive.writestr(entry.filename, content if changed else old.read(entry))
    return new


@pytest.mark.parametrize("sums", ["wrong", "right"])
def test_any_file_is_read_or_refused(tmp_path: Path, sums: str) -> None:
    path = written(tmp_path / "a.ckpt", TENSORS)
    chance = random.Random(0)
    with zipfile.ZipFile(path) as archive:
        [pickled] = (archive.read(n) for n in archive.namelist() if n.endswith("/data.pkl"))
    read, codes = 0, set[ErrorCode]()
    for _ in range(400):
        damaged = bytearray(path.read_bytes() if sums == "wrong" else pickled)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if sums == "wrong":
            tried = tmp_path / "damaged.ckpt"
            tried.write_bytes(damaged)
        else:
            tried = repacked(path, "data.pkl", bytes(damaged))
        try:
            with open_weights(tried) as weights:
                for name in weights.shapes:
                    weights.read(name)
            read += 1
        except CommandError as error:
            codes.add(error.code)
    assert read < 200
    assert codes == {ErrorCode.BAD_PAYLOAD}


def test_a_tensor_that_is_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", {"w": torch.zeros(30)})
    with zipfile.ZipFile(path) as archive:
        [pickled] = (archive.read(n) for n in archive.namelist() if n.endswith("/data.pkl"))
    numel, shape = b"K\x1et", b"K\x1e\x85"  # in the storage's id, and of the tensor
    assert (pickled.count(numel), pickled.count(shape)) == (1, 1)
    assert "w is larger than what is stored of it" in refused(
        repacked(path, "data.pkl", pickled.replace(shape, b"K\x1f\x85"))
    )
    assert "is damaged: data/0 is not what it should be" in refused(
        repacked(path, "data.pkl", pickled.replace(numel, b"K\x1ft"))
    )


def test_a_file_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "otf": {}, "x": pathlib.PurePosixPath("/x")}, path)
    assert "may run code; nothing was run" in refused(path)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"state_dict": {}}, "no checkpoint of otf"),
        ({"otf": {}}, "has no weights"),
        ({"otf": {}, "state_dict": [1]}, "has no weights"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path: Path, state: Any, why: str) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state, path)
    assert why in refused(path)


def test_of_another_byte_order_it_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", TENSORS)
    assert "big byte order" in refused(repacked(path, "byteorder", b"big"))


@pytest.mark.parametrize("change", ["cut", "written over"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = written(tmp_path / "a.ckpt", {"w": torch.zeros(10_000)})
    with open_weights(path, field="paths") as weights:
        weights.read("w")
        if change == "cut":
            os.truncate(path, 1000)
        else:
            with path.open("r+b") as file:
                file.write(b"x")
            os.utime(path, ns=(0, 0))
        with pytest.raises(CommandError) as error:
            weights.read("w")
    assert error.value.field == "paths"
    assert "has been changed since it was verified" in error.value.detail


def test_behind_its_block_nothing_is_read(tmp_path: Path) -> None:
    with open_weights(written(tmp_path / "a.ckpt", {"w": torch.zeros(10)})) as weights:
        pass
    with (tmp_path / "a.ckpt").open("rb"), pytest.raises(CommandError, match="cannot be read"):
        weights.read("w")


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ckpt", {"w": torch.zeros(10)})
    with open_weights(path) as weights:
        written(path, {"w": torch.ones(10)})
        assert torch.equal(weights.read("w"), torch.zeros(10))
