"""What is known of the samples of a data set, and of which data set.

Rule 1: ids are indices of the loader's data set, whatever sampler it has.
Rule 2: what is not finite stays so in the arrays, with its id; on the wire it is None.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from otf_core.errors import CommandError, ErrorCode

Ids = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

NO_CLASS: Final = -1
PAGE: Final = 50_000  # samples; about 2 MB of JSON
_LOOKS: Final = 64  # entries of a column that are looked at
_TOLD: Final = (str, bytes, int, float, bool)


class Fingerprint(msgspec.Struct, frozen=True):
    """Which data set a thing was made of.

    Attributes:
        size: samples.
        kind: its class, and of those that it wraps.
        digest: of what lies in memory of it; no sample is fetched for it.
    """

    size: int
    kind: str
    digest: str


def fingerprint_of(dataset: Any) -> Fingerprint:
    """Look at a data set without asking it for samples; training thread.

    Looked at are the columns: tensors, arrays and lists with an entry for each sample. What a
    data set counts or keeps beside is not looked at, since training changes it.

    Raises:
        CommandError: ``unsupported``, it has no samples by index.
    """
    kinds: list[str] = []
    digest = hashlib.sha256()
    _look(dataset, kinds, digest)
    return Fingerprint(_size(dataset), "/".join(kinds), digest.hexdigest()[:16])


def refuse_another_data_set(made_of: Fingerprint, here: Fingerprint) -> None:
    """Raises CommandError ``bad_payload``, with what is different."""
    if made_of == here:
        return
    if made_of.kind == here.kind and made_of.size != here.size:
        word = "shrunk" if here.size < made_of.size else "grown"
        what = f"which has {word}: it had {made_of.size:,} samples and has {here.size:,}"
    elif made_of.kind != here.kind:
        what = f"and not of this one: it was {made_of.kind}, here is {here.kind}"
    else:
        what = f"and not of this one: both are {here.kind} with {here.size:,} samples, which differ"
    detail = f"The samples were chosen of a data set, {what}; allowed: a choice made of this one."
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="selection")


@dataclasses.dataclass(frozen=True, eq=False)
class SampleTable:
    """Columns over samples; those that are None are not known.

    Attributes:
        ids: int64, ascending.
        losses: float64, per sample.
        labels: class of each, ``NO_CLASS`` where it has none.
        predictions: the most probable class.
        confidence: probability of the sample's own label.
        rivals: the most probable class beside the label.
        rival_confidence: its probability.
        features: name of a layer -> float32, a row for each sample.
    """

    data: Fingerprint
    ids: Ids
    losses: Floats | None = None
    labels: Ids | None = None
    predictions: Ids | None = None
    confidence: Floats | None = None
    rivals: Ids | None = None
    rival_confidence: Floats | None = None
    features: Mapping[str, Floats] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_all(cls, data: Fingerprint) -> SampleTable:
        """All samples, of which nothing is known."""
        return cls(data, np.arange(data.size, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def known(self) -> frozenset[str]:
        """As ``needs`` of a selection names it."""
        found = {"loss"} if self.losses is not None else set()
        if self.rival_confidence is not None:
            found.add("classes")
        return frozenset(found | {f"features:{name}" for name in self.features})

    def only(self, ids: Ids) -> SampleTable:
        """Of these samples, which are all in it; ascending."""
        places = np.searchsorted(self.ids, ids)
        found: dict[str, Any] = {
            name: column[places]
            for name, column in vars(self).items()
            if isinstance(column, np.ndarray)
        }
        features = {name: rows[places] for name, rows in self.features.items()}
        return dataclasses.replace(self, **found, features=features)

    def page(self, start: int, count: int = PAGE) -> dict[str, Any]:
        """So many samples from the ``start``-th on, as plain values.

        Returns:
            start, total, sample_indices, and those columns that are known: losses, labels,
            predictions; a loss that is not finite is None.
        """
        part = slice(start, start + count)
        found: dict[str, Any] = {"start": start, "total": len(self)}
        found["sample_indices"] = self.ids[part].tolist()
        if self.losses is not None:
            found["losses"] = [finite_or_none(loss) for loss in self.losses[part].tolist()]
        for name, column in (("labels", self.labels), ("predictions", self.predictions)):
            if column is not None:
                found[name] = column[part].tolist()
        return found

    def pages(self, count: int = PAGE) -> Iterator[dict[str, Any]]:
        """All samples, page by page; one page where there is none."""
        for start in range(0, max(len(self), 1), count):
            yield self.page(start, count)


def finite_or_none(value: float) -> float | None:
    """As it goes onto the wire."""
    return value if math.isfinite(value) else None


def _size(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset):
        why = "is an iterable data set, without indices"
    elif not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        why = "has no __getitem__ or no __len__"
    else:
        return len(dataset)
    detail = f"Samples by index were asked for; {type(dataset).__name__} {why}."
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _look(dataset: Any, kinds: list[str], digest: Any) -> None:
    size = _size(dataset)
    kinds.append(type(dataset).__qualname__)
    digest.update(f"{type(dataset).__qualname__} {size};".encode())
    for name, value in sorted(vars(dataset).items() if hasattr(dataset, "__dict__") else ()):
        if name == "_fingerprint" and isinstance(value, str):  # of Hugging Face's data sets
            digest.update(value.encode())
        inside = value if isinstance(value, tuple) and len(value) <= _LOOKS else ()
        for column in (value, *inside):
            _look_at_column(name, column, size, digest)
    if isinstance(dataset, Subset):  # all: one that is another is another sample
        digest.update(np.asarray(dataset.indices, dtype=np.int64).tobytes())
    inner = vars(dataset).get("dataset") if hasattr(dataset, "__dict__") else None
    if inner is not None and hasattr(inner, "__getitem__") and hasattr(inner, "__len__"):
        _look(inner, kinds, digest)
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            _look(part, kinds, digest)


def _look_at_column(name: str, column: Any, size: int, digest: Any) -> None:
    if isinstance(column, torch.Tensor | np.ndarray):
        if column.ndim == 0 or len(column) != size:
            return
        picked: Any = column[_places(size)]
        if isinstance(picked, torch.Tensor):
            picked = picked.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        # The bytes of Python objects are where they lie.
        digest.update(str(picked.tolist()).encode() if picked.dtype.hasobject else picked.tobytes())
        told = f"{name} {tuple(column.shape)} {column.dtype}"
    elif isinstance(column, list | tuple | range) and len(column) == size:
        told = f"{name} {[v for v in (column[i] for i in _places(size)) if type(v) in _TOLD]}"
    else:
        return
    digest.update(told.encode(errors="surrogateescape"))


def _places(size: int) -> list[int]:
    """Some entries, the first and the last among them."""
    if size <= _LOOKS:
        return list(range(size))
    return [i * (size - 1) // (_LOOKS - 1) for i in range(_LOOKS)]
