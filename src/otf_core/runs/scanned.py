"""What a scan has found so far: columns that are filled from the device now and then."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from otf_core.runs.losses import Scores, classes_of
from otf_core.runs.table import NO_CLASS, Fingerprint, Ids, SampleTable

# So much waits on the device: reading a batch at a time would have the device wait for us.
_SAMPLES: Final = 1_024
_NUMBERS: Final = 4_000_000
_CLASSES: Final = {
    "labels": (np.int64, NO_CLASS),
    "predictions": (np.int64, NO_CLASS),
    "confidence": (np.float32, np.nan),
    "rivals": (np.int64, NO_CLASS),
    "rival_confidence": (np.float32, np.nan),
}


class Scanned:
    """Columns over the ids of a scan, in their order; training thread."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._losses = np.full(len(ids), np.nan)
        self._columns: dict[str, Any] = {}
        self._features: Any = None
        self._read = 0
        self._waiting: list[tuple[torch.Tensor, Scores | None, torch.Tensor | None]] = []
        self._samples = self._numbers = 0

    def add(
        self, losses: torch.Tensor, scores: Scores | None, features: torch.Tensor | None
    ) -> None:
        """Of the next samples."""
        self._waiting.append((losses, scores, features))
        self._samples += len(losses)
        if scores is not None:
            self._numbers += scores.scores.numel()
        if features is not None:
            self._numbers += features.numel()
        if self._samples >= _SAMPLES or self._numbers >= _NUMBERS:
            self.read()

    def read(self) -> None:
        """All that waits; waits for the device."""
        waiting, self._waiting = self._waiting, []
        self._samples = self._numbers = 0
        if not waiting:
            return
        device = waiting[0][0].device
        losses = torch.cat([losses.to(device) for losses, _, _ in waiting]).cpu().double().numpy()
        start = self._read
        self._losses[start : start + len(losses)] = losses
        self._read_classes(start, [(len(losses), scores) for losses, scores, _ in waiting])
        features = [found for _, _, found in waiting if found is not None]
        if features:
            self._write_features(start, torch.cat(features).cpu().numpy())
        self._read += len(losses)

    @property
    def row_bytes(self) -> int:
        """Of a sample in all columns, as ``part`` gives it."""
        one = self.part(0, 1)
        return sum(column.itemsize * column[:1].size for column in one.values())

    def part(self, start: int, stop: int) -> dict[str, Any]:
        """Columns of these samples that were read, for ``put``."""
        stop = min(stop, self._read)
        found = {"losses": self._losses, **self._columns}
        if self._features is not None:
            found["features"] = self._features
        return {name: column[start:stop] for name, column in found.items()}

    def put(self, start: int, part: dict[str, Any]) -> None:
        """What was found elsewhere of the samples from ``start`` on."""
        number = len(part["losses"])
        for name, rows in part.items():
            if name == "losses":
                self._losses[start : start + number] = rows
            elif name == "features":
                self._write_features(start, rows)
            else:
                self._column(name)[start : start + number] = rows
        self._read += number

    def table(self, data: Fingerprint, done: int, layer: str | None) -> SampleTable:
        """Of the first samples that are done and read."""
        done = min(done, self._read)
        features = {}
        if layer is not None and self._features is not None:
            features[layer] = self._features[:done]
        columns = {name: column[:done] for name, column in self._columns.items()}
        return SampleTable(
            data, self._ids[:done], self._losses[:done], features=features, **columns
        )

    def _read_classes(self, start: int, waiting: list[tuple[int, Scores | None]]) -> None:
        group: list[Scores] = []
        for place, (number, scores) in enumerate(waiting):
            if scores is not None:
                group.append(scores)
            after = waiting[place + 1][1] if place + 1 < len(waiting) else None
            if group and (after is None or not group[0].fits(after)):
                self._write_classes(start + number, group)
                group = []
            start += number

    def _write_classes(self, end: int, group: list[Scores]) -> None:
        found = classes_of(group)
        for name in _CLASSES:
            column = getattr(found, name).cpu().numpy()
            self._column(name)[end - len(column) : end] = column
        part = slice(end - len(found.labels), end)
        # Of a sample that the loss leaves out torch says 0.
        self._losses[part][self._columns["labels"][part] == NO_CLASS] = np.nan

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            kind, unknown = _CLASSES[name]
            self._columns[name] = np.full(len(self._ids), unknown, dtype=kind)
        return self._columns[name]

    def _write_features(self, start: int, rows: Any) -> None:
        if self._features is None:
            self._features = np.full((len(self._ids), rows.shape[1]), np.nan, dtype=np.float32)
        self._features[start : start + len(rows)] = rows
