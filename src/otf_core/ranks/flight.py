"""The flight recorder of torch's process groups: which collectives a rank has begun, in a file.

It is on by default (``TORCH_FR_BUFFER_SIZE``, ``TORCH_NCCL_TRACE_BUFFER_SIZE``); the files are what
``torchfrtrace`` reads.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

DUMPS: Final = ("_dump_nccl_trace", "_dump_fr_trace")  # the second where torch has no NCCL
PREFIX: Final = "nccl_trace_rank_"


def record(folder: str | None, rank: int, dump: Callable[[], bytes] | None = None) -> str | None:
    """Write what the recorder has of this rank; the file, None where there is nothing or no room.

    Any thread; waits for no device.

    Args:
        folder: there or not.
        dump: of torch, where it has one.
    """
    dump = dump or _of_torch()
    if folder is None or dump is None:
        return None
    try:
        found = dump()
        if not _has_entries(found):
            return None
        file = Path(folder) / f"{PREFIX}{rank}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(found)
    except (OSError, RuntimeError, TypeError):
        return None
    return str(file)


def _of_torch() -> Callable[[], bytes] | None:
    try:
        from torch._C import _distributed_c10d as c10d
    except ImportError:  # built without distributed
        return None
    return next((getattr(c10d, name) for name in DUMPS if hasattr(c10d, name)), None)


def _has_entries(dumped: bytes) -> bool:
    """Whether any collective is in it; what is read was made by this very process."""
    try:
        found: Any = pickle.loads(dumped)
    except (pickle.UnpicklingError, EOFError, ValueError):
        return False
    return bool(isinstance(found, dict) and found.get("entries"))
