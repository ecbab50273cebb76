"""One checkpoint on the disk: ``<id>.ckpt``, written and read; ``manifest`` says what it must be.

Rule: what is read is verified first and trusted never. Nothing in a file is executed, and
whatever is wrong with it becomes a CommandError that says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.manifest import (
    Manifest,
    ShardFile,
    UnfitError,
    complete,
    manifest_beside,
    newest,
    opened,
    shards_beside,
    verify_shards,
    verify_size,
    whole_file,
    write_manifest,
)
from otf_core.state.plain_checkpoint import refuse_unloadable

__all__ = [
    "Manifest",
    "UnfitError",
    "complete",
    "look_for_shards",
    "newest",
    "of_ours",
    "read_checkpoint",
    "reading_pickle",
    "unfit",
    "verified",
    "write_checkpoint",
    "write_manifest",
]

# What a damaged or a hostile file makes torch raise; found by changing bytes at random.
UNREADABLE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
)


def write_checkpoint(state: Any, path: Path) -> tuple[int, str]:
    """Write one regular file, whole or not at all; any thread.

    Returns:
        Its size in bytes and its SHA-256 in hex.

    Raises:
        CommandError: a value in it could not be read back.
        OSError: the disk; what was there before is left.
    """
    refuse_unloadable(state)
    with whole_file(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, cast("IO[bytes]", hashing))
        except RuntimeError as error:
            # torch closes its archive first, and says that this failed instead of why.
            raise hashing.error or error from None
    return hashing.bytes, hashing.sha256.hexdigest()


def read_checkpoint(
    path: Path, *, expected: Manifest | None = None, field: str = "path"
) -> tuple[dict[str, Any], Manifest | None]:
    """Verify a file and load it; any thread.

    Where a JSON of ours lies beside it, that says what it must be; a file that somebody copied
    without it is checked by the sums of its own archive, and loads.

    Args:
        expected: what it must be, if that is known already; the JSON is not asked then, and a
            link is not followed.
        field: the payload key that a refusal blames.

    Raises:
        CommandError: ``not_found``; ``bad_payload`` where it is damaged or none of ours.
    """
    with verified(path, expected=expected, field=field) as (file, manifest):
        state = _load(file)
        look_for_shards(state, path)
        return state, manifest


def look_for_shards(state: dict[str, Any], path: Path) -> None:
    """Note where the shards of a state lie, and that they are there; contents are not read.

    Raises:
        UnfitError: they are not.
    """
    if said := state["otf"].get("shards"):
        folder = shards_beside(Path(os.path.realpath(path)))
        with reading_pickle():
            verify_shards(folder, msgspec.convert(said["files"], list[ShardFile]))
        said["folder"] = str(folder)


@contextlib.contextmanager
def verified(
    path: Path, *, expected: Manifest | None = None, field: str = "path"
) -> Iterator[tuple[io.BufferedReader, Manifest | None]]:
    """The file of a checkpoint that is whole, at its begin, for somebody who reads it; any thread.

    Arguments and errors as of ``read_checkpoint``. An UnfitError that is raised inside becomes the
    same refusal.
    """
    try:
        with opened(path, follow=expected is None) as file:
            manifest = expected or manifest_beside(Path(os.path.realpath(path)))
            _verify(file, manifest)
            yield file, manifest
    except FileNotFoundError:
        detail = f"{_short(path)} was asked; there is no such file."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field=field) from None
    except UnfitError as why:
        raise unfit(path, why, field=field) from None


def unfit(path: Path, why: UnfitError, *, field: str) -> CommandError:
    """The refusal of a file that is no whole checkpoint of ours."""
    detail = f"{_short(path)} was asked; it {why}. Allowed: a whole checkpoint of otf."
    return CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field)


# Reading.


def _verify(file: io.BufferedReader, manifest: Manifest | None) -> None:
    """Leaves the file at its begin."""
    try:
        if manifest is not None:
            verify_size(file, manifest)
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
                msg = "is damaged: its SHA-256 is not that of what was saved"
                raise UnfitError(msg)
            file.seek(0)
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        # A small file could claim to hold more than memory, packed or one thing many times.
        size = os.fstat(file.fileno()).st_size
        swells = sum(max(entry.file_size, entry.compress_size) for entry in entries) > size
        if "data.pkl" not in names or "constants.pkl" in names or swells:
            msg = "is an archive, but no checkpoint"
            raise UnfitError(msg)
        # torch.load does not look at the sums: one bit that has changed would go unnoticed.
        if manifest is None and (name := archive.testzip()) is not None:
            msg = f"is damaged: the CRC-32 of {name[:60]} is not that of what was saved"
            raise UnfitError(msg)
        file.seek(0)
    except UNREADABLE as error:
        msg = f"cannot be read as a checkpoint ({type(error).__name__}: {str(error)[:120]})"
        raise UnfitError(msg) from error


def _load(file: io.BufferedReader) -> dict[str, Any]:
    with reading_pickle():
        state = torch.load(file, map_location="cpu", weights_only=True)
    return of_ours(state)


@contextlib.contextmanager
def reading_pickle() -> Iterator[None]:
    """What torch raises at a file that it cannot load becomes an UnfitError."""
    try:
        yield
    except UNREADABLE as error:
        said = str(error)
        msg = f"cannot be loaded ({type(error).__name__}: {said[:120]})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in said:
            wanted = said.partition("GLOBAL ")[2].partition(" ")[0]
            msg = f"asks for {wanted[:100]}, which may run code; nothing was run"
        raise UnfitError(msg) from error


def of_ours(state: Any) -> dict[str, Any]:
    """What was loaded, if it is a checkpoint of ours. Raises UnfitError."""
    if not isinstance(state, dict) or not isinstance(state.get("otf"), dict):
        msg = "is a file of torch, but no checkpoint of otf"
        raise UnfitError(msg)
    return state


def _short(path: Path) -> str:
    text = str(path)
    return repr(text if len(text) <= 200 else f"…{text[-200:]}")


# Writing.


class _Hashing:
    """A file that hashes what goes through it, so that the check needs no second reading."""

    def __init__(self, file: Any) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self._file.flush()
