"""Weights as a safetensors file, tensor by tensor.

The format (safetensors 0.8, "Format" of its README): the length of a header as 8 bytes, little
endian; the header, JSON; the tensors without gaps. That package writes from memory only, which
would have all tensors there at once; it reads what is written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import IO, Final

import torch

DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
_ALIGNED: Final = 8


def write_safetensors(
    file: IO[bytes],
    shapes: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write all of them; one tensor is in memory at a time.

    Args:
        shapes: by name, without data; each of a type in DTYPES.
        read: one of them with its data, on the host.
    """
    # As that package does: the widest first, so that each lies where its type may lie.
    names = sorted(shapes, key=lambda name: (-shapes[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name in names:
        shape = shapes[name]
        end = at + math.prod(shape.shape) * shape.itemsize
        header[name] = {
            "dtype": DTYPES[shape.dtype], "shape": list(shape.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        tensor = read(name).contiguous().reshape(-1)
        file.write(tensor.view(torch.uint8).numpy().data)
