"""On which samples a run trains: the user's own loader, that draws other indices.

Rule 1: the loader stays the object it is, with its data set, collate, workers and transforms. Only
who draws the indices is another one while the run has chosen samples.
Rule 2: ids are indices of the loader's data set.
Rule 3: training thread, between two batches. Whoever chooses makes the iterator anew.
Rule 4: of several ranks each draws its share as its own DistributedSampler would of a data set that
has only the chosen samples: by seed, epoch and rank alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.labels import labels_of
from otf_core.state.data_tap import hear
from otf_core.state.loader_parts import parts, reading_parts

# torch.multinomial takes no more.
MAX_WEIGHTS: Final = 2**24
_ORDER: Final = ("batch_size", "sampler", "batch_sampler", "drop_last")


@dataclasses.dataclass(frozen=True, eq=False)
class DataChoice:
    """What of the training data a run trains on.

    Attributes:
        ids: indices of the data set, int64, each at most once; None: all.
        weights: of each of them, how often it is drawn; float64 of the same length. With
            replacement, as many draws in a pass as there are samples.
        batch_size: None: the loader's own.
        factors: class, as text -> by what its samples' weights are multiplied, in the loader's own
            WeightedRandomSampler; without ids and weights.
    """

    ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    batch_size: int | None = None
    factors: Mapping[str, float] | None = None

    def __bool__(self) -> bool:
        """Whether anything is other than the script has it."""
        return any(value is not None for value in vars(self).values())

    def to_state(self) -> dict[str, Any]:
        """As it lies in a checkpoint."""
        return dict(vars(self))

    @classmethod
    def of_state(cls, saved: Mapping[str, Any] | None) -> DataChoice:
        """What ``to_state`` returned; None is a run that has chosen nothing."""
        return cls(**(saved or {}))


class FitData(Protocol):
    """What a framework supplies of a fit, so that its training data can be changed."""

    def loader(self) -> Any:
        """The one that it trains with.

        Raises:
            CommandError: ``unsupported``, it cannot be changed.
        """

    def batches(self) -> int | None:
        """Of an epoch, as ``ControlDelegate.environment`` says them; None where nobody knows."""

    def epoch(self) -> tuple[int, int] | None:
        """Its batches, by the loader as it is now, and how many make a step; None: not known."""

    def steps_left(self) -> int | None:
        """Until a schedule that steps with the optimizer raises; None: none does."""

    def count(self) -> list[str]:
        """Count the batches of an epoch anew; sentences on what does not apply."""

    def begin_pass(self) -> None:
        """The epoch begins anew, with the loader as it is now."""

    def within_epoch(self) -> bool:
        """Whether batches of this epoch are still to come."""


class ChosenSampler(Sampler[int]):
    """Draws from chosen samples, as torch's own samplers draw from all.

    Args:
        ids: see DataChoice.
        shuffle: each pass in another order; without it in the order of ``ids``.
        generator: None: seeded from torch's, as RandomSampler does.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        *,
        shuffle: bool,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.ids, self.shuffle, self.weights, self.generator = ids, shuffle, weights, generator

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids[self._places()].tolist())

    def _places(self) -> torch.Tensor:
        number = len(self.ids)
        if self.weights is None and not self.shuffle:
            return torch.arange(number)
        generator = self.generator
        if generator is None:
            generator = torch.Generator()
            generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        if self.weights is None:
            return torch.randperm(number, generator=generator)
        return torch.multinomial(self.weights, number, replacement=True, generator=generator)


class ChosenShare(DistributedSampler[int]):
    """One rank's share of chosen samples, as torch's own sampler has it of all.

    Args:
        own: the loader's, whose ranks, seed, epoch and order it takes over.
    """

    def __init__(
        self, ids: torch.Tensor, own: DistributedSampler[Any], weights: torch.Tensor | None = None
    ) -> None:
        # Another than torch's draws by a rule of its own, which does not apply.
        plain = type(own) is DistributedSampler
        super().__init__(
            ids,  # type: ignore[arg-type]  # its length is all that is asked
            num_replicas=own.num_replicas,
            rank=own.rank,
            shuffle=own.shuffle or not plain,
            seed=own.seed,
            drop_last=own.drop_last and len(ids) >= own.num_replicas,
        )
        self.ids, self.weights = ids, weights
        self.set_epoch(own.epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids[self._places()].tolist())

    def told(self) -> list[str]:
        """What the ranks do not share evenly."""
        more, ranks = self.total_size - len(self.ids), self.num_replicas
        if more > 0:
            who = f"so that each of the {ranks} ranks draws {self.num_samples:,}"
            return [f"{more} of an epoch's samples are drawn once more, {who}"]
        if more < 0:
            return [f"{-more} of the samples are left out of each epoch (drop_last)"]
        return []

    def _places(self) -> torch.Tensor:
        number = len(self.ids)
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        if self.weights is not None:
            places = torch.multinomial(self.weights, number, replacement=True, generator=generator)
        elif self.shuffle:
            places = torch.randperm(number, generator=generator)
        else:
            places = torch.arange(number)
        of_all = places.repeat(math.ceil(self.total_size / number))[: self.total_size]
        return of_all[self.rank :: self.num_replicas]


