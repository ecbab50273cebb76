"""A table as a file that other programs read: CSV, JSON, Parquet, Feather; written as it comes.

Rule 1: rows come in parts, and no part is kept.
Rule 2: in CSV a text that a spreadsheet would take for a formula (=, +, -, @, tab or carriage
return first) has a ' before it, as OWASP advises for CSV injection. The other formats have text as
it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final, Protocol

import msgspec

from otf_core.errors import CommandError, ErrorCode

# Format -> the ending of its files.
ENDINGS: Final = {
    "csv": ".csv",
    "json": ".json",
    "parquet": ".parquet",
    "feather": ".feather",
}
ARROW: Final = ("parquet", "feather")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Columns = Mapping[str, Sequence[Any]]
Kinds = Mapping[str, type]  # name -> int, float, bool or str


class SampleFile(Protocol):
    """One that is being written."""

    def write(self, columns: Columns) -> None:
        """Some rows more: the same columns each time; None is a cell without a value."""

    def end(self) -> None:
        """What belongs behind the last row."""


def refuse_without_arrow(form: str) -> None:
    """Raises CommandError ``unsupported`` where the format needs what is not installed."""
    if form in ARROW:
        _arrow(form)


def sample_file(form: str, file: IO[bytes], kinds: Kinds) -> SampleFile:
    """Begin a file of these columns.

    Args:
        form: one of ENDINGS.
        file: stays open.
    """
    if form == "csv":
        return _Csv(file, kinds)
    return _Json(file) if form == "json" else _Arrow(form, file, kinds)


class _Csv:
    def __init__(self, file: IO[bytes], kinds: Kinds) -> None:
        self._file = file
        self._text = [kind is str for kind in kinds.values()]
        self._rows([[_harmless(name) for name in kinds]])

    def write(self, columns: Columns) -> None:
        cells = [
            [_harmless(cell) for cell in column] if text else column
            for text, column in zip(self._text, columns.values(), strict=True)
        ]
        self._rows(zip(*cells, strict=True))

    def end(self) -> None:
        pass

    def _rows(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode())


def _harmless(cell: str | None) -> str | None:
    return f"'{cell}" if cell is not None and cell.startswith(_FORMULA) else cell


class _Json:
    """An array of objects, one a line; what is not finite is null."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._before = file, b"[\n"
        self._encode = msgspec.json.Encoder().encode

    def write(self, columns: Columns) -> None:
        rows = zip(*columns.values(), strict=True)
        lines = [self._encode(dict(zip(columns, row, strict=True))) for row in rows]
        if lines:
            self._file.write(self._before + b",\n".join(lines))
            self._before = b",\n"

    def end(self) -> None:
        self._file.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


class _Arrow:
    def __init__(self, form: str, file: IO[bytes], kinds: Kinds) -> None:
        self._pa = pa = _arrow(form)
        types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
        self._schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
        if form == "parquet":
            from pyarrow import parquet

            self._writer = parquet.ParquetWriter(file, self._schema)
        else:
            options = pa.ipc.IpcWriteOptions(compression="lz4")  # what Feather's readers know
            self._writer = pa.ipc.new_file(file, self._schema, options=options)

    def write(self, columns: Columns) -> None:
        self._writer.write_table(self._pa.table(dict(columns), schema=self._schema))

    def end(self) -> None:
        self._writer.close()


def _arrow(form: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        detail = (
            f"{form} was asked, which pyarrow writes; it is not there: pip install "
            "'otf-lightning[samples]'. csv and json need nothing."
        )
        allowed = [each for each in ENDINGS if each not in ARROW]
        raise CommandError(
            ErrorCode.UNSUPPORTED, detail, field="format", allowed=allowed
        ) from error
    return pyarrow
