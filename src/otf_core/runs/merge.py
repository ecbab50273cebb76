"""Several models' weights into one: the strategies, and how one is carried out.

    with open_weights(one) as a, open_weights(other) as b, weights_aside(modules) as aside:
        merged = merge.run("linear", [a, b])
        put(modules, merged.tensors())
        ...  # validate; then aside.keep(), or the live model is as it was

Rule: a strategy is one entry of STRATEGIES. It is begun with a Job, may read the sources and
refuse, and says how one tensor is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.adapters import adapter, adapters_of
from otf_core.runs.fisher import fisher
from otf_core.runs.merging import Evaluate, Job, OnTensor, Options, Recipe
from otf_core.runs.ties import ties
from otf_core.runs.weights import Named, Weights


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to merge.

    Attributes:
        says: what it does, for a person.
        only: finds the names that it merges, where the rest is to be equal in all sources.
        needs: the options that it cannot do without, and ``evaluate``.
    """

    begin: Callable[[Job], Recipe]
    says: str
    only: Callable[[Job], Collection[str]] | None = None
    needs: tuple[str, ...] = ()


def linear(job: Job) -> Recipe:
    """theta = sum_i w_i theta_i; of one run's checkpoints, what Izmailov et al. 2018 call SWA."""
    return Recipe(lambda name: job.mean(name, job.weights), job.weights)


def soup(job: Job) -> Recipe:
    """The greedy soup of Wortsman et al., "Model soups", ICML 2022, recipe 1.

    The sources are sorted by their own score. One after the other is taken in, and stays if the
    plain mean of all that are in scores no worse than without it.
    """
    evaluate, number = job.evaluate, len(job.sources)
    if evaluate is None:
        job.refuse("there is nothing to score a candidate with", field="strategy")
    if job.options.weights is not None:
        job.refuse("soup finds the weights by itself; allowed: none", field="weights")

    def mean_of(members: Sequence[int]) -> Recipe:
        weights = [float(place in members) / len(members) for place in range(number)]
        return Recipe(lambda name: job.mean(name, weights), weights)

    def score(members: Sequence[int]) -> float:
        found = float(evaluate(job.stream(mean_of(members))))
        return found if not math.isnan(found) else math.inf

    alone = [score([place]) for place in range(number)]
    order = sorted(range(number), key=alone.__getitem__)
    members, best = order[:1], alone[order[0]]
    if not math.isfinite(best):
        job.refuse("no source scores a finite number", field="paths")
    for place in order[1:]:
        found = score([*members, place])
        if found <= best:
            members, best = [*members, place], found
    told = ", ".join(f"{job.sources[place].label} ({alone[place]:.4g})" for place in members)
    job.told.append(f"soup took {len(members)} of {number}, together {best:.4g}: {told}")
    return mean_of(members)


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {
        "linear": Strategy(linear, "the weighted mean of all weights"),
        "fisher": Strategy(
            fisher,
            "the mean of each weight, weighted by how much the data say of it (diagonal Fisher)",
            needs=("fishers",),
        ),
        "ties": Strategy(
            ties,
            "what the sources have changed since their common base: the largest changes, by "
            "majority of their signs",
            needs=("base",),
        ),
        "soup": Strategy(
            soup,
            "the mean of those sources that make it better on the validation set",
            needs=("evaluate",),
        ),
        "adapter": Strategy(
            adapter, "the mean of the adapters alone; the rest is the same in all", only=adapters_of
        ),
    }
)
LEGACY: Final[Mapping[str, str]] = MappingProxyType({"swa": "linear"})


def refuse_unknown(strategies: Iterable[str]) -> None:
    """Raises CommandError ``bad_payload`` where there is no such strategy."""
    for asked in strategies:
        if LEGACY.get(asked, asked) not in STRATEGIES:
            allowed = [*STRATEGIES, *LEGACY]
            detail = f"Merging by {asked[:100]!r} was asked; allowed: {', '.join(allowed)}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="strategy", allowed=allowed)


def needs_of(strategy: str) -> tuple[str, ...]:
    """The options that one cannot do without; see ``Strategy.needs``."""
    return STRATEGIES[LEGACY.get(strategy, strategy)].needs


class Merged:
    """A merge that can be carried out: all that is refused has been.

    Attributes:
        strategy: its name; of a legacy name the one that it stands for.
        names: of the tensors that it makes.
        told: sentences for a person.
    """

    def __init__(self, strategy: str, job: Job, recipe: Recipe) -> None:
        self.strategy, self._job, self._recipe = strategy, job, recipe
        self.names = tuple(name for names in job.aliases.values() for name in names)
        self.told = tuple(job.told)

    def tensors(self) -> Iterator[Named]:
        """One after the other, on the host; any number of times, as long as the sources are open.

        Tensors that the first source shares come as one tensor under several names.

        Raises:
            CommandError: ``bad_payload``, a source cannot be read any more, or a result is not
                finite in its type.
        """
        return self._job.stream(self._recipe)


def run(
    strategy: str,
    sources: Sequence[Weights],
    options: Options | None = None,
    evaluate: Evaluate | None = None,
    on_tensor: OnTensor = lambda *_: None,
) -> Merged:
    """Check sources and options and prepare a merge; training thread.

    Args:
        sources: at least 2. The first decides about types, counters and the order.
        evaluate: see ``Evaluate``; for ``soup``.
        on_tensor: see ``OnTensor``.

    Raises:
        CommandError: ``bad_payload``, ``unsupported``, ``not_found``; and what ``evaluate`` raises.
    """
    refuse_unknown([strategy])
    name = LEGACY.get(strategy, strategy)
    entry = STRATEGIES[name]
    options = options or Options()
    if "base" not in entry.needs:
        options = dataclasses.replace(options, base=None)  # else it would be read and checked
    job = Job(f"Merging by {name}", sources, options, evaluate, on_tensor)
    job.check(None if entry.only is None else entry.only(job))
    return Merged(name, job, entry.begin(job))


def as_it_is(source: Weights) -> Iterator[Named]:
    """The tensors of one source, to be put into the live model."""
    return ((name, source.read(name)) for name in source.shapes)
