"""The weights of a checkpoint, read from the disk piece by piece; any one thread.

Rule 1: a file is verified as a whole before anything of it is used, by ``checkpoint_file``'s rules.
Rule 2: of weights that lie in parts on the ranks each is put together whole, one at a time.
Rule 3: nothing is mapped into memory. A mapped file that somebody truncates, or a disk that fails,
would end the process that trains; a read that fails is a refusal.
"""

# ruff: noqa: SLF001 -- the private names of torch are listed in PRIVATE

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import _weights_only_unpickler as weights_only

from otf_core.state.checkpoint_file import (
    Manifest,
    UnfitError,
    of_ours,
    reading_pickle,
    unfit,
    verified,
)
from otf_core.state.manifest import shards_beside
from otf_core.state.parts import joined
from otf_core.state.shards import files_in, name_of

# What is used of torch 2.13 beyond its documentation: owner -> names.
PRIVATE: Final = {
    "_weights_only_unpickler.Unpickler": ("load", "persistent_load"),
    "UntypedStorage": ("_cdata",),  # which storage it is
    "_utils": ("_sparse_tensors_to_validate",),  # what torch.load looks at in its end
}
_LOCAL_HEADER: Final = struct.Struct("<26xHH")  # the lengths of name and extra field


@contextlib.contextmanager
def open_weights(
    path: Path, *, expected: Manifest | None = None, field: str = "path"
) -> Iterator[WeightsFile]:
    """The weights of a checkpoint of ours, verified; the file is open while the block runs.

    Arguments and errors as of ``checkpoint_file.read_checkpoint``.
    """
    with verified(path, expected=expected, field=field) as (file, manifest):
        label = path.name if manifest is None else f"{manifest.run_id}/{manifest.id}"
        found = WeightsFile(path, label[-100:], os.dup(file.fileno()), field)
        try:
            found.load(file)
            found.load_shards(shards_beside(Path(os.path.realpath(path))))
        except BaseException:
            found.close()
            raise
    try:
        yield found
    finally:
        found.close()


