"""Tensors of which every rank holds a part (DTensor), in a state: apart from it, and put back.

Such a checkpoint is ``<id>.ckpt`` with marks in their places, and a folder ``<id>.shards`` with one
file a rank; ``shard_files`` writes and reads that.

Rule: what is written lies under another name until all ranks have theirs on the disk; whose folder
it is stands in the checkpoint's file, which is written last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import msgspec

from otf_core.state.manifest import ShardFile, sync_folder
from otf_core.telemetry.norms import is_sharded

MARK: Final = "otf.shard"  # (MARK, name) in a state stands for the tensor of this name
METADATA: Final = ".metadata"  # torch's name


# Of a state, which tensors lie in the folder.


def set_apart(value: Any, name: str, found: dict[str, Any]) -> Any:
    """The value with a mark in the place of every sharded tensor; containers are made anew.

    Args:
        name: what it is called; what lies in it is called ``name.key``.
        found: gets the tensors by their names.
    """
    if is_sharded(value):
        found[name] = value.detach()
        return (MARK, name)
    if isinstance(value, Mapping):
        items = {k: set_apart(v, f"{name}.{k}", found) for k, v in value.items()}
        with_type = type(value)(items) if type(value) is not dict else items  # type: ignore[call-arg]
        if hasattr(value, "_metadata"):
            with_type._metadata = value._metadata  # type: ignore[attr-defined]  # noqa: SLF001 -- torch's versioning of a state_dict
        return with_type
    if type(value) is list:
        return [set_apart(v, f"{name}.{i}", found) for i, v in enumerate(value)]
    return value


def put_in(value: Any, tensors: Mapping[str, Any]) -> Any:
    """The value with the tensors in the places of their marks."""
    if (name := name_of(value)) is not None:
        return tensors[name]
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = put_in(item, tensors)
    elif type(value) is list:
        value[:] = [put_in(v, tensors) for v in value]
    return value


def name_of(value: Any) -> str | None:
    """The tensor that this stands for; None: it is no mark."""
    if type(value) is tuple and len(value) == 2 and value[0] == MARK:
        return str(value[1])
    return None


class Writing:
    """The shards of one checkpoint on their way to the disk; rank 0's thread ``otf-saver`` has it.

    It lies in the state under ``otf.shards`` until the checkpoint is written.
    """

    def __init__(self, part: Path, done: Future[list[ShardFile]]) -> None:
        self._part, self._done = part, done

    def settle(self, folder: Path) -> list[ShardFile]:
        """Wait for all ranks, and give the folder its name; what is in it, fsynced.

        Raises:
            OSError, RuntimeError: one of the ranks could not; nothing of it is left.
        """
        try:
            files = self._done.result()
            sync_folder(self._part)
            self._part.replace(folder)
        except BaseException:
            remove_shards(self._part)
            raise
        return files


def remove_shards(folder: Path, names: Iterable[str] | None = None) -> list[Path]:
    """Take away a folder of shards, as far as what lies in it is ours; what went.

    Args:
        names: what is ours; by default what torch would call it, for a folder half written.
    """
    gone: list[Path] = []
    with contextlib.suppress(OSError):
        found = [
            *folder.glob("__*.distcp"), folder / METADATA, folder / f"{METADATA}.tmp",
        ] if names is None else [folder / name for name in names]  # fmt: skip
        for path in found:
            if path.is_file() and not path.is_symlink():
                path.unlink()
                gone.append(path)
        folder.rmdir()
    return gone


def files_in(state: Mapping[str, Any]) -> list[ShardFile]:
    """What a checkpoint says of its folder; none where it has none."""
    said = state["otf"].get("shards") or {}
    return [msgspec.convert(each, ShardFile) for each in said.get("files", ())]
