"""The folder of a run, ``<save_dir>/<project>/<run_id>/``, and the cleaning of old ones.

``run.json`` lists what is ours. Nothing else is ever removed: not a file that we did not write,
not a run that lives, not a run with a checkpoint that a person asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from otf_core.protocol import automatic_names
from otf_core.state.store import Manifest


class RunRecord(msgspec.Struct, kw_only=True):
    """``run.json``: who, when, with what."""

    run_id: str
    run_name: str
    project: str
    session_ids: list[str]
    parents: list[str] = []
    pid: int = 0
    pid_started: float = 0.0  # tells a process from a later one with the same number
    host: str = ""
    started_ts: float = 0.0
    ended_ts: float | None = None
    status: str | None = None
    step: int = 0
    versions: dict[str, str] = {}


def run_name_of(text: str) -> str:
    """Any text as a run name: letters, digits, ``._#-``; at least one."""
    name = re.sub(r"[^A-Za-z0-9._#-]+", "-", text).strip("-.")[:100]
    return name or "run"


def make_run_folder(save_dir: Path, project: str, run_name: str) -> Path:
    """A new folder for a run: the name, or with ``-2``, ``-3`` … where it is taken.

    Raises:
        OSError: it cannot be made.
    """
    parent = save_dir / project
    parent.mkdir(parents=True, exist_ok=True)
    for name in automatic_names(run_name):
        try:
            (parent / name).mkdir()
        except FileExistsError:
            continue
        return parent / name
    raise AssertionError  # the names do not end


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``run.json`` whole or not at all. OSError as the disk has it."""
    part = folder / "run.json.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    part.replace(folder / "run.json")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, of those that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415, RUF100

    found: dict[str, str] = {}
    for name in ("otf-lightning", "torch", "lightning", "numpy", "torchmetrics"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def clean(save_dir: Path, keep: Path | None) -> tuple[list[str], list[dict[str, str]]]:
    """Remove ended runs of ours below ``save_dir``.

    A run is left whole when it lives, when it is ``keep``, when a checkpoint of it is pinned, or
    when its ``run.json`` cannot be read. What it holds beside our files stays, folder included.

    Returns:
        The paths that went, and ``{path, error}`` for those that could not.
    """
    removed: list[str] = []
    failed: list[dict[str, str]] = []
    for folder, record in _runs(save_dir):
        if keep is not None and folder == keep.resolve():
            continue
        if _alive(record) or any(m.pinned for m in _manifests(folder)):
            continue
        _remove(folder, record, removed, failed)
    return removed, failed


def _runs(save_dir: Path) -> Iterator[tuple[Path, RunRecord]]:
    for path in sorted(save_dir.resolve().glob("*/*/run.json")):
        # A link, also one further up, may point at somebody else's folder.
        if path.resolve() != path:
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            yield path.parent, msgspec.json.decode(path.read_bytes(), type=RunRecord)


def _manifests(folder: Path) -> Iterator[Manifest]:
    for path in sorted((folder / "checkpoints").glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            if manifest.id == path.stem:
                yield manifest


def _alive(record: RunRecord) -> bool:
    if record.ended_ts is not None:
        return False
    if record.host != os.uname().nodename:
        return (
            True  # on another machine that shares the disk; whether it lives is not seen from here
        )
    try:
        return abs(psutil.Process(record.pid).create_time() - record.pid_started) < 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # there is one, and more is not said


def _remove(
    folder: Path, record: RunRecord, removed: list[str], failed: list[dict[str, str]]
) -> None:
    checkpoints = folder / "checkpoints"
    ours = [checkpoints / f"{m.id}{end}" for m in _manifests(folder) for end in (".ckpt", ".json")]
    ours += [folder / "journal" / f"{run_name_of(s)}.jsonl" for s in record.session_ids]
    ours += [folder / "run.json"]
    for path in ours:
        # A link, also of a folder, leads out of what is ours.
        if not path.is_file() or path.resolve() != path:
            continue
        try:
            path.unlink()
        except OSError as error:
            failed.append({"path": str(path), "error": error.strerror or str(error)})
        else:
            removed.append(str(path))
    for empty in (checkpoints, folder / "journal", folder):
        with contextlib.suppress(OSError):
            empty.rmdir()


def this_process() -> dict[str, Any]:
    """Process id and start, host name, as ``RunRecord`` has them."""
    return {
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "host": os.uname().nodename,
        "started_ts": time.time(),
    }
