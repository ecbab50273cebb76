"""What every strategy of a merge stands on: sources that fit together, read piece by piece.

Rule 1: all that can be refused is refused before the first tensor of a result.
Rule 2: sources are read in blocks, computed in float64 and rounded once, to the type of the first
source. So a merge needs the memory of one tensor, whatever the number of sources.
Rule 3: a strategy decides about weights. Of the rest:
    BatchNorm's running mean and variance, and other floating buffers, are averaged;
    counters (``num_batches_tracked`` and whole numbers that are buffers without a shape) are those
    of the first source;
    whatever else is no floating number must be equal in all sources.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, NoReturn

import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.weights import Named, Weights, refuse_another_shape
from otf_core.state.weights_file import tied

BLOCK: Final = 2**16  # elements of a source that are in memory at once; a cache holds some
STATISTICS: Final = ("running_mean", "running_var")

# Scores weights that are streamed to it; lower is better. What it raises ends the merge.
Evaluate = Callable[[Iterator[Named]], float]
# Called after each tensor of a pass over the sources: tensors done, in all. May raise, to cancel.
OnTensor = Callable[[int, int], None]
Combine = Callable[[str], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a merge may be told.

    Attributes:
        weights: one for each source, 0 or more; their sum does not matter. None: all the same.
        base: what the sources have begun from; for ``ties``.
        density: which share of each source's changes ``ties`` keeps; above 0, at most 1.
        scale: by how much ``ties`` multiplies the merged change.
        fishers: the diagonal Fisher information of each source, by the names of its parameters;
            for ``fisher``.
        parameters: names of what is a parameter; see ``weights.parameter_names``. None: whatever
            is a floating number and no running statistic.
    """

    weights: Sequence[float] | None = None
    base: Weights | None = None
    density: float = 0.2
    scale: float = 1.0
    fishers: Sequence[Weights] | None = None
    parameters: Collection[str] | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a strategy has made up its mind to.

    Attributes:
        combine: makes one tensor that is to be merged, by the first of its names.
        weights: by which the sources' statistics and floating buffers are averaged.
    """

    combine: Combine
    weights: Sequence[float]


class Kind(enum.Enum):
    """What is to be done with a tensor."""

    WEIGHT = enum.auto()  # the strategy's
    MEAN = enum.auto()
    FIRST = enum.auto()  # as the first source has it


class Job:
    """One merge: sources that fit together, and what is to be told of it.

    Attributes:
        asked: how a refusal names the merge.
        weights: of the sources; their sum is 1.
        kinds: by the first name of each tensor.
        told: sentences for a person.
    """

    def __init__(
        self,
        asked: str,
        sources: Sequence[Weights],
        options: Options,
        evaluate: Evaluate | None,
        on_tensor: OnTensor,
    ) -> None:
        self.asked, self.sources, self.options = asked, sources, options
        self.evaluate, self.on_tensor = evaluate, on_tensor
        self.told: list[str] = []
        if len(sources) < 2:
            self.refuse(f"{len(sources)} sources were given; allowed: 2 or more", field="paths")
        self.weights = self._weights(options.weights)
        for other in self.all[1:]:
            refuse_another_shape(asked, sources[0], other, field="paths")
        self.aliases = {names[0]: names for names in tied(sources[0].shapes)}
        self.kinds: dict[str, Kind] = {}

    @property
    def all(self) -> list[Weights]:
        """The sources, and what they have begun from if that is known."""
        base = self.options.base
        return [*self.sources, *([base] if base is not None else [])]

    @property
    def names(self) -> list[str]:
        """The first name of each tensor that the strategy is to merge."""
        return [name for name, kind in self.kinds.items() if kind is Kind.WEIGHT]

    def refuse(self, why: str, *, field: str, code: ErrorCode = ErrorCode.BAD_PAYLOAD) -> NoReturn:
        """Raises CommandError; nothing has been changed."""
        detail = f"{self.asked} was asked; {why}; nothing has been changed."
        raise CommandError(code, detail, field=field)

    def check(self, only: Collection[str] | None) -> None:
        """Read all that there is once, and say of each tensor what is to be done with it.

        Args:
            only: the names that the strategy merges; the rest must be equal.

        Raises:
            CommandError: ``bad_payload``, what is not finite or not equal.
        """
        counters = []
        for done, (name, names) in enumerate(self.aliases.items(), 1):
            self._refuse_untied(names)
            kind = self._kind(names, only)
            equal = self._equal(name)
            if not equal and kind is None:
                self.refuse(
                    f"{name} is not the same in all sources, and {self._why_not(only)}",
                    field="paths",
                )
            if not equal and kind is Kind.FIRST:
                counters.append(name)
            self.kinds[name] = Kind.FIRST if kind is None or equal else kind
            self.on_tensor(done, len(self.aliases))
        self._tell(counters)

    def stream(self, recipe: Recipe) -> Iterator[Named]:
        """The merged tensors, one at a time, each under all of its names."""
        for name, kind in self.kinds.items():
            if kind is Kind.WEIGHT:
                merged = recipe.combine(name)
            elif kind is Kind.MEAN:
                merged = self.mean(name, recipe.weights)
            else:
                merged = self.sources[0].read(name)
            for alias in self.aliases[name]:
                yield alias, merged

    def mean(self, name: str, weights: Sequence[float]) -> torch.Tensor:
        """The weighted mean over the sources; theirs, bit for bit, where they are the same."""
        read = [(source, name) for source in self.sources]
        return self.by_blocks(name, read, lambda values: weighted_mean(values, weights))

    def by_blocks(
        self,
        name: str,
        read: Sequence[tuple[Weights, str]],
        combine: Callable[[list[torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor:
        """A tensor that is computed element by element, of the first source's shape and type.

        Args:
            read: what it is computed from, all of one shape.
            combine: float64 of one dimension from each of these, to one of the same. What it gets
                may be the source's own memory, and is not to be changed.

        Raises:
            CommandError: ``bad_payload``, the result is not finite in that type.
        """
        like = self.sources[0].shapes[name]
        merged = torch.empty(like.shape, dtype=like.dtype)
        flat = merged.view(-1)
        for begin, end in pieces(flat.numel()):
            found = combine([wide(each.block(own, begin, end)) for each, own in read])
            if like.is_complex():
                found = torch.view_as_complex(found.view(-1, 2))
            flat[begin:end] = found
            if not _all_finite(flat[begin:end]):
                self.refuse(f"the merged {name} is not finite as {like.dtype}", field="strategy")
        return merged

    def _weights(self, asked: Sequence[float] | None) -> tuple[float, ...]:
        number = len(self.sources)
        if asked is None:
            return (1.0 / number,) * number
        found = [float(weight) for weight in asked]
        if len(found) != number:
            self.refuse(f"{len(found)} weights were given for {number} sources", field="weights")
        total = math.fsum(found)
        if any(not weight >= 0 for weight in found) or not 0 < total < math.inf:
            why = f"the weights are {found}; allowed: 0 and above, one at least above 0"
            self.refuse(why, field="weights")
        return tuple(weight / total for weight in found)

    def _kind(self, names: Sequence[str], only: Collection[str] | None) -> Kind | None:
        """None: it must be equal in all."""
        name, parameters = names[0], self.options.parameters
        like = self.sources[0].shapes[name]
        is_buffer = parameters is not None and not any(n in parameters for n in names)
        last = name.rpartition(".")[2]
        if not (like.is_floating_point() or like.is_complex()):
            counts = last == "num_batches_tracked" or (is_buffer and like.dim() == 0)
            return Kind.FIRST if counts and like.dtype is not torch.bool else None
        if only is not None:
            return Kind.WEIGHT if any(n in only for n in names) else None
        return Kind.MEAN if is_buffer or last in STATISTICS else Kind.WEIGHT

    def _why_not(self, only: Collection[str] | None) -> str:
        if only is not None:
            return "this strategy leaves it as it is"
        return "what is no floating number cannot be averaged"

    def _equal(self, name: str) -> bool:
        """Whether it is the same in all sources. Refuses what is not finite.

        Infinity that all have, as a mask does, is no fault.
        """
        equal, infinite = True, ""
        for begin, end in pieces(self.sources[0].shapes[name].numel()):
            first: torch.Tensor | None = None
            for source in self.all:
                values = source.block(name, begin, end)
                if not _all_finite(values):
                    if wide(values).isnan().any():
                        self.refuse(f"{name} of {source.label} holds NaN", field="paths")
                    infinite = infinite or source.label
                first = values if first is None else first
                equal = equal and torch.equal(wide(first), wide(values))
            if infinite and not equal:
                self.refuse(f"{name} of {infinite} holds infinity", field="paths")
        return equal

    def _refuse_untied(self, names: Sequence[str]) -> None:
        """What is one tensor in the first source must be so in the others, or at least equal."""
        number = self.sources[0].shapes[names[0]].numel()
        for source in self.all[1:] if len(names) > 1 else ():
            for name, (begin, end) in itertools.product(names[1:], pieces(number)):
                one, other = (source.block(n, begin, end) for n in (names[0], name))
                if not torch.equal(one, other):
                    why = (
                        f"{names[0]} and {name} are one tensor in {self.sources[0].label}, and two "
                        f"different ones in {source.label}"
                    )
                    self.refuse(why, field="paths")

    def _tell(self, counters: Collection[str]) -> None:
        averaged = [name for name, kind in self.kinds.items() if kind is Kind.MEAN]
        layers = {name.rpartition(".")[0] for name in averaged if name.endswith(STATISTICS)}
        if layers:
            self.told.append(
                f"the running statistics of {len(layers)} BatchNorm layers are averaged, which is "
                "near to what the merged weights need; recalibrating finds it"
            )
        rest = [name for name in averaged if not name.endswith(STATISTICS)]
        if rest:
            self.told.append(f"buffers are averaged: {listed(rest)}")
        if counters:
            first = self.sources[0].label
            self.told.append(f"counters are those of {first}: {listed(counters)}")
        others = sorted({name for source in self.sources for name in source.others})
        if others:
            self.told.append(f"no tensors, and left as they are: {listed(others)}")


def weighted_mean(
    values: Sequence[torch.Tensor], weights: Sequence[float | torch.Tensor]
) -> torch.Tensor:
    """Of weights whose sum is 1; within the values, so that equal ones stay what they are."""
    found = torch.zeros_like(values[0])
    low, high = values[0].clone(), values[0].clone()
    for weight, value in zip(weights, values, strict=True):
        if isinstance(weight, torch.Tensor):
            found.addcmul_(weight, value)
        else:
            found.add_(value, alpha=weight)
        torch.minimum(low, value, out=low)
        torch.maximum(high, value, out=high)
    return torch.clamp(found, low, high, out=found)


def pieces(number: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of so many elements."""
    return ((begin, min(begin + BLOCK, number)) for begin in range(0, number, BLOCK))


def wide(values: torch.Tensor) -> torch.Tensor:
    """In float64, of one dimension; a complex number is two."""
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj()).reshape(-1)
    return values.to(torch.float64)


def _all_finite(values: torch.Tensor) -> bool:
    if not (values.is_floating_point() or values.is_complex()):
        return True
    if values.is_complex() or values.itemsize == 1:  # which torch.aminmax does not know
        values = wide(values)
    # A tenth of the time of isfinite; NaN is the least and the most where there is any.
    return all(math.isfinite(value.item()) for value in torch.aminmax(values))


def listed(names: Collection[str], most: int = 5) -> str:
    """Some names, for a sentence."""
    told = ", ".join(list(names)[:most])
    return f"{told} and {len(names) - most} more" if len(names) > most else told
