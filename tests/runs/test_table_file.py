"""A table of samples comes back from its file as it was, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.samples import Scan
from otf_core.runs.table import Fingerprint, SampleTable
from otf_core.runs.table_file import read_table, write_table
from tests.exact.digest import exact
from tests.runs.scans import subject


def whole(table: SampleTable) -> object:
    return table.data, exact({**vars(table), "data": None, "features": dict(table.features)})


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    scan = Scan(subject(), layer="body.2")
    scan.work()
    table = scan.table()
    assert table.losses is not None
    table.losses[3] = np.nan
    path = tmp_path / "train.npz"
    assert write_table(table, path) == path.stat().st_size
    assert whole(read_table(path)) == whole(table)
    nothing = SampleTable.of_all(Fingerprint(3, "Rows", "a"))
    write_table(nothing, path)
    assert whole(read_table(path)) == whole(nothing)
    assert [p.name for p in tmp_path.iterdir()] == ["train.npz"]


def test_one_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    write_table(SampleTable.of_all(Fingerprint(50, "Rows", "a")), path)
    file = path.read_bytes()
    for size in range(0, len(file), 7):
        path.write_bytes(file[:size])
        with pytest.raises(CommandError) as error:
            read_table(path)
        assert error.value.code is ErrorCode.BAD_PAYLOAD
        assert "is damaged" in error.value.detail
    with pytest.raises(CommandError) as error:
        read_table(tmp_path / "none.npz")
    assert error.value.code is ErrorCode.NOT_FOUND


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    write_table(SampleTable.of_all(Fingerprint(3, "Rows", "a")), path)
    before = path.read_bytes()
    (tmp_path / "train.npz.part").mkdir()
    with pytest.raises(OSError, match="part"):
        write_table(SampleTable.of_all(Fingerprint(4, "Rows", "a")), path)
    assert path.read_bytes() == before
