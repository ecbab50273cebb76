"""The loss of each sample of a data set, in slices; the rule by which it is found.

The rule, first that applies:
(1) ``per_sample_loss(batch)`` of the module;
(2) the module's own step, where its loss is, bit for bit, one loss of torch that was computed in it
    (``runs.losses``): the same without a reduction, the mean over all but the batch's dimension;
(3) the module's own step with one sample at a time; said, since it takes longer.

Rule 1: a slice leaves no trace: all that it changes is as before when it ends, also where the
user's code raises or somebody cancels. Between two slices the run may train.
Rule 2: eval mode, no gradients. Generators are seeded for each batch from its place, so that how
the work is cut into slices changes no loss.
Rule 3: batches are in the order of ids, made by the user's collate_fn, in this process.
Rule 4: a share of the samples is whole batches of the scan of all, each at its place there: seeds
and numbers of batches are by the place, so that who finds a loss changes nothing of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.layers import LayerWatch
from otf_core.runs.losses import LossWatch, Scores
from otf_core.runs.scanned import Scanned
from otf_core.runs.subject import Around, Subject, apart, fetch, seed_all
from otf_core.runs.table import Ids, SampleTable, fingerprint_of
from otf_core.runs.unchanged import weights_kept, weights_watched
from otf_core.state.parts import named_modules, named_parameters

# Losses, what a classifier said, features.
_Found = tuple[torch.Tensor, Scores | None, torch.Tensor | None]

# How much the loss of a sample may differ from the one it has alone, as a part and in all.
_CLOSE: Final = 1e-3
_CLOSE_HALF: Final = 3e-2


class Rule(enum.StrEnum):
    """How the losses were found."""

    HOOK = "hook"
    STEP = "step"
    ALONE = "one at a time"


@dataclasses.dataclass(frozen=True)
class Ruling:
    """The rule and what was found of it; plain values.

    Attributes:
        loss_name: that of the step, as torch calls it.
        folds: samples that lie with another dimension as one were looked at, and are right.
        alone_from: the place from which on it is one sample at a time; None: nowhere.
        why_alone: of that, for people.
    """

    rule: Rule
    loss_name: str = ""
    folds: bool = False
    alone_from: int | None = None
    why_alone: str = ""

    def told(self, step_name: str) -> str:
        """The rule that is used and why, for people."""
        if self.rule is Rule.HOOK:
            return "by the module's per_sample_loss"
        if self.rule is Rule.STEP:
            return f"by {step_name}, its {self.loss_name or 'loss'} for each sample"
        return f"by {step_name} with one sample at a time, since {self.why_alone}"

    def joined(self, other: Ruling) -> Ruling:
        """What holds of both shares: one at a time from the first place where it was so."""
        if other.alone_from is not None and (
            self.alone_from is None or other.alone_from < self.alone_from
        ):
            return other
        return self


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a scan is.

    Attributes:
        seconds: worked so far, the time between slices not among it.
        eta_s: seconds of work left; None before there is anything to tell it by.
        told: the rule that is used and why, for people.
    """

    done: int
    total: int
    seconds: float
    eta_s: float | None
    told: str

    @property
    def finished(self) -> bool:
        """Whether all are done."""
        return self.done == self.total


class AnyScan(Protocol):
    """A scan as it is asked for, in this process or on all ranks; see ``Scan``."""

    @property
    def told(self) -> str:
        """The rule that is used and why, for people."""

    def progress(self) -> Progress:
        """How far it is."""

    def slices(
        self, slice_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress]:
        """Work until all is done or somebody cancels."""

    def work(self, slice_s: float, cancelled: Callable[[], bool] = lambda: False) -> Progress:
        """One slice."""

    def table(self) -> SampleTable:
        """What was found, once all is done."""


class BeginScan(Protocol):
    """Makes one; raises as ``Scan`` does."""

    def __call__(
        self, subject: Subject, ids: Ids | None = None, *, layer: str | None = None
    ) -> AnyScan:
        """It has not begun."""


