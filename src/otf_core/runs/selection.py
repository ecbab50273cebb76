"""Which samples are meant: one value for fork, report, export, page and command line.

Rule 1: a selection is a rule until it is resolved against what is known of the samples; the same
rule and the same table give the same ids.
Rule 2: the wire form is ``selection`` of docs/protocol.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.clusters import cluster
from otf_core.runs.label_noise import suspects
from otf_core.runs.table import (
    Fingerprint,
    Ids,
    SampleTable,
    fingerprint_of,
    refuse_another_data_set,
)

MAX_PARTS: Final = 100
MAX_CLUSTERS: Final = 1_000
_NONE: Final = frozenset[str]()
# A field that msgspec names, or that a check of ours begins its sentence with.
_PLACE: Final = re.compile(r"`\$\.?([^`]*)`$")
_FIELD: Final = re.compile(r"missing required field `([^`]+)`|^`([^`]+)`")

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Kind(msgspec.Struct, frozen=True, tag_field="kind"):
    def needs(self) -> frozenset[str]:
        """What must be known of the samples: ``loss``, ``classes``, ``features:<layer>``."""
        return _NONE

    def ids(self, table: SampleTable) -> Ids:
        """Ascending, each once; may be empty. The table knows what is needed."""
        raise NotImplementedError


class Indices(_Kind, frozen=True, tag="indices"):
    """These very samples.

    Attributes:
        data: the data set that they were chosen of, where that was noted.
    """

    ids_: list[Id] = msgspec.field(name="ids")
    data: Fingerprint | msgspec.UnsetType = msgspec.UNSET

    def ids(self, table: SampleTable) -> Ids:
        if self.data is not msgspec.UNSET:
            refuse_another_data_set(self.data, table.data)
        found = np.unique(np.array(self.ids_, dtype=np.int64))
        size = table.data.size
        if len(found) and not 0 <= found[0] <= found[-1] < size:
            wrong = found[0] if found[0] < 0 else found[-1]
            detail = (
                f"Sample {wrong} was chosen of a data set with {size:,}; allowed: 0 to {size - 1}."
            )
            allowed = {"min": 0, "max": size - 1}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids", allowed=allowed)
        return found


class Quantile(_Kind, frozen=True, tag="quantile"):
    """A share of the samples in the order of their loss.

    ``from`` 0.9 ``to`` 1 is the worst tenth. Neighbouring shares have no sample in common and
    leave none out: the i-th of n belongs to a share if from <= i / n < to. Equal losses are in
    the order of ids; what is no number counts as worst.
    """

    from_: Share = msgspec.field(name="from")
    to: Share
    metric: Literal["per_sample_loss"] = "per_sample_loss"

    def __post_init__(self) -> None:
        if self.from_ > self.to:
            msg = f"`from` is {self.from_}, above `to`, {self.to}"
            raise ValueError(msg)

    def needs(self) -> frozenset[str]:
        return frozenset({"loss"})

    def ids(self, table: SampleTable) -> Ids:
        assert table.losses is not None
        order = np.argsort(table.losses, kind="stable")  # NaN comes last
        first, end = (_place(share, len(table)) for share in (self.from_, self.to))
        return np.sort(table.ids[order[first:end]])


class Region(_Kind, frozen=True, tag="region"):
    """Losses from ``minLoss`` to ``maxLoss``, both among them; what is no number is in none."""

    min_loss: float = msgspec.field(name="minLoss")
    max_loss: float = msgspec.field(name="maxLoss")

    def __post_init__(self) -> None:
        if not self.min_loss <= self.max_loss:
            msg = f"`minLoss` is {self.min_loss}, not below `maxLoss`, {self.max_loss}"
            raise ValueError(msg)

    def needs(self) -> frozenset[str]:
        return frozenset({"loss"})

    def ids(self, table: SampleTable) -> Ids:
        assert table.losses is not None
        return table.ids[(table.losses >= self.min_loss) & (table.losses <= self.max_loss)]


class KMeans(_Kind, frozen=True, tag="kmeans"):
    """Clusters of samples by their loss, or by what a layer gives for them.

    Clusters are numbered by their mean loss, 0 the lowest.
    """

    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLUSTERS)]
    target_clusters: Annotated[list[int], msgspec.Meta(min_length=1)]
    feature: str = "loss"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        for number in self.target_clusters:
            if not 0 <= number < self.k:
                msg = f"`target_clusters` has {number}; allowed: 0 to {self.k - 1}"
                raise ValueError(msg)

    def needs(self) -> frozenset[str]:
        own = () if self.feature == "loss" else (f"features:{self.feature}",)
        return frozenset({"loss", *own})

    def clusters(self, table: SampleTable) -> Ids:
        """The cluster of each sample; -1 where its loss or a feature of it is not finite."""
        return cluster(table, self.feature, self.k, self.seed)

    def ids(self, table: SampleTable) -> Ids:
        return table.ids[np.isin(self.clusters(table), self.target_clusters)]


class LabelNoise(_Kind, frozen=True, tag="label_noise"):
    """Samples whose label the model has reason to doubt; see ``runs.label_noise``.

    Attributes:
        at_most: the most doubtful ones, by margin; all where it is not given.
    """

    at_most: Count | None = None

    def needs(self) -> frozenset[str]:
        return frozenset({"classes"})

    def ids(self, table: SampleTable) -> Ids:
        return np.sort(suspects(table)[: self.at_most])


class Union(_Kind, frozen=True, tag="union"):
    """Samples that are in any of them."""

    of: Annotated[list[Selection], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs() for part in self.of))

    def ids(self, table: SampleTable) -> Ids:
        return np.unique(np.concatenate([part.ids(table) for part in self.of]))


class Intersection(_Kind, frozen=True, tag="intersection"):
    """Samples that are in all of them."""

    of: Annotated[list[Selection], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs() for part in self.of))

    def ids(self, table: SampleTable) -> Ids:
        found, *more = [part.ids(table) for part in self.of]
        for ids in more:
            found = np.intersect1d(found, ids, assume_unique=True)
        return found


class Complement(_Kind, frozen=True, tag="complement"):
    """The samples of the table that are not in it."""

    of: Selection

    def needs(self) -> frozenset[str]:
        return self.of.needs()

    def ids(self, table: SampleTable) -> Ids:
        return np.setdiff1d(table.ids, self.of.ids(table), assume_unique=True)


Selection: TypeAlias = (
    Indices | Quantile | Region | KMeans | LabelNoise | Union | Intersection | Complement
)


def decode_selection(payload: Any, *, field: str = "selection") -> Selection:
    """The selection of a payload; any thread.

    Args:
        payload: as JSON gives it.
        field: where in the payload it lies.

    Raises:
        CommandError: ``bad_payload``, with the place of what is wrong.
    """
    try:
        found: Selection = msgspec.convert(payload, Selection)
    except (msgspec.ValidationError, RecursionError) as error:
        detail = f"The {field} does not fit: {error}."
        place = field + _place_of(str(error))
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=place) from error
    return found


def to_wire(selection: Selection) -> dict[str, Any]:
    """As ``decode_selection`` takes it."""
    found: dict[str, Any] = msgspec.to_builtins(selection)
    return found


def indices_of(ids: Ids, data: Fingerprint) -> Indices:
    """These samples of this data set, which is noted."""
    return Indices(ids.tolist(), data)


def resolve(selection: Selection, table: SampleTable, dataset: Any = None) -> Ids:
    """The ids that are meant; ascending, at least one. Training thread.

    Args:
        dataset: the one that they are to be used for; None: it is the table's.

    Raises:
        CommandError: as ``means``; ``bad_payload``, it is of another data set, or means no sample.
    """
    if dataset is not None:
        refuse_another_data_set(table.data, fingerprint_of(dataset))
    ids = means(selection, table)
    if len(ids) == 0:
        detail = f"The selection means none of {len(table):,} samples; allowed: at least 1."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="selection")
    return ids


def means(selection: Selection, table: SampleTable) -> Ids:
    """The ids that are meant; ascending, may be none.

    Raises:
        CommandError: ``not_allowed_now``, the samples have not been looked at as it needs.
    """
    if missing := sorted(selection.needs() - table.known()):
        detail = (
            f"Samples were asked for by {', '.join(missing)}, which is not known of them; allowed "
            "once they were scanned for it."
        )
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="selection", allowed=missing)
    return selection.ids(table)


def _place(share: float, number: int) -> int:
    # 0.07 of 100 is a little above 7.
    return int(np.ceil(round(share * number, 6)))


def _place_of(error: str) -> str:
    """``.of[1].from`` of what msgspec says."""
    at = _PLACE.search(error)
    said = _FIELD.search(error)
    parts = [at[1] if at is not None else "", (said[1] or said[2]) if said is not None else ""]
    return "".join(f".{part}" for part in parts if part)
