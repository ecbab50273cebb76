"""A table of samples as a file: NumPy's npz, without pickle; any thread."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.table import Fingerprint, SampleTable

_COLUMNS: Final = (
    "losses", "labels", "predictions", "confidence", "rivals", "rival_confidence"
)  # fmt: skip
_FEATURES: Final = "features:"


def write_table(table: SampleTable, path: Path) -> int:
    """Write it under another name, then rename; the bytes that it takes.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    arrays: dict[str, Any] = {"ids": table.ids}
    arrays |= {n: column for n in _COLUMNS if (column := getattr(table, n)) is not None}
    arrays |= {f"{_FEATURES}{name}": rows for name, rows in table.features.items()}
    data = np.frombuffer(msgspec.json.encode(table.data), dtype=np.uint8)
    beside = path.with_name(f"{path.name}.part")
    try:
        with beside.open("wb") as file:
            np.savez(file, data=data, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path.stat().st_size


def read_table(path: Path) -> SampleTable:
    """What ``write_table`` wrote.

    Raises:
        CommandError: ``not_found``, there is none; ``bad_payload``, it is damaged.
    """
    try:
        # Not by its path: np.load would leave a damaged one open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            data = msgspec.json.decode(found["data"].tobytes(), type=Fingerprint)
            columns = {name: found[name] for name in ("ids", *_COLUMNS) if name in found}
            features = {
                name.removeprefix(_FEATURES): found[name]
                for name in found
                if name.startswith(_FEATURES)
            }
            return SampleTable(data, features=features, **columns)
    except FileNotFoundError as error:
        detail = f"A table of samples was asked for; there is none at {path}."
        raise CommandError(ErrorCode.NOT_FOUND, detail) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        detail = f"The table of samples at {path} is damaged: {error}."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail) from error