class Scan:
    """One scan; training thread, between two batches.

    Attributes:
        all_ids: ascending; those of its share are a part of them.

    Args:
        ids: the samples; None: all.
        layer: whose activations are kept as features.
        seed: of what the step, the transforms and the data set draw.
        clock: seconds.
        share: of the places among ``ids``, whole batches; None: all of them.
        prepare: called in each slice before its first batch, when all is in eval mode.
        rehearsed: within it a batch of the share is tried before the first slice, and forgotten.

    Raises:
        CommandError: ``unsupported``, the data set has no indices, or there is neither hook nor
            step; ``bad_payload``, there is no such sample or layer.
    """

    def __init__(
        self,
        subject: Subject,
        ids: Ids | None = None,
        *,
        layer: str | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        share: range | None = None,
        prepare: Callable[[], object] = lambda: None,
        rehearsed: Around | None = None,
    ) -> None:
        self.subject, self.data = subject, fingerprint_of(subject.dataset)
        self.all_ids = np.arange(self.data.size, dtype=np.int64) if ids is None else np.unique(ids)
        self._check()
        share = range(len(self.all_ids)) if share is None else share
        self._first, self._ids = share.start, self.all_ids[share.start : share.stop]
        self._prepare, self._rehearsed = prepare, rehearsed
        self._layer = LayerWatch(layer, named_modules(subject.modules)) if layer else None
        self._seed, self._clock = seed, clock
        self.ruling = Ruling(Rule.HOOK if subject.hook is not None else Rule.STEP)
        self._done = 0
        self._seconds = 0.0
        self._began: float | None = None
        self._since: tuple[int, float] = 0, 0.0  # done and seconds when the rule came into use
        self.found = Scanned(self._ids)

    @property
    def rule(self) -> Rule:
        """The one that is used now."""
        return self.ruling.rule

    @property
    def told(self) -> str:
        """The rule that is used and why, for people."""
        return self.ruling.told(self.subject.step_name)

    def progress(self) -> Progress:
        """How far it is; any thread."""
        done, seconds = self._since
        rate_s = (self._seconds - seconds) / (self._done - done) if self._done > done else None
        eta_s = None if rate_s is None else rate_s * (len(self._ids) - self._done)
        return Progress(self._done, len(self._ids), self._seconds, eta_s, self.told)

    def slices(
        self, slice_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress]:
        """Work until all is done or somebody cancels; between two slices nothing is held."""
        while not self.progress().finished and not cancelled():
            yield self.work(slice_s, cancelled)

    def work(
        self, slice_s: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Progress:
        """One slice: at least a batch, until its time is over; without a trace.

        What the user's code raises passes through; what was done before it stays known.

        Raises:
            CommandError: ``bad_payload``, the data set has another size now; ``unsupported``, the
                step has no loss, or changes weights.
        """
        if (size := len(self.subject.dataset)) != self.data.size:
            detail = (
                f"The {self.subject.name} set had {self.data.size:,} samples when the scan began, "
                f"and has {size:,}; allowed: a new scan."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
        began = self._began = self._clock()
        try:
            self._rehearse()
            with self._apart():
                while self._done < len(self._ids) and not cancelled():
                    self._batch()
                    if slice_s is not None and self._clock() - began >= slice_s:
                        break
        finally:
            self.found.read()
            self._seconds, self._began = self._worked(), None
        return self.progress()

    def table(self) -> SampleTable:
        """What is known of the samples that are done."""
        layer = self._layer.name if self._layer is not None else None
        return self.found.table(self.data, self._done, layer)

    def rule_by(self, ruling: Ruling) -> None:
        """What was found of the rule in another share holds here as well.

        Where it is one sample at a time from a place before this share, what was done otherwise
        is done again.
        """
        mine, end = self.ruling, self._first + len(self._ids)
        if mine.alone_from is None and ruling.alone_from is None:
            name = mine.loss_name or ruling.loss_name
            self.ruling = dataclasses.replace(
                mine, loss_name=name, folds=mine.folds or ruling.folds
            )
        elif mine.joined(ruling) is not mine and (ruling.alone_from or 0) < end:
            self.ruling = ruling
            self._done, self.found = 0, Scanned(self._ids)
            self._since = 0, self._worked()

    def _worked(self) -> float:
        running = 0.0 if self._began is None else self._clock() - self._began
        return self._seconds + running

    def _check(self) -> None:
        subject = self.subject
        if subject.hook is None and subject.step is None:
            detail = (
                f"The loss of each sample was asked; {subject.step_name} may not be called for it, "
                "since it steps optimizers by hand or fetches its batches itself; allowed: a "
                "per_sample_loss(batch) of the module."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        size = self.data.size
        if len(self.all_ids) == 0 or self.all_ids[0] < 0 or self.all_ids[-1] >= size:
            detail = f"Samples of a data set with {size:,} were asked; allowed: 0 to {size - 1}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids")

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        subject = self.subject
        watch = self._layer if self._layer is not None else contextlib.nullcontext()
        params = named_parameters(subject.modules)
        with apart(subject), watch, torch.no_grad(), weights_watched(params, subject.step_name):
            for module in subject.modules.values():
                module.eval()
            self._prepare()
            yield

    def _rehearse(self) -> None:
        rehearsed, self._rehearsed = self._rehearsed, None
        if rehearsed is None or not len(self._ids):
            return
        subject = self.subject
        kept = weights_kept(named_parameters(subject.modules), subject.step_name)
        with self._apart(), kept, rehearsed():
            _, batch, _ = self._next()
            with subject.context():
                if subject.hook is not None:
                    subject.hook(batch)
                elif subject.step is not None:
                    subject.step(batch, self._place // subject.batch_size)

    @property
    def _place(self) -> int:
        """Of the next sample among all that are scanned."""
        return self._first + self._done

    def _next(self) -> tuple[list[Any], Any, int]:
        """The next samples, the batch that is made of them, and how many they are."""
        subject, alone = self.subject, self.rule is Rule.ALONE
        ids = self._ids[self._done :][: 1 if alone else subject.batch_size].tolist()
        seed_all(self._seed + self._place)
        items = fetch(subject.dataset, ids)
        return items, subject.transfer(subject.collate(items)), len(ids)

    def _batch(self) -> None:
        subject = self.subject
        items, batch, number = self._next()
        kept: Any = contextlib.nullcontext()
        if self._done == 0:
            kept = weights_kept(named_parameters(subject.modules), subject.step_name)
        with kept, subject.context():
            found: _Found | None
            if self.rule is Rule.HOOK:
                found = self._by_hook(batch, number)
            elif self.rule is Rule.STEP:
                found = self._by_step(batch, items)
            else:
                found = self._by_one(batch)
        if found is None:
            return  # the same samples again, one at a time
        self.found.add(*found)
        self._done += number

    def _by_hook(self, batch: Any, number: int) -> _Found:
        hook = self.subject.hook
        assert hook is not None
        losses = hook(batch)
        if not isinstance(losses, torch.Tensor) or losses.shape[:1] != (number,):
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else losses
            detail = (
                f"per_sample_loss was asked for the losses of {number} samples, found {shape!r}; "
                f"allowed: a tensor whose first dimension is {number}."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return losses.detach().reshape(number, -1).mean(1), None, self._features(number)

    def _by_step(self, batch: Any, items: list[Any]) -> _Found | None:
        number = len(items)
        with LossWatch() as watch:
            loss = self._step(batch)
        features = self._features(number)
        call = watch.of(loss) if loss is not None else None
        found = call.per_sample(number) if call is not None else None
        if loss is None:
            self._go_alone("with a batch it returns no loss")
        elif call is None:
            names = (
                ", ".join(dict.fromkeys(call.name for call in watch.calls)) or "no loss of torch"
            )
            self._go_alone(f"its loss is something else than what it computes in it ({names})")
        elif found is None:
            self._go_alone(f"the shape of its {call.name} is not that of {number} samples")
        elif found[1] and not self._folds(found[0], items):
            self._go_alone(f"its {call.name} does not have the parts of a sample together")
        else:
            self.ruling = dataclasses.replace(self.ruling, loss_name=call.name)
            return found[0], call.scores(number), features
        return None

    def _by_one(self, batch: Any) -> _Found:
        with LossWatch() as watch:
            loss = self._step(batch)
        value = torch.full((1,), torch.nan) if loss is None else loss.detach().reshape(1)
        told = [scores for call in watch.calls if (scores := call.scores(1)) is not None]
        return value, told[0] if len(told) == 1 else None, self._features(1)

    def _folds(self, losses: torch.Tensor, items: list[Any]) -> bool:
        """Whether two samples have the loss that they have alone; asked once."""
        subject = self.subject
        if self.ruling.folds or len(items) == 1:
            return True
        for place in (0, len(items) - 1):
            loss = self._step(subject.transfer(subject.collate([items[place]])))
            here = losses[place]
            close = _CLOSE_HALF if torch.finfo(here.dtype).bits < 32 else _CLOSE
            if loss is None or not torch.allclose(
                loss.detach().to(here).reshape(()), here, rtol=close, atol=close, equal_nan=True
            ):
                return False
        self.ruling = dataclasses.replace(self.ruling, folds=True)
        return True

    def _step(self, batch: Any) -> torch.Tensor | None:
        step = self.subject.step
        assert step is not None
        output = step(batch, self._place // self.subject.batch_size)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            return loss
        if loss is None and self._place:
            return None  # it skips some
        if loss is None and self.rule is Rule.STEP:
            return None
        found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        detail = (
            f"The loss of each sample was asked; {self.subject.step_name} returned {found}; "
            "allowed: a loss, or a per_sample_loss(batch) of the module."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)

    def _features(self, number: int) -> torch.Tensor | None:
        return self._layer.take(number) if self._layer is not None else None

    def _go_alone(self, why: str) -> None:
        self.ruling = dataclasses.replace(
            self.ruling, rule=Rule.ALONE, alone_from=self._place, why_alone=why
        )
        self._since = self._done, self._worked()