def tied(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names, those of one and the same tensor together, in the order of the first of them."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, t in tensors.items():
        storage = t.untyped_storage()._cdata
        place = (storage, t.storage_offset(), t.shape, t.stride(), t.dtype)
        found.setdefault(place, []).append(name)
    return list(found.values())


class WeightsFile:
    """One checkpoint's weights by their names in the ``state_dict``; made by ``open_weights``.

    Attributes:
        label: run and checkpoint if they are known, else the file's name; for a sentence.
        shapes: what is there: tensors without data. Of several modules, their names are joined.
        others: names of what is there and is no tensor.
        owners: names of the modules, where they have names.
    """

    def __init__(self, path: Path, label: str, descriptor: int, field: str) -> None:
        self.label = label
        self.shapes: dict[str, torch.Tensor] = {}
        self.others: list[str] = []
        self.owners: list[str] = []
        self._path, self._field, self._descriptor = path, field, descriptor
        self._places: dict[int, tuple[int, int]] = {}  # storage -> where in the file, its bytes
        self._as_verified = self._stamp()
        self._whole: tuple[str, torch.Tensor] | None = None
        self._shards: Any = None  # where tensors lie in parts on the ranks
        self._in_parts: dict[str, str] = {}  # name -> what it is called there

    def load(self, file: io.BufferedReader) -> None:
        """Find out what is there. Raises UnfitError."""
        with reading_pickle():
            archive = zipfile.ZipFile(file)
            records = {e.filename.partition("/")[2]: e for e in archive.infolist()}
            order = archive.read(records["byteorder"]).decode() if "byteorder" in records else "?"
            if order not in (sys.byteorder, "?"):
                msg = f"is of a machine with {order} byte order, this one has {sys.byteorder}"
                raise UnfitError(msg)
            pickled = io.BytesIO(archive.read(records["data.pkl"]))
            unpickler: Any = weights_only.Unpickler(pickled, encoding="utf-8")
            self._storages: dict[str, torch.storage.TypedStorage] = {}
            unpickler.persistent_load = lambda saved: self._storage(saved, records)
            try:
                state = unpickler.load()
            finally:
                torch._utils._sparse_tensors_to_validate.clear()  # they have no data here
        self._files = files_in(of_ours(state))
        weights = state.get("state_dict")
        if not isinstance(weights, Mapping):
            msg = "has no weights"
            raise UnfitError(msg)
        several = bool(weights) and all(isinstance(v, Mapping) for v in weights.values())
        self.owners = [str(owner) for owner in weights] if several else []
        for owner, found in weights.items() if several else (("", weights),):
            self._gather(str(owner), found)

    def load_shards(self, folder: Path) -> None:
        """Verify the folder where some tensors lie in parts. Raises UnfitError."""
        if not self._in_parts:
            return
        from otf_core.state.shard_files import ShardReader  # noqa: PLC0415, RUF100 -- loads torch.distributed

        with reading_pickle():
            self._shards = ShardReader(folder, self._files)
        for name, called in self._in_parts.items():
            shape = self._shards.shapes.get(called)
            if shape is None:
                msg = f"is damaged: {name[:100]} is not among its shards"
                raise UnfitError(msg)
            self.shapes[name] = shape

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the host, in memory of its own. Raises CommandError ``bad_payload``."""
        if name in self._in_parts:
            try:
                with reading_pickle():
                    return self._shards.read(self._in_parts[name])  # type: ignore[no-any-return]
            except UnfitError as why:
                raise unfit(self._path, why, field=self._field) from None
        shape = self.shapes[name]
        flat = self._elements(shape, 0, _reach(shape))
        return flat.as_strided(shape.shape, shape.stride(), 0)

    def block(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Some elements of one tensor, counted in its own order; not to be written to.

        Raises:
            CommandError: ``bad_payload``, it cannot be read any more.
        """
        shape = self.shapes[name]
        if name not in self._in_parts and shape.is_contiguous():
            return self._elements(shape, begin, end)
        if self._whole is None or self._whole[0] != name:
            self._whole = None  # not two at a time
            self._whole = name, self.read(name).reshape(-1)
        return self._whole[1][begin:end]

    def close(self) -> None:
        """Called once; what is read afterwards is refused."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _storage(self, saved: Any, records: Mapping[str, zipfile.ZipInfo]) -> Any:
        _, kind, key, _, numel = saved
        if key not in self._storages:
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            nbytes = int(numel) * dtype.itemsize
            untyped = torch.UntypedStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]
            entry = records[f"data/{key}"]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != nbytes:
                msg = f"is damaged: data/{key} is not what it should be"
                raise UnfitError(msg)
            header = os.pread(self._descriptor, _LOCAL_HEADER.size, entry.header_offset)
            lengths = _LOCAL_HEADER.unpack(header)
            begin = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
            self._places[untyped._cdata] = begin, nbytes
            self._storages[key] = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=untyped, dtype=dtype, _internal=True
            )
        return self._storages[key]

    def _gather(self, owner: str, found: Mapping[Any, Any]) -> None:
        for key, value in found.items():
            name = joined(owner, str(key))
            if (called := name_of(value)) is not None:
                self._in_parts[name] = called
                continue
            if isinstance(value, torch.Tensor) and self._is_plain(value):
                _, nbytes = self._places[value.untyped_storage()._cdata]
                if (int(value.storage_offset()) + _reach(value)) * value.itemsize > nbytes:
                    msg = f"is damaged: {name[:100]} is larger than what is stored of it"
                    raise UnfitError(msg)
                self.shapes[name] = value.detach()
            else:
                self.others.append(name)

    def _is_plain(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.layout is torch.strided
            and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
            and tensor.untyped_storage()._cdata in self._places
        )

    def _elements(self, shape: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        raw = torch.empty((end - begin) * shape.itemsize, dtype=torch.uint8)
        if raw.numel():
            at, _ = self._places[shape.untyped_storage()._cdata]
            try:
                self._fill(raw, at + (int(shape.storage_offset()) + begin) * shape.itemsize)
            except UnfitError as why:
                raise unfit(self._path, why, field=self._field) from None
        return raw.view(shape.dtype)

    def _fill(self, raw: torch.Tensor, at: int) -> None:
        room = raw.numpy().data
        try:
            while room:
                n = os.preadv(self._descriptor, [room], at)
                if n == 0:
                    break
                room, at = room[n:], at + n
        except OSError as error:
            msg = f"cannot be read ({str(error.strerror).lower()})"
            raise UnfitError(msg) from None
        if room or self._stamp() != self._as_verified:
            msg = "has been changed since it was verified"
            raise UnfitError(msg)

    def _stamp(self) -> tuple[int, int]:
        now = os.fstat(self._descriptor)
        return now.st_size, now.st_mtime_ns


def _reach(tensor: torch.Tensor) -> int:
    """Elements of its storage from its first to its last, both included."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
