"""Weights that are written tensor by tensor are read by the safetensors package."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from otf_core.state.safetensors_file import DTYPES, write_safetensors

TENSORS = {
    **{str(dtype).removeprefix("torch."): torch.arange(7).to(dtype) for dtype in DTYPES},
    "scalar": torch.tensor(3.5),
    "none": torch.empty(0, 3),
    "transposed": torch.randn(3, 4).t(),
    "every second": torch.randn(10)[::2],
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "ü.weight": torch.randn(2, 2),
    "odd": torch.ones(3, dtype=torch.uint8),
}


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    with path.open("wb") as file:
        shapes = {name: t.to("meta") for name, t in tensors.items()}
        write_safetensors(file, shapes, tensors.__getitem__, metadata)
    return path


def test_each_type_and_layout_comes_back_bit_for_bit(tmp_path: Path) -> None:
    found = load_file(write(tmp_path / "a.safetensors", TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        bytes_ = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], expected)]
        assert torch.equal(*bytes_), name


def test_each_tensor_lies_where_its_type_may_lie(tmp_path: Path) -> None:
    data = write(tmp_path / "a.safetensors", TENSORS, odd="x").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0, name


def test_the_metadata_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"x": torch.ones(1)}, run_id="r", tied="[]")
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"run_id": "r", "tied": "[]"}


@pytest.mark.parametrize("tensors", [{}, {"x": torch.ones(5, dtype=torch.uint8)}])
def test_a_file_of_few_bytes_is_one(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = load_file(write(tmp_path / "a.safetensors", tensors))
    assert {name: t.tolist() for name, t in found.items()} == {
        n: t.tolist() for n, t in tensors.items()
    }


def test_one_tensor_is_read_at_a_time() -> None:
    there: list[str] = []

    def read(name: str) -> torch.Tensor:
        there.append(name)
        return torch.zeros(4)

    class Told(io.BytesIO):
        def write(self, data: object) -> int:  # type: ignore[override]
            there.append("written")
            return super().write(data)  # type: ignore[arg-type]

    write_safetensors(Told(), {n: torch.zeros(4, device="meta") for n in "ab"}, read, {})
    assert there == ["written", "written", "a", "written", "b", "written"]
