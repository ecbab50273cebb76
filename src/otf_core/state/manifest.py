"""``<id>.json`` beside a checkpoint: what it must be. Knows files and no torch, so that who only
looks at run folders starts at once.

Rule: a file is whole or not there: written under another name, fsynced, renamed, the folder
fsynced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from otf_core.errors import OtfError

MAX_JSON_BYTES: Final = 16 * 1024 * 1024  # 8,192 ranks have a line each
SHARDS: Final = ".shards"  # the folder beside <id>.ckpt, where tensors lie in parts
SHARDS_PART: Final = ".shards.part"


class ShardFile(msgspec.Struct, kw_only=True):
    """One file of that folder."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, kw_only=True):
    """What ``<id>.json`` says of ``<id>.ckpt``; ``bytes`` and ``sha256`` are those of the file.

    ``left_by`` names the exception that left the run so, in the middle of a batch. ``branch``
    counts how often another state had been put in place: what was made before a rollback is of
    another branch than what was made after it. ``shards`` are the files of ``<id>.shards/``, where
    weights lie in parts.
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
    shards: list[ShardFile] = []

    @property
    def total_bytes(self) -> int:
        """Of its file and its shards."""
        return self.bytes + sum(each.bytes for each in self.shards)


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


class UnfitError(OtfError):
    """A file that is no whole checkpoint of ours; says why, for a sentence that names the file."""


def complete(path: Path) -> Manifest:
    """What the JSON beside a checkpoint says; its size is compared, its content is not.

    Raises:
        UnfitError: they do not fit each other.
        FileNotFoundError: there is no checkpoint.
    """
    with opened(path, follow=False) as file:
        manifest = manifest_beside(path)
        if manifest is None or manifest.id != path.stem:
            msg = "has no JSON beside it that fits"
            raise UnfitError(msg)
        verify_size(file, manifest)
    verify_shards(shards_beside(path), manifest.shards)
    return manifest


def shards_beside(path: Path) -> Path:
    """Where the shards of a checkpoint's file lie."""
    return path.with_suffix(SHARDS)


def verify_shards(folder: Path, shards: Iterable[ShardFile]) -> None:
    """Raises UnfitError where one is missing or has another size; contents are not read."""
    for each in shards:
        if each.name in (".", "..") or Path(each.name).name != each.name:
            msg = f"names {each.name[:60]!r}, which is no file of its folder"
            raise UnfitError(msg)
        try:
            found = os.stat(folder / each.name, follow_symlinks=False)
        except OSError:
            msg = f"is damaged: {folder.name}/{each.name} is not there"
            raise UnfitError(msg) from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != each.bytes:
            msg = (
                f"is damaged: {folder.name}/{each.name} has {found.st_size:,} bytes, its JSON says "
                f"{each.bytes:,}"
            )
            raise UnfitError(msg)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``<id>.json``, whole or not at all; any thread. OSError as the disk has it."""
    with whole_file(folder / f"{manifest.id}.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))


@contextlib.contextmanager
def opened(path: Path, *, follow: bool) -> Iterator[io.BufferedReader]:
    """A regular file; one descriptor for all that is done with it, so that it stays the same.

    Raises:
        UnfitError, FileNotFoundError: it is none.
    """
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


def manifest_beside(path: Path) -> Manifest | None:
    """What the JSON beside a checkpoint says; None where there is none that can be read."""
    beside = path.with_suffix(".json")
    unusable = (UnfitError, OSError, msgspec.MsgspecError)
    with contextlib.suppress(*unusable), opened(beside, follow=False) as file:
        return msgspec.json.decode(file.read(MAX_JSON_BYTES), type=Manifest)
    return None


def verify_size(file: io.BufferedReader, manifest: Manifest) -> None:
    """Raises UnfitError where the file has another size than its JSON says."""
    found = os.fstat(file.fileno()).st_size
    if found != manifest.bytes:
        msg = f"is damaged: it has {found:,} bytes, its JSON says {manifest.bytes:,}"
        raise UnfitError(msg)


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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed in it stays so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
