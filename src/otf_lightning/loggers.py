"""Loggers that write where the run that goes on has written; training thread.

A logger without a version of its own would open a new one, and the curve would start in the
middle. CSVLogger deletes the file that it finds, and keeps its newest rows in memory: both are put
right. Others that go on by an id of theirs (Weights & Biases, MLflow) are the script's to set.
"""

from __future__ import annotations

import contextlib
import csv
import os
import socket
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

_HEADER_BYTES: Final = 1024  # of an event file; it is some 90


def capture_loggers(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Where each logger writes, and what a CSVLogger has not written yet; plain values."""
    return [_described(logger) for logger in trainer.loggers]


def go_on(trainer: L.Trainer, saved: Sequence[Mapping[str, Any]], step: int) -> None:
    """Point the loggers of a new process at the old versions; before they log anything.

    Args:
        step: of the checkpoint; what was logged later is logged again.
    """
    for logger, row in zip(trainer.loggers, saved, strict=False):
        here = _described(logger)
        same = all(here[name] == row.get(name) for name in ("class", "save_dir", "name"))
        if not same or row["version"] is None or not _is_automatic(logger):
            continue
        new = _checkpoints_of(logger)
        _point_at(logger, row["version"])
        _lead_checkpoints(trainer, new, _checkpoints_of(logger))
        if isinstance(logger, CSVLogger):
            _keep_rows(logger, row, step)


def _described(logger: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "class": type(logger).__qualname__,
        "save_dir": None if logger.save_dir is None else str(logger.save_dir),
        "name": None if logger.name is None else str(logger.name),
        "version": None,
        "rows": [],
    }
    # Asked for, an automatic version is chosen: not before the logger itself does so.
    if _is_known(logger) and logger._version is not None:  # noqa: SLF001 -- see above
        row["version"] = logger._version  # noqa: SLF001 -- as above
    if isinstance(logger, CSVLogger) and logger._experiment is not None:  # noqa: SLF001 -- as above
        row["rows"] = [dict(found) for found in logger.experiment.metrics]
    return row


def _is_known(logger: Any) -> bool:
    return isinstance(logger, CSVLogger | TensorBoardLogger)


def _is_automatic(logger: Any) -> bool:
    """Whether its version is the next one, as it chooses itself where the script names none.

    Lightning has every logger open its experiment before any callback is asked, so the folder is
    there already.
    """
    if not _is_known(logger):
        return False
    newest = logger._get_next_version() - 1  # noqa: SLF001 -- as above
    return logger._version in (None, newest)  # noqa: SLF001 -- as above


def _point_at(logger: Any, version: Any) -> None:
    """At the old version; the folder of the new one goes if nothing is in it."""
    opened = logger._experiment  # noqa: SLF001 -- no setter, and the constructor is past
    if opened is not None:
        new = Path(logger.log_dir)
        if isinstance(logger, TensorBoardLogger):
            opened.close()
            _remove_empty_events(new)
        logger._experiment = None  # noqa: SLF001 -- as above
        with contextlib.suppress(OSError):
            new.rmdir()
    logger._version = version  # noqa: SLF001 -- as above


def _checkpoints_of(logger: Any) -> str:
    """Where a ModelCheckpoint without a folder of its own has chosen to write."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(str(logger.save_dir), str(logger.name), version, "checkpoints"))


def _lead_checkpoints(trainer: L.Trainer, new: str, old: str) -> None:
    """Back as well: from another folder Lightning takes no scores over."""
    for callback in trainer.checkpoint_callbacks:
        dirpath = getattr(callback, "dirpath", None)
        if dirpath is not None and Path(dirpath).absolute() == Path(new).absolute():
            callback.dirpath = old


def _remove_empty_events(folder: Path) -> None:
    """The files of this process in which nothing but TensorBoard's header was ever written.

    They are TFRecords: a length in 8 bytes, its checksum in 4, the record, its checksum in 4.
    """
    mine = f".{socket.gethostname()}.{os.getpid()}."
    for file in folder.glob("events.out.tfevents.*"):
        with contextlib.suppress(OSError):
            content = file.read_bytes() if file.stat().st_size < _HEADER_BYTES else b""
            (length,) = struct.unpack("<Q", content[:8].ljust(8, b"\0"))
            if mine in file.name and content and len(content) == 8 + 4 + length + 4:
                file.unlink()


def _keep_rows(logger: CSVLogger, row: Mapping[str, Any], step: int) -> None:
    """The rows up to the checkpoint, those among them that were never written too."""
    file = Path(logger.log_dir) / "metrics.csv"
    found: list[dict[str, str]] = []
    if file.is_file():
        with file.open(newline="") as lines:
            found = list(csv.DictReader(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it will delete what is put back below
        experiment = logger.experiment
    # Lightning numbers a row by the step before which it was logged.
    kept = [each for each in found if int(each["step"]) < step]
    written = {(each["step"], each.get("epoch")) for each in kept}
    unsaved = [
        each for each in row["rows"] if (str(each["step"]), str(each.get("epoch"))) not in written
    ]
    keys = sorted({key for each in (*kept, *unsaved) for key in each})
    if kept:
        experiment.metrics_keys = keys
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, fieldnames=keys)
            writer.writeheader()
            writer.writerows(kept)
    experiment.metrics = [dict(each) for each in unsaved]
