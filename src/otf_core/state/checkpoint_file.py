"""One checkpoint on the disk: ``<id>.ckpt``, and ``<id>.json`` that says what it must be.

Rule 1: a file is whole or not there: written under another name, fsynced, renamed, the folder
fsynced.
Rule 2: what is read is verified first and trusted never. Nothing in a file is executed, and
whatever is wrong with it becomes a CommandError that says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec
import torch

from otf_core.errors import CommandError, ErrorCode, OtfError
from otf_core.state.plain_checkpoint import refuse_unloadable

MAX_JSON_BYTES: Final = 1024 * 1024
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


class Manifest(msgspec.Struct, kw_only=True):
    """What ``<id>.json`` says of ``<id>.ckpt``; ``bytes`` and ``sha256`` are those of the file.

    ``left_by`` names the exception that left the run so, in the middle of a batch. ``branch``
    counts how often another state had been put in place: what was made before a rollback is of
    another branch than what was made after it.
    """

    id: str
    run_id: str
    step: int
    epoch: int
    ts: float
    kind: str
    pinned: bool = False
    exact: bool = False
    left_by: str = ""
    branch: int = 0
    bytes: int = 0
    sha256: str = ""


def newest(
    found: Iterable[tuple[Manifest, str]], branch: int, base: str | None
) -> tuple[Manifest, str] | None:
    """From which of a run's checkpoints it goes on: the last of its own past.

    What was rolled back is not in that past, nor is what an exception has left in the middle of a
    batch: both go on when they are asked for.

    Args:
        branch: on which the run is.
        base: id of the checkpoint that the branch began from.
    """
    whole = [each for each in found if not each[0].left_by]
    here = [each for each in whole if each[0].branch == branch]
    begun = [each for each in whole if each[0].id == base]
    return max(here or begun or whole, key=lambda each: each[0].ts, default=None)


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``<id>.json``, whole or not at all; any thread. OSError as the disk has it."""
    with whole_file(folder / f"{manifest.id}.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))


class UnfitError(OtfError):
    """A file that is no whole checkpoint of ours; says why, for a sentence that names the file."""


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
        return _load(file), manifest


@contextlib.contextmanager
def verified(
    path: Path, *, expected: Manifest | None = None, field: str = "path"
) -> Iterator[tuple[io.BufferedReader, Manifest | None]]:
    """The file of a checkpoint that is whole, at its begin, for somebody who reads it; any thread.

    Arguments and errors as of ``read_checkpoint``. An UnfitError that is raised inside becomes the
    same refusal.
    """
    try:
        with _opened(path, follow=expected is None) as file:
            manifest = expected or _manifest_beside(Path(os.path.realpath(path)))
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


def complete(path: Path) -> Manifest:
    """What the JSON beside a checkpoint says; its size is compared, its content is not.

    Raises:
        UnfitError: they do not fit each other.
        FileNotFoundError: there is no checkpoint.
    """
    with _opened(path, follow=False) as file:
        manifest = _manifest_beside(path)
        if manifest is None or manifest.id != path.stem:
            msg = "has no JSON beside it that fits"
            raise UnfitError(msg)
        _verify_size(file, manifest)
    return manifest


# Reading.


@contextlib.contextmanager
def _opened(path: Path, *, follow: bool) -> Iterator[io.BufferedReader]:
    """A regular file; one descriptor for all that is done with it, so that it stays the same."""
    # A pipe would wait here for somebody who writes.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    except OSError as error:
        is_link = error.errno == errno.ELOOP and not follow
        why = "is a link" if is_link else f"cannot be opened ({str(error.strerror).lower()})"
        raise UnfitError(why) from None
    except ValueError as error:  # a zero byte in the name
        msg = f"cannot be opened ({error})"
        raise UnfitError(msg) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = "is no regular file"
        raise UnfitError(msg)
    with open(descriptor, "rb") as file:
        yield file


def _manifest_beside(path: Path) -> Manifest | None:
    beside = path.with_suffix(".json")
    unusable = (UnfitError, OSError, msgspec.MsgspecError)
    with contextlib.suppress(*unusable), _opened(beside, follow=False) as file:
        return msgspec.json.decode(file.read(MAX_JSON_BYTES), type=Manifest)
    return None


def _verify(file: io.BufferedReader, manifest: Manifest | None) -> None:
    """Leaves the file at its begin."""
    try:
        if manifest is not None:
            _verify_size(file, manifest)
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


def _verify_size(file: io.BufferedReader, manifest: Manifest) -> None:
    found = os.fstat(file.fileno()).st_size
    if found != manifest.bytes:
        msg = f"is damaged: it has {found:,} bytes, its JSON says {manifest.bytes:,}"
        raise UnfitError(msg)


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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole, fsynced and renamed, when the block ends; else not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
