"""Whether the ranks of a run have the same parameters and optimizer states; training thread.

With one rank there is nothing to compare, and all is well. With several, each takes digests of its
own bytes; rank 0 asks for one of each kind first, for all names of a kind only where that differs,
and for numbers only of the tensors that do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist
from torch import nn

from otf_core.health.budget import Budget
from otf_core.health.report import Health, aligned, finite, health, percent, short, some
from otf_core.health.subject import Subject
from otf_core.state.parts import joined, named_buffers, named_modules, named_parameters
from otf_core.telemetry.norms import is_sharded, local_part

PARAMETERS: Final = "parameters"
STATES: Final = "optimizer states"
SETTINGS: Final = "optimizer settings"
BUFFERS: Final = "buffers"
KINDS: Final = (PARAMETERS, STATES, SETTINGS, BUFFERS)
PIECE: Final = 2**20  # numbers of a tensor that are sent at a time
MEASURED: Final = 5  # of a kind, so many are told by how much they differ
_PLAIN: Final = (bool, int, float, str, tuple, list, type(None))


class Ranks(Protocol):
    """The other ranks, which are asked; every answer is by rank."""

    def totals(
        self, sample_weights: int
    ) -> AbstractContextManager[Mapping[int, Mapping[str, Any]]]:
        """Behind it: ``device``, and ``totals``, a digest by the kind; or why it ``failed``."""

    def digests(self, kind: str) -> Mapping[int, Mapping[str, str]]:
        """By name."""

    def apart(
        self, kind: str, name: str, tensor: torch.Tensor
    ) -> Mapping[int, Sequence[float | None]]:
        """How far theirs is from a tensor of rank 0; see ``apart``."""


class Hashes:
    """Of what this rank has.

    Args:
        sample_weights: of so many parameters, evenly spread, and of their states; 0 for all.
    """

    def __init__(self, subject: Subject, budget: Budget, sample_weights: int = 0) -> None:
        self._tensors: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in KINDS}
        self.of: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        self.apart_by_design: list[str] = []  # optimizers that keep a part on each rank
        params = list(named_parameters(subject.modules).items())
        if 0 < sample_weights < len(params):
            params = [params[i * len(params) // sample_weights] for i in range(sample_weights)]
        self._tensors[PARAMETERS] = {name: local_part(p) for name, p in params}
        self._tensors[BUFFERS] = dict(named_buffers(subject.modules))
        names = {id(p): name for name, p in params}
        for which, optimizer in subject.optimizers.items():
            if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer
                self.apart_by_design.append(which)
                continue
            self._add_states(which, optimizer, names)
            for number, group in enumerate(optimizer.param_groups):
                self._add_settings(f"{which} group {number}", group)
        for kind, tensors in self._tensors.items():
            for name, tensor in tensors.items():
                budget.check()
                self.of[kind][name] = digest_of(tensor)

    @property
    def totals(self) -> dict[str, str]:
        """One digest of each kind, of all names and digests in their order."""
        return {kind: _total(digests) for kind, digests in self.of.items()}

    def tensor(self, kind: str, name: str) -> torch.Tensor | None:
        """As it is; None where there is none of that name."""
        return self._tensors[kind].get(name)

    def _add_states(self, which: str, optimizer: Any, names: Mapping[int, str]) -> None:
        for p, values in optimizer.state.items():
            if id(p) not in names or not isinstance(values, dict):
                continue
            for key, value in values.items():
                name = f"{which} {names[id(p)]} {key}"
                if isinstance(value, torch.Tensor):
                    self._tensors[STATES][name] = local_part(value)
                elif isinstance(value, _PLAIN):
                    self.of[STATES][name] = _said(value)

    def _add_settings(self, owner: str, group: Mapping[str, Any]) -> None:
        for key, value in group.items():
            if key == "params":
                continue
            if isinstance(value, torch.Tensor):
                self._tensors[SETTINGS][f"{owner} {key}"] = value
            elif isinstance(value, _PLAIN):
                self.of[SETTINGS][f"{owner} {key}"] = _said(value)


@dataclasses.dataclass
class Difference:
    """Something that other ranks have otherwise than rank 0, or that one of them has not."""

    kind: str
    name: str
    ranks: list[int]
    max_abs: float | None = None
    relative: float | None = None

    def to_wire(self) -> dict[str, Any]:
        """As in the reply."""
        name = {"parameter": self.name} if self.kind == PARAMETERS else {"name": self.name}
        return {**name, "ranks": self.ranks, "max_abs": self.max_abs, "relative": self.relative}

    @property
    def said(self) -> tuple[str, str, str]:
        """A row for a person."""
        whose = f"rank {some([str(rank) for rank in self.ranks], 8)} has another than rank 0"
        if self.max_abs is None:
            return self.name, whose, ""
        by = f"by {short(self.max_abs)} at most, {percent(self.relative)} in all"
        return self.name, whose, by


def check(
    subject: Subject,
    budget: Budget,
    *,
    ranks: Ranks | None = None,
    require_all_ranks: bool = False,
    sample_weights: int = 0,
) -> Health:
    """Compare parameters, optimizers and buffers over all ranks.

    Buffers are told, and are no issue: DDP has BatchNorm gather on each rank what its own batches
    are like.

    Args:
        ranks: the others; None: they cannot be asked.
        require_all_ranks: not to have heard one of the others is an issue.
        sample_weights: see Hashes.
    """
    world_size = subject.world_size
    device, found_backend = str(subject.device), backend()
    here = {
        "world_size": world_size,
        "rank": subject.rank,
        "backend": found_backend,
        "device": device,
    }
    lines = aligned(
        [
            ("Ranks", str(world_size)),
            ("Backend", found_backend or "none"),
            ("Device", device),
        ],
        indent="",
    )
    if world_size == 1:
        return health({**here, "differing": []}, [*lines, "One rank, nothing to compare."], ok=True)
    said = "Parameters were not compared: the other ranks were not asked."
    in_parts = any(is_sharded(p) for p in named_parameters(subject.modules).values())
    if in_parts:
        said = "Parameters lie in parts on the ranks: no two have the same to compare."
    if ranks is None or in_parts:
        return health({**here, "differing": None}, [*lines, said], ok=not require_all_ranks)
    with ranks.totals(sample_weights) as heard:
        own = Hashes(subject, budget, sample_weights)
    unheard = {rank: found["failed"] for rank, found in heard.items() if found.get("failed")}
    totals = {rank: found["totals"] for rank, found in heard.items() if rank not in unheard}
    found = _differences(own, ranks, totals)
    by_kind = {kind: [each for each in found if each.kind == kind] for kind in KINDS}
    fields = {
        **here,
        "compared": len(own.of[PARAMETERS]),
        "compared_states": len(own.of[STATES]),
        "compared_buffers": len(own.of[BUFFERS]),
        "devices": [device, *(found.get("device") for found in heard.values())],
        "differing": [each.to_wire() for each in by_kind[PARAMETERS]],
        "states_differing": [each.to_wire() for each in by_kind[STATES]],
        "settings_differing": [each.to_wire() for each in by_kind[SETTINGS]],
        "buffers_differing": [each.to_wire() for each in by_kind[BUFFERS]],
        "unheard": [{"rank": rank, "why": why} for rank, why in unheard.items()],
        "not_compared": own.apart_by_design,
    }
    issues = any(by_kind[kind] for kind in KINDS if kind != BUFFERS)
    lines += _told(subject, own, by_kind, 1 + len(totals))
    lines += [f"Rank {rank} was not compared: {why}" for rank, why in unheard.items()]
    return health(fields, lines, ok=not issues and not (unheard and require_all_ranks))


def backend() -> str | None:
    """Of the default process group; None where there is none."""
    if dist.is_available() and dist.is_initialized():
        return str(dist.get_backend())
    return None


def pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor in flat pieces on the host."""
    flat = tensor.detach().reshape(-1)
    for begin in range(0, flat.numel(), PIECE):
        yield flat[begin : begin + PIECE].to("cpu")