class ChosenData:
    """A training loader, and what of it a run trains on now.

    Args:
        loader: the user's; an attribute of it is another one only while something is chosen.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.choice = DataChoice()
        self._own: dict[str, Any] = {name: getattr(loader, name, None) for name in _ORDER}
        self._weighted: WeightedRandomSampler | None = None
        self._own_weights: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None
        self._classes: list[str] | None = None

    def batch_size(self, choice: DataChoice) -> int | None:
        """With this choice; None where the loader makes no batches."""
        if self._own["batch_sampler"] is None:
            return None
        return choice.batch_size or self._own["batch_size"]

    def classes(self) -> list[str]:
        """Whose weight can be multiplied, in order; looked for once."""
        if self._classes is None:
            self._classes = self._find_classes()
        return self._classes

    def _find_classes(self) -> list[str]:
        own = self._own["sampler"]
        among = parts({"sampler": own}, but=reading_parts(self.loader.dataset, None).values())
        found = [each for each in among.values() if isinstance(each, WeightedRandomSampler)]
        if len(found) != 1 or len(found[0].weights) != len(self.loader.dataset):
            return []
        labels = labels_of(self.loader.dataset)
        if labels is None or len(labels) != len(found[0].weights):
            return []
        self._weighted, self._labels = found[0], labels
        return [str(label) for label in torch.unique(labels).tolist()]

    def _weighed(self, factors: Mapping[str, float]) -> torch.Tensor:
        """The weights of its own sampler, each class multiplied."""
        assert self._weighted is not None
        assert self._labels is not None
        own = self._weighted.weights if self._own_weights is None else self._own_weights
        weights = own.clone()
        for label, factor in factors.items():
            weights[self._labels == int(label)] *= factor
        return weights

    def check(self, choice: DataChoice) -> None:
        """Refuse what the loader cannot do; nothing is changed.

        Raises:
            CommandError: ``unsupported`` or ``bad_payload``.
        """
        if not choice:
            return
        if (why := self.why_not(choice)) is not None:
            detail = f"Other training data was asked; {why}."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if choice.ids is not None:
            _check_ids(choice.ids, len(self.loader.dataset))
        if choice.weights is not None:
            number = len(self.loader.dataset) if choice.ids is None else len(choice.ids)
            _check_weights(choice.weights, number)
        if choice.factors is not None:
            self._check_factors(choice.factors)
        if choice.batch_size is not None and choice.batch_size < 1:
            detail = f"A batch size of {choice.batch_size} was asked; allowed: 1 or more."
            allowed = {"min": 1}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="batch_size", allowed=allowed)

    def choose(self, choice: DataChoice) -> list[str]:
        """From the next ``iter`` of the loader on.

        Returns:
            Sentences on what does not apply while it is so.

        Raises:
            CommandError: see ``check``.
        """
        self.check(choice)
        self.restore()
        if not choice:
            return []
        own, told = self._own, list[str]()
        sampler: Any = own["sampler"]
        if choice.ids is not None or choice.weights is not None:
            sampler = self._sampler(choice)
            kind = type(own["sampler"])
            known = issubclass(kind, RandomSampler | SequentialSampler)
            if not (known or kind is DistributedSampler):
                told.append(f"the order of {kind.__name__} does not apply to the chosen samples")
            if isinstance(sampler, ChosenShare):
                told += sampler.told()
        if choice.factors is not None and self._weighted is not None:
            weights = self._weighed(choice.factors)
            self._own_weights, self._weighted.weights = self._weighted.weights, weights
        size = choice.batch_size or own["batch_size"]
        drop_last = own["drop_last"]
        if drop_last and len(sampler) < size:
            drop_last = False
            told.append(f"drop_last does not apply: {len(sampler)} samples are less than a batch")
        new: dict[str, Any] = {"sampler": sampler}
        if own["batch_sampler"] is not None:
            batches = BatchSampler(sampler, size, drop_last)
            new |= {"batch_sampler": batches, "batch_size": size, "drop_last": drop_last}
        self._set(new)
        self.choice = choice
        return told

    def restore(self) -> None:
        """The loader as the script has made it."""
        if self.choice:
            chosen, own = self.loader.sampler, self._own["sampler"]
            self._set(self._own)
            if self._own_weights is not None and self._weighted is not None:
                self._weighted.weights, self._own_weights = self._own_weights, None
            self.choice = DataChoice()
            if isinstance(chosen, ChosenShare):
                own.set_epoch(chosen.epoch)  # it has heard of none meanwhile

    def _sampler(self, choice: DataChoice) -> ChosenSampler | ChosenShare:
        own = self._own["sampler"]
        ids = choice.ids
        if ids is None:
            ids = torch.arange(len(self.loader.dataset))
        if isinstance(own, DistributedSampler):
            return ChosenShare(ids, own, choice.weights)
        return ChosenSampler(
            ids,
            shuffle=not isinstance(own, SequentialSampler),
            weights=choice.weights,
            generator=getattr(own, "generator", None),
        )

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            object.__setattr__(self.loader, name, value)  # DataLoader forbids it by its own

    def why_not(self, choice: DataChoice) -> str | None:
        """What of the loader is in the way, in words; None where nothing is."""
        loader = self.loader
        name = type(loader).__name__
        if not isinstance(loader, DataLoader):
            return f"{name} is no DataLoader of torch"
        if isinstance(loader.dataset, IterableDataset):
            return f"{type(loader.dataset).__name__} is an iterable data set, without indices"
        batches = self._own["batch_sampler"]
        if batches is not None and type(batches) is not BatchSampler:
            return f"{name} has a batch sampler of its own ({type(batches).__name__})"
        if batches is None and choice.batch_size is not None:
            return f"{name} makes no batches (batch_size=None)"
        if choice.factors is not None and (choice.ids is not None or choice.weights is not None):
            return "chosen samples are not drawn by the loader's own sampler, which has the weights"
        return None

    def _check_factors(self, factors: Mapping[str, float]) -> None:
        classes = self.classes()
        if strange := sorted(factors.keys() - classes):
            detail = f"Class {strange[0][:40]!r} was asked to weigh more or less; it has none such."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="value", allowed=classes[:20])
        assert self._weighted is not None
        least = 1 if self._weighted.replacement else self._weighted.num_samples
        left = int((self._weighed(factors) > 0).sum())
        if left < least:
            detail = (
                f"{left:,} samples would have a weight above 0; its WeightedRandomSampler draws "
                f"{self._weighted.num_samples:,}; allowed: {least:,} or more."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="value")


class Drawn:
    """Which of the chosen samples a loader has handed out.

    Args:
        ids: int64; None: all.
        number: of samples that the data set has.
    """

    def __init__(self, ids: torch.Tensor | None, number: int) -> None:
        self._ids = None if ids is None else torch.sort(ids).values
        self._of = number
        self._mask = torch.zeros(number if ids is None else len(ids), dtype=torch.bool)

    def note(self, index: Any) -> None:
        """The indices of a batch, or one."""
        asked = torch.as_tensor(index, dtype=torch.int64).reshape(-1)
        self._mask[asked if self._ids is None else torch.searchsorted(self._ids, asked)] = True

    def ids(self) -> torch.Tensor:
        """Those that were, in order."""
        places = self._mask.nonzero().reshape(-1)
        return places if self._ids is None else self._ids[places]

    def status(self) -> dict[str, int]:
        """How many samples are chosen, of how many, and were handed out by now; any thread."""
        return {"chosen": len(self._mask), "of": self._of, "drawn": int(self._mask.sum())}

    def to_state(self) -> torch.Tensor:
        """As it lies in a checkpoint."""
        return self._mask.clone()

    def load(self, saved: torch.Tensor) -> None:
        """What ``to_state`` returned, of the same choice."""
        self._mask |= saved


class TrainingData:
    """What of its data a fit trains on, which can be changed.

    Args:
        fit: its loader is looked at when something is chosen first.
    """

    def __init__(self, fit: FitData) -> None:
        self._fit = fit
        self._chosen: ChosenData | None = None
        self._own_batches: int | None = None  # of an epoch, as the script has it
        self.drawn: Drawn | None = None  # while something is chosen

    @property
    def choice(self) -> DataChoice:
        """What is trained on now."""
        return self._chosen.choice if self._chosen is not None else DataChoice()

    def check(self, choice: DataChoice) -> None:
        """Refuse what cannot be; nothing is changed. See ChosenData.check."""
        if choice:
            self._loader().check(choice)

    def choose(self, choice: DataChoice) -> list[str]:
        """From the next iterator on; see ChosenData.choose."""
        return self._choose(choice)

    def _choose(self, choice: DataChoice) -> list[str]:
        if not choice and not self.choice:
            return []
        chosen = self._loader()
        told = chosen.choose(choice)
        self.drawn = Drawn(choice.ids, len(chosen.loader.dataset)) if choice else None
        hear(chosen.loader, self.drawn.note if self.drawn is not None else None)
        return [*told, *self._fit.count()]

    # By this rank alone; what ranks do together may be another's ``check`` and ``choose``.

    def usable(self) -> ChosenData | None:
        """The loader, where its batches can be other ones; None where not, or not yet."""
        try:
            loader = self._fit.loader()
        except CommandError:
            return None
        return self._loader() if isinstance(loader, DataLoader) else None

    def why_no_other_batches(self) -> str | None:
        """A sentence why they cannot be of another size; None where they can."""
        try:
            self._fit.loader()
        except CommandError as error:
            return error.detail
        chosen = self.usable()
        why = chosen.why_not(DataChoice(batch_size=1)) if chosen is not None else "no DataLoader"
        return None if why is None else f"Another batch size cannot be had: {why}."

    def check_here(self, choice: DataChoice) -> None:
        """See ``check``."""
        if choice:
            self._loader().check(choice)

    def change_here(self, choice: DataChoice) -> list[str]:
        """See ``choose``; of the same samples, so that what was drawn stays known."""
        drawn = self.drawn
        told = self._choose(choice)
        if drawn is not None and self.drawn is not None:
            self.drawn.load(drawn.to_state())
        return told

    def begin_pass_here(self) -> None:
        """See ``begin_pass``."""
        self._fit.begin_pass()

    def within_epoch(self) -> bool:
        """Whether batches of this epoch are still to come."""
        return self._fit.within_epoch()

    def ends_with_its_schedule(self) -> bool:
        """Whether a schedule raises behind its last step."""
        return self._fit.steps_left() is not None

    def status(self) -> dict[str, int] | None:
        """See Drawn.status; None where the run trains on all. Any thread."""
        drawn = self.drawn
        return drawn.status() if drawn is not None else None

    def begin_pass(self) -> None:
        """The epoch begins anew, with the data as it is now."""
        self._fit.begin_pass()

    def epochs_of(self, steps: int, batch_idx: int) -> int | None:
        """As many as hold so many steps from here on, this one among them; None: not known."""
        found = self._fit.epoch()
        if found is None:
            return None
        batches, of_step = found
        return math.ceil((steps + batch_idx // of_step) / math.ceil(batches / of_step))

    def refuse_too_long(self, epochs: int, max_steps: int | None) -> None:
        """Refuse whole epochs that a schedule of fixed length does not have.

        Args:
            max_steps: it trains no more than that, from here on.

        Raises:
            CommandError: ``unsupported``.
        """
        left, found = self._fit.steps_left(), self._fit.epoch()
        if left is None or found is None:
            return
        batches, of_step = found
        asked = epochs * math.ceil(batches / of_step)
        asked = asked if max_steps is None else min(asked, max_steps)
        if asked > left:
            detail = (
                f"It would train {asked:,} steps with this data, but its schedule (OneCycleLR) has "
                f"{left:,} left and raises behind them; allowed: steps, {left:,} at most."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="steps")

    def environment(self) -> dict[str, Any]:
        """Where something is chosen: what ``ControlDelegate.environment`` says of the script's."""
        return {"data": self._own_batches} if self.choice else {}

    def off(self) -> None:
        """The loader as the script has made it."""
        if self._chosen is not None:
            self._chosen.restore()
            hear(self._chosen.loader, None)

    def _loader(self) -> ChosenData:
        if self._chosen is None:
            self._chosen = ChosenData(self._fit.loader())
            self._own_batches = self._fit.batches()
        return self._chosen


def _check_ids(ids: torch.Tensor, number: int) -> None:
    if ids.numel() == 0:
        detail = "No sample was chosen; allowed: at least 1."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= number:
        wrong = low if low < 0 else high
        detail = (
            f"Sample {wrong} was chosen of a data set with {number:,}; allowed: 0 to {number - 1}."
        )
        allowed = {"min": 0, "max": number - 1}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids", allowed=allowed)
    if len(torch.unique(ids)) != len(ids):
        detail = "A sample was chosen more than once; allowed: each once, or weights."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids")


def _check_weights(weights: torch.Tensor, number: int) -> None:
    if len(weights) != number:
        detail = f"{len(weights):,} weights were given for {number:,} samples."
    elif number > MAX_WEIGHTS:
        detail = f"Weights for {number:,} samples were given; allowed: {MAX_WEIGHTS:,} at most."
    elif not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        detail = "A weight is negative or not finite; allowed: 0 and above."
    elif not bool((weights > 0).any()):
        detail = "All weights are 0; allowed: at least one above."
    else:
        return
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="weights")
