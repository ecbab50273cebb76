"""The folder of a checkpoint whose tensors lie in parts on the ranks: written by all, read by as
many or by others, over ``torch.distributed.checkpoint``.

Rule 1: the training thread copies; each rank's thread ``otf-shards`` writes its own file, one
checkpoint after the other, in a process group of its own: its collectives never meet those of the
training. (torch's ``async_save`` makes a thread for each, and two of them would meet.)
Rule 2: what is read is verified first, each rank its share; nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.manifest import SHARDS_PART, ShardFile, UnfitError
from otf_core.state.shards import METADATA, Writing

# What is used of torch 2.13 beyond its documentation: owner -> names.
PRIVATE: Final = {"tensor.DTensor": ("_spec",)}  # which part it is, of what
_CLASSES: Final = {
    metadata.__name__: (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    filesystem.__name__: ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # Python 3.13's
}


class ShardWriter:
    """One rank's; made on all at once, since it makes a process group. Training thread."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1, "otf-shards")
        self._last: Future[list[ShardFile]] | None = None

    def write(self, tensors: Mapping[str, Any], checkpoints: Path | None) -> Writing | None:
        """Copy the tensors now, write them in the background; called on all ranks at once.

        Args:
            checkpoints: of rank 0, where the folder is made; the others are told. None there: a
                rank could not be captured, and nothing is written.

        Returns:
            On rank 0; None on the others, who see to nothing more.
        """
        first = dist.get_rank() == 0
        box = [str(checkpoints / f"{secrets.token_hex(6)}{SHARDS_PART}") if checkpoints else None]
        dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            return None
        part = Path(box[0])
        held: dict[str, Any] | str
        try:
            held = {name: _on_host(value) for name, value in tensors.items()}
        except (MemoryError, RuntimeError) as error:  # RuntimeError: torch, where memory is full
            held = f"{type(error).__name__} ({str(error)[:200]})"  # the others wait for its part
        self._last = self._pool.submit(self._write, held, part)
        return Writing(part, self._last) if first else None

    def settle(self) -> None:
        """Return when nothing is being written any more, also where it failed."""
        if self._last is not None:
            wait([self._last])

    def read(
        self,
        folder: Path,
        files: Iterable[ShardFile],
        like: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """The tensors of a folder, each rank its part; called on all at once, nothing is touched.

        Args:
            files: what the folder must have.
            like: tensors to be filled, for the names, shapes and types that are there.

        Raises:
            CommandError: ``bad_payload`` on every rank; damaged for one of them.
        """
        self.settle()
        own, tensors, reader = "", {}, SafeReader(folder)
        try:
            verify(folder, list(files)[dist.get_rank() :: dist.get_world_size()])
            tensors = dict(like(shapes_in(reader.read_metadata())))
        except (UnfitError, OSError, KeyError) as error:
            own = str(error) or type(error).__name__
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, own, group=self._group)
        if why := next((each for each in said if each), None):
            detail = f"{folder.name} was asked; it {why}. Allowed: a whole checkpoint of otf."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="checkpoint")
        with _told_by_torch():
            load(tensors, storage_reader=reader, process_group=self._group)
        return tensors

    def close(self) -> None:
        """Write what waits, end the thread; on all ranks."""
        self._pool.shutdown(wait=True)

    def _write(self, held: dict[str, Any] | str, part: Path) -> list[ShardFile]:
        rank, n = dist.get_rank(self._group), dist.get_world_size(self._group)
        failed: list[Any] = [None] * n
        why = held if isinstance(held, str) else None
        dist.all_gather_object(failed, why, group=self._group)
        _raise_first(failed)
        assert not isinstance(held, str)
        writer = filesystem.FileSystemWriter(part, sync_files=True)
        with _told_by_torch():
            save(held, storage_writer=writer, process_group=self._group)
        mine: Any
        try:
            own = sorted(part.glob(f"__{rank}_*.distcp"))
            own += [part / METADATA] if rank == 0 else []
            mine = [msgspec.to_builtins(_described(path)) for path in own]
        except OSError as error:
            mine = f"{type(error).__name__} ({error})"
        told: list[Any] = [None] * n
        dist.gather_object(mine, told if rank == 0 else None, group=self._group)
        _raise_first(told)
        return [msgspec.convert(each, ShardFile) for of_rank in told if of_rank for each in of_rank]