def apart(
    mine: torch.Tensor | None, shape: Sequence[int], of_rank_0: Iterable[torch.Tensor]
) -> list[float | None]:
    """The largest difference, and the norm of all of it beside that of rank 0's.

    Args:
        of_rank_0: its pieces; all are taken, also where there is nothing to compare.

    Returns:
        None in place of what is not finite, or where there is no tensor of that shape.
    """
    own = pieces(mine) if mine is not None and list(mine.shape) == list(shape) else iter(())
    most, squares, norms = 0.0, 0.0, 0.0
    compared = False
    for theirs in of_rank_0:
        if (here := next(own, None)) is None:
            continue
        compared = True
        one, other = (_as_numbers(each) for each in (here, theirs))
        most = max(most, float((one - other).abs().max()))
        squares += float((one - other).square().sum())
        norms += float(other.square().sum())
    if not compared:
        return [None, None]
    return [finite(most), finite(math.sqrt(squares / norms) if norms > 0 else math.inf)]


def _as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(torch.float64)


def digest_of(tensor: torch.Tensor) -> str:
    """Equal only for tensors that are equal bit for bit, in shape and dtype as well."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)} "
    found = hashlib.blake2b(kind.encode(), digest_size=16)
    if tensor.numel():
        flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _said(value: Any) -> str:
    return repr(value)[:200]


def _total(digests: Mapping[str, str]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, digest in digests.items():
        found.update(f"{name} {digest};".encode())
    return found.hexdigest()


def _differences(
    own: Hashes, ranks: Ranks, totals: Mapping[int, Mapping[str, str]]
) -> list[Difference]:
    found = []
    for kind, total in own.totals.items():
        if all(others[kind] == total for others in totals.values()):
            continue
        theirs = {rank: each for rank, each in ranks.digests(kind).items() if rank in totals}
        names = dict.fromkeys([*own.of[kind], *(name for each in theirs.values() for name in each)])
        rows = []
        for name in names:
            mine = own.of[kind].get(name)
            if others := [rank for rank, each in theirs.items() if each.get(name) != mine]:
                rows.append(Difference(kind, name, others))
        for row in rows[:MEASURED]:
            if (tensor := own.tensor(kind, row.name)) is not None:
                _measure(row, ranks.apart(kind, row.name, tensor))
        found += rows
    return found


def _measure(row: Difference, heard: Mapping[int, Sequence[float | None]]) -> None:
    """By the rank that is farthest away."""
    known = [(most, all_) for most, all_ in (heard[rank] for rank in row.ranks) if most is not None]
    if known:
        row.max_abs = max(most for most, _ in known)
        row.relative = max((all_ for _, all_ in known if all_ is not None), default=None)


def _told(
    subject: Subject, own: Hashes, by_kind: Mapping[str, list[Difference]], world_size: int
) -> Iterator[str]:
    for kind in (PARAMETERS, STATES, SETTINGS):
        number, rows = len(own.of[kind]), by_kind[kind]
        if rows:
            names = some([each.name for each in rows], 3)
            yield f"{len(rows)} of {number} {kind} differ: {names}."
            yield from aligned([each.said for each in rows[:MEASURED]])
        elif number:
            yield f"{number} {kind} are bit for bit the same on {world_size} ranks."
    if own.apart_by_design:
        yield f"States of {some(own.apart_by_design)} lie in parts on the ranks; not compared."
    known = _of_batch_norm(subject)
    statistics = [each for each in by_kind[BUFFERS] if each.name in known]
    others = [each for each in by_kind[BUFFERS] if each.name not in known]
    if statistics:
        yield (
            f"Statistics of BatchNorm differ ({some([each.name for each in statistics], 2)}), as "
            "they may: each rank gathers those of its own batches."
        )
    if others:
        yield f"{len(others)} other buffers differ, which is for their model to judge:"
        yield from aligned([each.said for each in others[:MEASURED]])


def _of_batch_norm(subject: Subject) -> frozenset[str]:
    """The buffers that each rank gathers by itself."""
    return frozenset(
        joined(owner, name)
        for owner, module in named_modules(subject.modules).items()
        if isinstance(module, nn.modules.batchnorm._NormBase)  # noqa: SLF001 -- the base of all
        and not isinstance(module, nn.SyncBatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    )