def _raise_first(told: Iterable[Any]) -> None:
    for rank, each in enumerate(told):
        if isinstance(each, str):
            msg = f"rank {rank}: {each}"
            raise OSError(msg)


def _on_host(value: Any) -> DTensor:
    """A copy that says it is the same part. Not from_local, which moves it to the mesh's device."""
    local = value.to_local().detach().to("cpu", copy=True)
    return DTensor(local, value._spec, requires_grad=False)  # type: ignore[no-untyped-call]  # noqa: SLF001 -- see PRIVATE


@contextlib.contextmanager
def _told_by_torch() -> Iterator[None]:
    """What torch raises where a rank has failed is no Exception, and is long."""
    try:
        yield
    except CheckpointException as error:
        rank, (said, _) = min(error.failures.items(), key=lambda each: each[0])
        msg = f"rank {rank}: {type(said).__name__} ({str(said)[:200]})"
        raise OSError(msg) from None


def _described(path: Path) -> ShardFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardFile(name=path.name, bytes=file.seek(0, 2), sha256=sha256)


# Reading.


def verify(folder: Path, files: Iterable[ShardFile]) -> None:
    """Raises UnfitError where the folder has other files than these; each is read whole."""
    for expected in files:
        path = folder / expected.name
        try:
            found = _described(path)
        except OSError as error:
            msg = f"is damaged: {expected.name} cannot be read ({str(error.strerror).lower()})"
            raise UnfitError(msg) from None
        if found != expected:
            msg = f"is damaged: the SHA-256 of {expected.name} is not that of what was saved"
            raise UnfitError(msg)


def shapes_in(found: Any) -> dict[str, Any]:
    """What a folder has: tensors without data, by their names."""
    return {
        name: torch.empty(tuple(each.size), dtype=each.properties.dtype, device="meta")
        for name, each in found.state_dict_metadata.items()
        if isinstance(each, metadata.TensorStorageMetadata)
    }


class SafeReader(filesystem.FileSystemReader):
    """torch's, which loads ``.metadata`` without running what it asks for."""

    def read_metadata(self, *_: Any, **__: Any) -> Any:
        """Raises UnfitError where it is none."""
        folder = Path(self.path)
        try:
            with (folder / METADATA).open("rb") as file:
                found: Any = _Unpickler(file).load()
            data = found.storage_data
            strange = [e.relative_path for e in data.values() if "/" in str(e.relative_path)]
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
            msg = f"has no {METADATA} that can be read ({type(error).__name__}: {error})"
            raise UnfitError(msg) from None
        if strange:
            msg = f"asks for {strange[0][:100]!r}, which lies outside of it"
            raise UnfitError(msg)
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        msg = f"asks for {module}.{name}"[:120]
        raise pickle.UnpicklingError(msg)


class ShardReader:
    """Full tensors in one process, without any process group; any one thread.

    Raises:
        UnfitError: the folder is damaged; each of its files is read whole for that.
    """

    def __init__(self, folder: Path, files: Iterable[ShardFile]) -> None:
        verify(folder, files)
        self._folder = folder
        self.shapes = shapes_in(SafeReader(folder).read_metadata())

    def read(self, name: str) -> torch.Tensor:
        """One of them, put together."""
        tensor = torch.empty_like(self.shapes[name], device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is no process group
            load({name: tensor}, storage_reader=SafeReader(self._folder), no_dist=True)
        return tensor
